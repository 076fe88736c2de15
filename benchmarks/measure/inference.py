"""Inference times on LiteRT: models at their budgets, and plans for measured time."""

import os
import tempfile
import time

import numpy as np

from benchmarks.measure.runner import Flag, measurement
from benchmarks.measure.variants import BUDGETS, builders, litert_seconds, variants_flag, variants_of

_VARIANTS = ("dense", *(f"low_rank_{budget}" for budget in BUDGETS), "thin_0.4")


@measurement(
    "inference",
    models=builders(),
    runs=Flag(50, "Number of timed inferences of each file."),
    variants=variants_flag(*_VARIANTS),
    threads=Flag((1, 2), "CPU threads.", int),
)
def inference(settings):
    """Times LiteRT inference of dense, low-rank and thinned models in float32 and int8, with one and two threads.

      python -m benchmarks.measure inference --models=resnet20 --runs=200
      python -m benchmarks.measure inference --models=resnet20 --name=amx   # beside the results of another processor
      python -m benchmarks.measure inference --variants=formats --threads=1 --name=formats

    Each inference has one image; all files of a model take turns. Weights are random: they do not change the time.
    """
    import elrt_keras as elrt
    from benchmarks.measure.networks import make
    from elrt_keras import litert

    name, rows = settings.model, []
    models = {variant: make(name, variant) for variant in variants_of(settings)}
    images = _images(models["dense"], 8)
    for kind, quantization in {"float32": None, "int8": "int8"}.items():
        calibration = images if quantization else None
        contents = {v: litert.model_to_litert(model, quantization, calibration) for v, model in models.items()}
        sizes = {variant: len(content) for variant, content in contents.items()}
        for threads in settings.threads:
            seconds = litert_seconds(contents, threads, settings.runs, f"{name} {kind}, {threads} threads")
            rows.append({"quantization": kind, "threads": threads, "seconds": seconds, "bytes": sizes})
    macs = {variant: elrt.count_costs(model).macs for variant, model in models.items()}
    return {"model": name, "macs": macs, "rows": rows}


@measurement(
    "latency",
    models=Flag(("vgg16", "resnet18", "vgg16_cifar", "resnet20"), "Networks, each in a separate process."),
    rounds=Flag(5, "Number of comparisons of the models."),
    budgets=Flag((0.7, 0.5), "Values of `max_latency`.", float),
    threads=Flag(1, "CPU threads."),
    quantization=Flag("float32", "Kind of the files.", choices=("float32", "int8")),
)
def latency(settings):
    """Compares the speed-up that `plan_ranks(max_latency=…)` predicts with the speed-up measured on LiteRT.

      python -m benchmarks.measure latency --models=vgg16 --budgets=0.5 --threads=2
      python -m benchmarks.measure latency --models=resnet20,vgg16_cifar,resnet18 --quantization=int8

    Plans ranks for each model and each budget, with random weights and the model's own input size. Converts the dense
    model, the planned one, and one with uniform ranks and as many MACs; they take turns on LiteRT. Each model starts
    with an empty table of times. Each budget gets a result file.
    """
    import elrt_keras as elrt
    from elrt_keras import litert

    dense = elrt.models.build(settings.model)
    quantization = None if settings.quantization == "float32" else settings.quantization
    images = _images(dense, 4)

    def converted(model):
        return litert.model_to_litert(model, quantization, images if quantization else None)

    content, end = converted(dense), f"_{quantization}" if quantization else ""
    setting = {"model": settings.model, "threads": settings.threads, "quantization": settings.quantization}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ELRT_CACHE_DIR"] = folder
        for budget in settings.budgets:
            row = {**setting, "max_latency": budget, "command": settings.command(budgets=(budget,))}
            row |= _compared(dense, content, converted, budget, settings, quantization)
            yield f"{settings.file}_{budget}_{settings.threads}{end}", row


def _compared(dense, dense_content, converted, budget, settings, quantization):
    """Compares the dense model, the one planned for a budget, and one with uniform ranks and as many MACs."""
    import elrt_keras as elrt
    from elrt_keras import litert

    threads, start = settings.threads, time.perf_counter()
    plan = elrt.plan_ranks(dense, max_latency=budget, threads=threads, quantization=quantization)
    planning = time.perf_counter() - start
    low = elrt.factorize(dense, plan)
    macs_fraction = elrt.count_costs(low).macs / elrt.count_costs(dense).macs
    uniform = elrt.factorize(dense, elrt.plan_ranks(dense, max_macs=macs_fraction))
    contents = [dense_content, converted(low), converted(uniform)]
    times = np.array([litert.LocalTimer().measure(contents, threads)[0] for _ in range(settings.rounds)])
    dense_times, low_times, uniform_times = times.T
    row = {
        "dense_ms": np.round(1e3 * dense_times, 4).tolist(),
        "low_rank_ms": np.round(1e3 * low_times, 4).tolist(),
        "predicted_speedup": plan.latency["dense"] / plan.latency["planned"],
        "measured_speedup": np.round(dense_times / low_times, 4).tolist(),
        "uniform_speedup": np.round(dense_times / uniform_times, 4).tolist(),
        "macs_reduction": 1 / macs_fraction,
        "low_rank_layers": len(plan.factorized()),
        "planning_seconds": round(planning, 1),
    }
    print(settings.model, budget, row, flush=True)
    return row


def _images(model, count):
    return np.random.default_rng(0).integers(0, 256, (count, *model.input_shape[1:])).astype("float32")
