"""Profiles of training steps: kernels of an accelerator by purpose, operations of a CPU by kind."""

import collections
import dataclasses
import pathlib
import tempfile

from benchmarks.measure.machine import on_host
from benchmarks.measure.runner import Flag, measurement
from benchmarks.measure.variants import BATCHES, builders, interleaved

_STEPS = 10  # in one call
_VARIANTS = ("dense", "low_rank_0.4", "as_products_0.4", "without_penalty_0.4", "composed_0.4")
# Purpose of a kernel, by the first of these texts in its name or in the name of its operation; the rest is "other".
_KINDS = {
    "stem_conv": "stem convolution",
    "cudnn-conv-bw-filter": "convolutions, gradient of kernels",
    "cudnn-conv-bw-input": "convolutions, gradient of inputs",
    "cudnn-conv": "convolutions, forward",
    "s1688gemm": "matrix products, float32",
    **dict.fromkeys(("nvjet", "gemm", "splitKreduce"), "matrix products, bfloat16"),
    **dict.fromkeys(("scatter_fusion", "reduce_window"), "pooling"),
    "fusion": "batch-norm, activations, sums",
}


def kind_of(*names):
    """Returns the kind of a kernel, by its names and those of its operation."""
    text = " ".join(names)
    return next((kind for part, kind in _KINDS.items() if part in text), "other")


def milliseconds(call, steps):
    """Profiles a function that trains `steps` steps on a GPU: `{kind: milliseconds per step}`."""
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
    """Makes the low-rank convolutions of a model train with their 1×1 stages as matrix products."""
    import elrt_keras as elrt
    from elrt_keras.layers.factorized_conv import FactorizedConv

    for _, layer in elrt.graph.paths.iterate_layers(model):
        if isinstance(layer, FactorizedConv):
            layer.training_way = dataclasses.replace(layer.default_way, products=True)
    return model


@measurement(
    "kernels",
    models=builders("resnet20", "resnet18"),
    rounds=9,
    name="gpu",
    batch_size=Flag(None, "Images per step. Default: 1024 images of 32×32, 256 of 224×224.", int),
    environment={"KERAS_BACKEND": "jax"},
)
def kernels(settings):
    """Profiles the time of a training step on an accelerator, by purpose of the kernels; JAX.

      python -m benchmarks.measure kernels --models=resnet20,resnet18

    The variants beside the network itself are: 1×1 stages as matrix products (`as_products`), as the layers train on
    TensorFlow; without the penalty; and composed (`execution="compose"`), one dense convolution with the composed
    kernel. Nothing else should run on the accelerator.
    """
    import keras

    from benchmarks.measure.device_steps import compiled_steps
    from benchmarks.measure.networks import make

    keras.config.set_dtype_policy("mixed_bfloat16")
    name = settings.model
    batch_size = settings.batch_size or (1024 if BATCHES[name] == 128 else 256)
    with on_host():
        models = {variant: make(name, variant.replace("as_products", "low_rank")) for variant in _VARIANTS}
    run_as_products(models["as_products_0.4"])
    calls = compiled_steps(models, batch_size, _STEPS)
    seconds = interleaved(calls, settings.rounds, name, per=_STEPS)
    profiles = {variant: milliseconds(call, _STEPS) for variant, call in calls.items()}
    print(name, profiles, flush=True)
    return {"model": name, "batch_size": batch_size, "seconds": seconds, "milliseconds": profiles}


@measurement("operations", models=builders(), steps=Flag(5, "Number of profiled steps."))
def operations(settings):
    """Profiles the time of a training step, by kind of operation; TensorFlow.

    Milliseconds are the sum over all threads.
    """
    from benchmarks.measure.networks import make, training_step

    name, variants = settings.model, {}
    for variant in ("dense", "low_rank_0.4", "thin_0.4"):
        step = training_step(make(name, variant), BATCHES[name])
        variants[variant] = _operation_milliseconds(step, settings.steps)
        print(name, variant, variants[variant], flush=True)
    return {"model": name, "batch_size": BATCHES[name], "milliseconds": variants}


def _operation_milliseconds(step, steps):
    """Profiles a function that trains one step: `{kind of operation: milliseconds per step}`."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    total, parts = collections.Counter(), ("Run", "Process")  # parts of an operation
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            for _ in range(steps):
                step()
        for path in pathlib.Path(folder).rglob("*.xplane.pb"):
            for plane in xplane_pb2.XSpace.FromString(path.read_bytes()).planes:
                for event in (event for line in plane.lines for event in line.events):
                    name, _, kind = plane.event_metadata[event.metadata_id].name.rpartition(":")
                    if name and not name.startswith("$") and "__inference" not in kind and kind not in parts:
                        total[kind.removeprefix("_MklNative").removeprefix("_Mkl")] += event.duration_ps / 1e9 / steps
    return {kind: round(value, 3) for kind, value in total.most_common()}
