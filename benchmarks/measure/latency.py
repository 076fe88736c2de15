"""Compares the speed-up that `plan_ranks(max_latency=…)` predicts with the one that LiteRT shows.

  python -m benchmarks.latency
  python -m benchmarks.latency --models=vgg16 --budgets=0.5 --threads=2
  python -m benchmarks.latency --models=resnet20,vgg16_cifar,resnet18 --quantization=int8

For each model, with random weights at its own input size, and each budget: ranks are planned; the dense model, the
low-rank one and one with uniform ranks and as many MACs are converted and take turns on LiteRT. One process per model,
which starts with an empty table of times. Files in `benchmarks/results/latency/`.
"""

import json
import os
import pathlib
import tempfile
import time

import numpy as np
from absl import app, flags

from benchmarks.measure import machine
from benchmarks.measure.processes import run_each

_MODELS = flags.DEFINE_list("models", ["vgg16", "resnet18", "vgg16_cifar", "resnet20"], "Builders.")
_BUDGETS = flags.DEFINE_list("budgets", ["0.7", "0.5"], "Values of max_latency.")
_THREADS = flags.DEFINE_integer("threads", 1, "CPU threads.")
_QUANTIZATION = flags.DEFINE_enum("quantization", None, ["int8"], "What the files are; float32 if not given.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often the two models are compared.")
_ONE = flags.DEFINE_string("one", None, "The model of this process; the driver sets it.")
_RESULTS = pathlib.Path(__file__).parents[1] / "results" / "latency"


def measure(name):
    """Plans and times one model at every budget."""
    import elrt_keras as elrt
    from elrt_keras import litert
    from elrt_keras.ranks import latency

    dense = elrt.models.build(name)
    quantization = _QUANTIZATION.value
    images = np.random.default_rng(0).integers(0, 256, (4, *dense.input_shape[1:])).astype("float32")

    def converted(model):
        return litert.model_to_litert(model, quantization, None if quantization is None else images)

    dense_content = converted(dense)
    for budget in map(float, _BUDGETS.value):
        start = time.perf_counter()
        plan = elrt.plan_ranks(dense, max_latency=budget, threads=_THREADS.value, quantization=quantization)
        planning = time.perf_counter() - start
        low = elrt.factorize(dense, plan)
        macs_fraction = elrt.count_costs(low).macs / elrt.count_costs(dense).macs
        uniform = elrt.factorize(dense, elrt.plan_ranks(dense, max_macs=macs_fraction))
        contents = [dense_content, converted(low), converted(uniform)]
        times = np.array([latency.measure(contents, _THREADS.value)[0] for _ in range(_ROUNDS.value)])
        speedups = times[:, 0] / times[:, 1]
        row = {
            "model": name,
            "max_latency": budget,
            "threads": _THREADS.value,
            "quantization": quantization or "float32",
            "dense_ms": [round(1e3 * value, 4) for value in times[:, 0]],
            "low_rank_ms": [round(1e3 * value, 4) for value in times[:, 1]],
            "predicted_speedup": plan.latency["dense"] / plan.latency["planned"],
            "measured_speedup": [round(value, 4) for value in speedups],
            "uniform_speedup": [round(value, 4) for value in times[:, 0] / times[:, 2]],
            "macs_reduction": 1 / macs_fraction,
            "low_rank_layers": len(plan.factorized()),
            "planning_seconds": round(planning, 1),
            "command": f"python -m benchmarks.latency --models={name} --budgets={budget} --threads={_THREADS.value}"
            + (f" --quantization={quantization}" if quantization else ""),
            "machine": machine.describe(),
        }
        _RESULTS.mkdir(parents=True, exist_ok=True)
        kind = f"_{quantization}" if quantization else ""
        path = _RESULTS / f"{name}_{budget}_{_THREADS.value}{kind}.json"
        path.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
        print(name, budget, row["predicted_speedup"], row["measured_speedup"], row["macs_reduction"], flush=True)


def main(argv):
    """Measures the models asked for, each in a process of its own."""
    del argv
    if _ONE.value is not None:
        measure(_ONE.value)
        return
    for name in _MODELS.value:
        with tempfile.TemporaryDirectory() as folder:
            run_each("benchmarks.measure.latency", [name], {**os.environ, "ELRT_CACHE_DIR": folder})


if __name__ == "__main__":
    app.run(main)
