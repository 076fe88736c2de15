"""Times the Tucker-2 decomposition of a model's kernels at several tolerances of the iteration, and how close it comes.

  python -m benchmarks.decomposing
  python -m benchmarks.decomposing --models=resnet50 --rounds=1

The kernels are random as they are initialised: nothing stands out of them, so the iteration has more to do than with
trained ones. One process per model. Files in `benchmarks/results/decomposing/`.
"""

from absl import app, flags

from benchmarks.measure import evidence
from benchmarks.measure.processes import run_each

_MODELS = flags.DEFINE_list("models", ["resnet18"], "Builders.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Times of each tolerance.")
_ONE = flags.DEFINE_string("one", None, "The model of this process; the driver sets it.")
_BUDGET = 0.5
TOLERANCES = (1e-6, 1e-5, 1e-4, 1e-3)


def kernels_of(name):
    """The kernels of a builder that a plan at `_BUDGET` gives Tucker-2 ranks, as `[(kernel, ranks)]`."""
    import keras

    import elrt_keras as elrt

    keras.utils.set_random_seed(0)
    model = elrt.models.build(name)
    plan = elrt.plan_ranks(model, max_macs=_BUDGET)
    layers = dict(elrt.graph.paths.iterate_layers(model))
    planned = [(layers[path], entry.ranks) for path, entry in plan.items() if entry.format == "tucker2"]
    return [(keras.ops.convert_to_numpy(layer.kernel), ranks) for layer, ranks in planned]


def decomposition(kernels, tolerance, errors):
    """A function that decomposes all kernels at a tolerance and notes in `errors` the relative error of each."""
    import keras
    import numpy as np

    from elrt_keras.formats import tucker2

    form = tucker2.Tucker2()

    def run():
        tucker2._tolerance = lambda kernel: tolerance
        errors[tolerance] = []
        for kernel, ranks in kernels:
            near = keras.ops.convert_to_numpy(form.compose(form.decompose(kernel, ranks)))
            errors[tolerance].append(float(np.linalg.norm(kernel - near) / np.linalg.norm(kernel)))

    return run


def measure(name):
    """Measures one model, all tolerances in turns, and writes the file."""
    from benchmarks.measure.variants import interleaved

    kernels, errors = kernels_of(name), {}
    runs = {str(tolerance): decomposition(kernels, tolerance, errors) for tolerance in TOLERANCES}
    seconds = interleaved(runs, _ROUNDS.value)
    command = f"python -m benchmarks.decomposing --models={name} --rounds={_ROUNDS.value}"
    found = {str(tolerance): errors[tolerance] for tolerance in TOLERANCES}
    evidence.write(
        "decomposing", name, {"model": name, "kernels": len(kernels), "seconds": seconds, "errors": found}, command
    )


def main(argv):
    """Measures the models asked for, each in a process of its own."""
    del argv
    if _ONE.value is not None:
        measure(_ONE.value)
        return
    run_each("benchmarks.measure.decomposing", _MODELS.value)


if __name__ == "__main__":
    app.run(main)
