"""Pairs of rank plans of equal speed, for a comparison of accuracies: planned for measured time, and uniform."""

import os
import pathlib
import statistics
import tempfile

import numpy as np

from benchmarks.measure.runner import Flag, measurement
from benchmarks.measure.variants import litert_seconds

PLANS = pathlib.Path(__file__).parents[1] / "grids" / "plans"
_MODELS = ("resnet20", "vgg16_cifar", "resnet18_cifar")
_STEP = 0.05  # distance of the uniform plans that are tried, as a part of the MACs


@measurement(
    "latency_plans",
    models=Flag(_MODELS, "Networks, each in a separate process."),
    runs=Flag(60, "Number of timed inferences of each file."),
    budget=Flag(0.5, "`max_latency`."),
    format=Flag("tucker2", "Format of all layers, or `auto`."),
    quantization=Flag("float32", "Kind of the files.", choices=("float32", "int8")),
)
def latency_plans(settings):
    """Plans ranks for a latency, finds uniform ranks of the same speed, and writes both plans for the grids.

      python -m benchmarks.measure latency_plans --models=resnet20 --quantization=int8

    The uniform plan has the most MACs of all uniform plans that are no slower than the planned one on LiteRT. All files
    take turns, on one thread. Plans go to benchmarks/grids/plans/, where `rank_plan` of a run finds them.
    """
    import elrt_keras as elrt
    from elrt_keras import litert

    dense = elrt.models.build(settings.model, (32, 32, 3), 10)
    quantization = None if settings.quantization == "float32" else settings.quantization
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ELRT_CACHE_DIR"] = folder  # an empty cache, so that all times are new
        planned = elrt.plan_ranks(dense, settings.format, max_latency=settings.budget, quantization=quantization)
    plans = {"planned": planned, **_uniform(dense)}
    models = {name: elrt.factorize(dense, plan) for name, plan in plans.items()}
    contents = {
        name: litert.model_to_litert(model, quantization, images if quantization else None)
        for name, model in {"dense": dense, **models}.items()
    }
    seconds = litert_seconds(contents, 1, settings.runs, f"{settings.model} {settings.quantization}")
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    macs = {name: elrt.count_costs(model).macs for name, model in models.items()}
    fitting = [name for name in plans if name != "planned" and middle[name] <= middle["planned"]]
    uniform = max(fitting or [min(macs, key=macs.get)], key=macs.get)
    stem = "_".join([settings.model, settings.format, str(settings.budget), settings.quantization])
    PLANS.mkdir(exist_ok=True)
    plans["planned"].save(PLANS / f"{stem}_planned.json")
    plans[uniform].save(PLANS / f"{stem}_uniform.json")
    return {
        "model": settings.model,
        "max_latency": settings.budget,
        "quantization": settings.quantization,
        "format": settings.format,
        "predicted_speedup": planned.latency["dense"] / planned.latency["planned"],
        "seconds": {"dense": seconds["dense"], "planned": seconds["planned"], "uniform": seconds[uniform]},
        "macs": {
            "dense": elrt.count_costs(dense).macs,
            "planned": macs["planned"],
            "uniform": macs[uniform],
        },
        "tried": {name: middle[name] for name in plans},
    }


def _uniform(dense):
    """Returns different uniform plans by name, in steps of the MACs."""
    import elrt_keras as elrt

    plans = {}
    for part in np.arange(0.95, 0.05, -_STEP):
        try:
            plan = elrt.plan_ranks(dense, max_macs=float(part))
        except ValueError:  # below the cost of the lowest ranks
            break
        if dict(plan) not in map(dict, plans.values()):
            plans[f"uniform_{part:.2f}"] = plan
    return plans
