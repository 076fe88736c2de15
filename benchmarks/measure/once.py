"""Times of kernel decompositions and of imports."""

import os
import subprocess
import sys

from benchmarks.measure.runner import measurement
from benchmarks.measure.variants import builders, interleaved

_BUDGET = 0.5
_TOLERANCES = (1e-6, 1e-5, 1e-4, 1e-3)


@measurement("decomposing", models=builders("resnet18"), rounds=3)
def decomposing(settings):
    """Measures time and error of the Tucker-2 decomposition of a model's kernels at several tolerances.

    The kernels have random initial values without structure, so the iteration is slower than for trained kernels.
    """
    kernels, errors = _kernels_of(settings.model), {}
    runs = {str(tolerance): _decomposition(kernels, tolerance, errors) for tolerance in _TOLERANCES}
    seconds = interleaved(runs, settings.rounds, settings.model)
    errors_by_tolerance = {str(tolerance): errors[tolerance] for tolerance in _TOLERANCES}
    return {"model": settings.model, "kernels": len(kernels), "seconds": seconds, "errors": errors_by_tolerance}


def _kernels_of(name):
    """Returns `[(kernel, ranks)]` of a builder's layers that a plan at `_BUDGET` factorises."""
    import keras

    import elrt_keras as elrt

    keras.utils.set_random_seed(0)
    model = elrt.models.build(name)
    plan = elrt.plan_ranks(model, max_macs=_BUDGET)
    layers = dict(elrt.graph.paths.iterate_layers(model))
    planned = [(layers[path], entry.ranks) for path, entry in plan.items() if entry.format == "tucker2"]
    return [(keras.ops.convert_to_numpy(layer.kernel), ranks) for layer, ranks in planned]


def _decomposition(kernels, tolerance, errors):
    """Returns a function that decomposes all kernels at a tolerance and records their relative errors in `errors`."""
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


_BACKENDS = ("tensorflow", "jax", "torch")
_PROGRAM = (
    "import sys, time; start = time.perf_counter(); import {name}; "
    "print(time.perf_counter() - start, 'tensorflow' in sys.modules)"
)


@measurement("imports", rounds=7, name="all")
def imports(settings):
    """Times `import elrt_keras` and `import keras` on every backend, and checks if they load TensorFlow.

    Each import has a fresh process; the two take turns.
    """
    import elrt_keras  # noqa: F401, whose byte code is made here and not in the first round

    times_by_backend = {backend: {"keras": [], "elrt_keras": [], "tensorflow_loaded": False} for backend in _BACKENDS}
    for _ in range(settings.rounds):
        for backend, rows in times_by_backend.items():
            for name in ("keras", "elrt_keras"):
                seconds, loaded = _imported(backend, name)
                rows[name].append(round(seconds, 4))
                rows["tensorflow_loaded"] |= loaded
    print(times_by_backend)
    return {"backends": times_by_backend}


def _imported(backend, name):
    """Imports a package in a fresh process; returns `(seconds, True if that loads TensorFlow)`."""
    environment = {**os.environ, "KERAS_BACKEND": backend}
    command = [sys.executable, "-c", _PROGRAM.format(name=name)]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, loaded = output.split()[-2:]
    return float(seconds), loaded == "True"
