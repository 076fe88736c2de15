"""Times `fit` as `elrt-train` compiles it, with XLA, and with several steps to a call; TensorFlow.

  python -m benchmarks.compiling
  python -m benchmarks.compiling --models=resnet20 --steps=32

Dense and low-rank networks on random images; all ways of one network take turns. One process per network. Files in
`benchmarks/results/compiling/`.
"""

from absl import app, flags

from benchmarks.measure import evidence
from benchmarks.measure.processes import run_each
from benchmarks.measure.variants import BATCHES

_MODELS = flags.DEFINE_list("models", ["resnet20", "vgg16_cifar"], "Builders.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Calls of `fit` in each way.")
_STEPS = flags.DEFINE_integer("steps", 16, "Training steps of a call.")
_ONE = flags.DEFINE_string("one", None, "The model of this process; the driver sets it.")

# What `compile` is told.
WAYS = {
    "as elrt-train": {"jit_compile": False},
    "4 steps to a call": {"jit_compile": False, "steps_per_execution": 4},
    "16 steps to a call": {"jit_compile": False, "steps_per_execution": 16},
    "XLA": {"jit_compile": True},
}
VARIANTS = ("dense", "low_rank_0.4")


def fit_of(model, batch_size, steps, options):
    """A function that trains `steps` steps with `fit` on a fixed random batch; already compiled."""
    import keras
    import numpy as np
    import tensorflow as tf

    from benchmarks.measure.variants import random_batch
    from elrt_keras.launch.data.interface import untuned

    batches = untuned(tf.data.Dataset.from_tensors(random_batch(model, batch_size)).cache().repeat(steps))
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True), "categorical_crossentropy", **options)

    def fit():
        return model.fit(batches, shuffle=False, verbose=0).history["loss"][0]

    if not np.isfinite(fit()):
        raise ValueError("Expected a finite loss. Received: another one")
    return fit


def measure(name):
    """Times all ways of one network and writes the file."""
    import keras

    import elrt_keras as elrt
    from benchmarks.measure.variants import interleaved, make, ratios

    rows = []
    for variant in VARIANTS:
        # A model is compiled for one way alone, so each way has a copy.
        model = make(name, variant)
        copies = {way: elrt.fuse_batch_norm(keras.models.clone_model(model)) for way in WAYS}
        fits = {way: fit_of(copy, BATCHES[name], _STEPS.value, WAYS[way]) for way, copy in copies.items()}
        seconds = interleaved(fits, _ROUNDS.value, show=lambda *_, **__: None)
        seconds = {way: [value / _STEPS.value for value in values] for way, values in seconds.items()}
        rows.append({"variant": variant, "seconds": seconds})
        medians = {way: f"{middle:.3f}x" for way, (middle, _, _) in ratios(seconds, next(iter(WAYS))).items()}
        print(name, variant, medians, flush=True)
    command = f"python -m benchmarks.compiling --models={name} --rounds={_ROUNDS.value} --steps={_STEPS.value}"
    evidence.write("compiling", name, {"model": name, "batch_size": BATCHES[name], "rows": rows}, command)


def main(argv):
    """Measures the networks asked for, each in a process of its own."""
    del argv
    if _ONE.value is not None:
        measure(_ONE.value)
        return
    run_each("benchmarks.measure.compiling", _MODELS.value)


if __name__ == "__main__":
    app.run(main)
