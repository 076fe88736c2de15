"""Peak memory of training: dense, low-rank, low-rank with recomputation.

  python -m benchmarks.training_memory
  python -m benchmarks.training_memory --models=resnet20

One process per model and variant, which trains a few steps; the peak is the resident memory's high-water mark,
less what the process held before the model was built. Files in `benchmarks/results/training_memory/`.
"""

import json
import pathlib
import resource
import subprocess
import sys

from absl import app, flags

from benchmarks import machine
from benchmarks.variants import BATCHES, BUDGETS

_MODELS = flags.DEFINE_list("models", list(BATCHES), "Builders.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Processes of each variant.")
_ONE = flags.DEFINE_string("one", None, "The model of this process; the driver sets it.")
_VARIANT = flags.DEFINE_string("variant", None, "The variant of this process; the driver sets it.")
_RESULTS = pathlib.Path(__file__).parent / "results" / "training_memory"
_STEPS = 5


def peak_bytes():
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name, variant):
    """Prints the bytes that training a variant takes."""
    import keras

    import elrt_keras as elrt
    from benchmarks.variants import low_rank, training_step

    kind, _, budget = variant.rpartition("_")
    # What TensorFlow holds once it has run something is not the model's.
    training_step(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")]), 2)
    before = peak_bytes()
    model = elrt.models.build(name)
    if variant != "dense":
        model = low_rank(model, float(budget), recompute=kind == "recomputed")
    step = training_step(model, BATCHES[name])
    for _ in range(_STEPS):
        step()
    print(json.dumps({"bytes": peak_bytes() - before, "machine": machine.describe()}))


def main(argv):
    """Measures the models asked for."""
    del argv
    if _ONE.value is not None:
        measure(_ONE.value, _VARIANT.value)
        return
    _RESULTS.mkdir(parents=True, exist_ok=True)
    variants = ["dense", *(f"{kind}_{budget}" for budget in BUDGETS for kind in ("low_rank", "recomputed"))]
    for name in _MODELS.value:
        taken = {variant: [] for variant in variants}
        for _ in range(_ROUNDS.value):
            for variant in variants:
                command = [sys.executable, "-m", "benchmarks.training_memory", f"--one={name}", f"--variant={variant}"]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                row = json.loads(output.splitlines()[-1])
                taken[variant].append(row["bytes"])
                print(name, variant, f"{row['bytes'] / 2**20:.0f} MiB", flush=True)
        result = {
            "model": name,
            "batch_size": BATCHES[name],
            "bytes": taken,
            "command": f"python -m benchmarks.training_memory --models={name} --rounds={_ROUNDS.value}",
            "machine": row["machine"],
        }
        (_RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
