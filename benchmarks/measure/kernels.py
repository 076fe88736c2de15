"""Where a training step spends its time on an accelerator: JAX's profiler, kernels summed by what they compute.

  KERAS_BACKEND=jax python -m benchmarks.kernels --models=resnet20,resnet18

Beside the network as it is: its 1×1 stages as matrix products (`as_products`), which is how the layers train on
TensorFlow; without the penalty; and composed (`execution="compose"`), one dense convolution by the kernel that the
factors make. One process per model, with nothing beside it. Files in `benchmarks/results/kernels/`.
"""

import collections
import pathlib
import tempfile

from absl import app, flags

from benchmarks.measure import evidence
from benchmarks.measure.processes import run_each

_MODELS = flags.DEFINE_list("models", ["resnet20", "resnet18"], "Builders.")
_BATCH = flags.DEFINE_integer("batch_size", None, "Batch size; by default 1024 of 32x32 or 256 of 224x224.")
_ONE = flags.DEFINE_string("one", None, "The model of this process; the driver sets it.")
_STEPS = 10  # to a call
_ROUNDS = 9
VARIANTS = ("dense", "low_rank_0.4", "as_products_0.4", "without_penalty_0.4", "composed_0.4")
# What a kernel computes, by the first of these texts in its name or its operation's; the rest is "other".
_KINDS = (
    ("stem_conv", "stem convolution"),
    ("cudnn-conv-bw-filter", "convolutions, gradient of kernels"),
    ("cudnn-conv-bw-input", "convolutions, gradient of inputs"),
    ("cudnn-conv", "convolutions, forward"),
    ("s1688gemm", "matrix products, float32"),
    ("nvjet", "matrix products, bfloat16"),
    ("gemm", "matrix products, bfloat16"),
    ("splitKreduce", "matrix products, bfloat16"),
    ("scatter_fusion", "pooling"),
    ("reduce_window", "pooling"),
    ("fusion", "batch-norm, activations, sums"),
)


def kind_of(*names):
    """What a kernel with these names, its own and those of its operation, computes."""
    text = " ".join(names)
    return next((kind for part, kind in _KINDS if part in text), "other")


def milliseconds(call, steps):
    """`{kind: milliseconds per step}` of a function that trains so many steps on a GPU."""
    import jax

    total = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        for path in pathlib.Path(folder).rglob("*.xplane.pb"):
            planes = jax.profiler.ProfileData.from_file(str(path)).planes
            lines = [line for plane in planes if plane.name.startswith("/device:GPU") for line in plane.lines]
            for event in (event for line in lines if line.name.startswith("Stream") for event in line.events):
                about = dict(event.stats)
                kind = kind_of(event.name, str(about.get("hlo_op", "")), str(about.get("tf_op", "")))
                total[kind] += event.duration_ns / 1e6 / steps
    if not total:
        raise ValueError("Expected kernels of a GPU in the profile. Received: none")
    return {kind: round(value, 4) for kind, value in total.most_common()}


def run_as_products(model):
    """Has the low-rank convolutions of a model train with their 1×1 stages as matrix products."""
    import elrt_keras as elrt
    from elrt_keras.layers.factorized_conv import FactorizedConv

    for _, layer in elrt.graph.paths.iterate_layers(model):
        if isinstance(layer, FactorizedConv):
            layer._trains_as_products = lambda: True
    return model


def measure(name):
    """Times and profiles the variants of one model and writes the file."""
    import keras

    from benchmarks.measure.device_steps import compiled_steps
    from benchmarks.measure.variants import BATCHES, interleaved, make
    from benchmarks.train.in_memory import on_host

    keras.config.set_dtype_policy("mixed_bfloat16")
    batch_size = _BATCH.value or (1024 if BATCHES[name] == 128 else 256)
    with on_host():
        models = {variant: make(name, variant.replace("as_products", "low_rank")) for variant in VARIANTS}
    run_as_products(models["as_products_0.4"])
    calls = compiled_steps(models, batch_size, _STEPS)
    seconds = interleaved(calls, _ROUNDS)
    result = {
        "model": name,
        "batch_size": batch_size,
        "seconds": {variant: [value / _STEPS for value in values] for variant, values in seconds.items()},
        "milliseconds": {variant: milliseconds(call, _STEPS) for variant, call in calls.items()},
    }
    evidence.write("kernels", f"gpu_{name}", result, f"python -m benchmarks.kernels --models={name}")
    for variant, kinds in result["milliseconds"].items():
        print(name, variant, {kind: round(value, 2) for kind, value in kinds.items()}, flush=True)


def main(argv):
    """Measures the models asked for, each in a process of its own."""
    del argv
    if _ONE.value is not None:
        measure(_ONE.value)
        return
    run_each("benchmarks.measure.kernels", _MODELS.value)


if __name__ == "__main__":
    app.run(main)
