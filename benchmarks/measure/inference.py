"""Times inference on LiteRT: dense, low-rank and thinned models in float32 and int8, with one and two threads.

  python -m benchmarks.inference
  python -m benchmarks.inference --models=resnet20 --runs=200
  python -m benchmarks.inference --models=resnet20 --name=amx   # a processor with AMX, beside the results of another

One image at a time; all files of a model take turns. Weights are random: they do not change the time. One process per
model. Files in `benchmarks/results/inference/`.
"""

import numpy as np
from absl import app, flags

from benchmarks.measure import evidence
from benchmarks.measure.processes import run_each
from benchmarks.measure.variants import BATCHES, BUDGETS

_MODELS = flags.DEFINE_list("models", list(BATCHES), "Builders.")
_RUNS = flags.DEFINE_integer("runs", 50, "Inferences of each file.")
_NAME = flags.DEFINE_string("name", None, "First word of the files' names, where this processor's stand beside others.")
_ONE = flags.DEFINE_string("one", None, "The model of this process; the driver sets it.")

VARIANTS = ("dense", *(f"low_rank_{budget}" for budget in BUDGETS), "thin_0.4")
QUANTIZATIONS = {"float32": None, "int8": "int8"}
THREADS = (1, 2)


def measure(name):
    """Converts and times every variant of one model."""
    import elrt_keras as elrt
    from benchmarks.measure.variants import make, ratios
    from elrt_keras import litert

    models = {variant: make(name, variant) for variant in VARIANTS}
    images = np.random.default_rng(0).integers(0, 256, (8, *models["dense"].input_shape[1:])).astype("float32")
    rows = []
    for kind, quantization in QUANTIZATIONS.items():
        calibration = images if quantization == "int8" else None
        contents = [litert.model_to_litert(model, quantization, calibration) for model in models.values()]
        for threads in THREADS:
            runners = [litert.Runner(content, threads) for content in contents]
            seconds = litert.time_interleaved(runners, _RUNS.value)
            row = {"quantization": kind, "threads": threads}
            row["seconds"] = {v: np.round(times, 7).tolist() for v, times in zip(VARIANTS, seconds)}
            rows.append(row)
            told = {v: f"{middle:.2f}x" for v, (middle, _, _) in ratios(row["seconds"], "dense").items()}
            print(name, kind, f"{threads} threads", told, flush=True)
    result = {
        "model": name,
        "macs": {variant: elrt.count_costs(model).macs for variant, model in models.items()},
        "rows": rows,
    }
    command = f"python -m benchmarks.inference --models={name} --runs={_RUNS.value}"
    if _NAME.value is None:
        evidence.write("inference", name, result, command)
    else:
        evidence.write("inference", f"{_NAME.value}_{name}", result, f"{command} --name={_NAME.value}")


def main(argv):
    """Measures the models asked for, each in a process of its own."""
    del argv
    if _ONE.value is not None:
        measure(_ONE.value)
        return
    run_each("benchmarks.measure.inference", _MODELS.value)


if __name__ == "__main__":
    app.run(main)
