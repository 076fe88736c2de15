"""Times training steps: dense, low-rank, thinned, without the penalty, and written out in stock layers.

  python -m benchmarks.steps
  python -m benchmarks.steps --models=resnet20 --rounds=20

One process per model, in which all variants take turns. Files in `benchmarks/results/steps/`.
"""

import json
import pathlib
import subprocess
import sys

from absl import app, flags

from benchmarks import machine
from benchmarks.variants import BATCHES, BUDGETS

_MODELS = flags.DEFINE_list("models", list(BATCHES), "Builders.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Steps of each variant.")
_NAME = flags.DEFINE_string("name", "cpu", "Start of the names of the result files.")
_ONE = flags.DEFINE_string("one", None, "The model of this process; the driver sets it.")
_RESULTS = pathlib.Path(__file__).parent / "results" / "steps"


def variants(name):
    """`{variant: model}`."""
    import elrt_keras as elrt
    from benchmarks.variants import low_rank, thinned

    dense = elrt.models.build(name)
    models = {"dense": dense, **{f"low_rank_{budget}": low_rank(dense, budget) for budget in BUDGETS}}
    models["without_penalty_0.4"] = low_rank(dense, 0.4, regularizer=None)
    models["stock_layers_0.4"] = elrt.expand(models["without_penalty_0.4"])
    models["thin_0.4"] = thinned(name, elrt.count_costs(models["low_rank_0.4"]).macs)
    return models


def measure(name):
    """Times all variants of one model and writes the file."""
    import elrt_keras as elrt
    from benchmarks.variants import interleaved, ratios, training_step

    models = variants(name)
    steps = {variant: training_step(model, BATCHES[name]) for variant, model in models.items()}
    seconds = interleaved(steps, _ROUNDS.value)
    costs = {variant: elrt.count_costs(model) for variant, model in models.items()}
    result = {
        "model": name,
        "batch_size": BATCHES[name],
        "seconds": seconds,
        "macs": {variant: cost.macs for variant, cost in costs.items()},
        "params": {variant: cost.params for variant, cost in costs.items()},
        "command": f"python -m benchmarks.steps --models={name} --rounds={_ROUNDS.value}",
        "machine": machine.describe(),
    }
    _RESULTS.mkdir(parents=True, exist_ok=True)
    (_RESULTS / f"{_NAME.value}_{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for variant, (middle, low, high) in ratios(seconds, "dense").items():
        reduction = costs["dense"].macs / costs[variant].macs
        print(f"{name} {variant}: {middle:.3f}x ({low:.3f}-{high:.3f}), MACs {reduction:.2f}x", flush=True)


def main(argv):
    """Measures the models asked for, each in a process of its own."""
    del argv
    if _ONE.value is not None:
        measure(_ONE.value)
        return
    for name in _MODELS.value:
        subprocess.run([sys.executable, "-m", "benchmarks.steps", *sys.argv[1:], f"--one={name}"], check=True)


if __name__ == "__main__":
    app.run(main)
