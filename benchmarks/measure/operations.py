"""Where a training step spends its time: TensorFlow's profiler, summed by kind of operation.

  python -m benchmarks.operations
  python -m benchmarks.operations --models=resnet20

Milliseconds are those of all threads together. One process per model. Files in `benchmarks/results/operations/`.
"""

import collections
import pathlib
import tempfile

from absl import app, flags

from benchmarks.measure import evidence
from benchmarks.measure.processes import run_each
from benchmarks.measure.variants import BATCHES

_MODELS = flags.DEFINE_list("models", list(BATCHES), "Builders.")
_STEPS = flags.DEFINE_integer("steps", 5, "Steps that are profiled.")
_ONE = flags.DEFINE_string("one", None, "The model of this process; the driver sets it.")
# What parts of an operation and whole functions are called in a profile.
_NO_OPERATIONS = ("Run", "Process")


def milliseconds(step, steps):
    """`{kind of operation: milliseconds per step}` of a function that trains one step."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    total = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            for _ in range(steps):
                step()
        for path in pathlib.Path(folder).rglob("*.xplane.pb"):
            for plane in xplane_pb2.XSpace.FromString(path.read_bytes()).planes:
                for event in (event for line in plane.lines for event in line.events):
                    name, _, kind = plane.event_metadata[event.metadata_id].name.rpartition(":")
                    if name and not name.startswith("$") and "__inference" not in kind and kind not in _NO_OPERATIONS:
                        total[kind.removeprefix("_MklNative").removeprefix("_Mkl")] += event.duration_ps / 1e9 / steps
    return dict(total.most_common())


def main(argv):
    """Profiles the models asked for, each in a process of its own."""
    del argv
    if _ONE.value is None:
        run_each("benchmarks.measure.operations", _MODELS.value)
        return
    from benchmarks.measure.variants import make, training_step

    name = _ONE.value
    variants = {}
    for variant in ("dense", "low_rank_0.4", "thin_0.4"):
        step = training_step(make(name, variant), BATCHES[name])
        variants[variant] = {kind: round(value, 3) for kind, value in milliseconds(step, _STEPS.value).items()}
        print(name, variant, {kind: value for kind, value in list(variants[variant].items())[:8]}, flush=True)
    command = f"python -m benchmarks.operations --models={name} --steps={_STEPS.value}"
    result = {"model": name, "batch_size": BATCHES[name], "milliseconds": variants}
    evidence.write("operations", name, result, command)


if __name__ == "__main__":
    app.run(main)
