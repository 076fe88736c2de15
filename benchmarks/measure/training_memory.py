"""Peak memory of training: dense, low-rank, low-rank with recomputation.

  python -m benchmarks.training_memory
  python -m benchmarks.training_memory --models=resnet20

One process per model, variant and batch size, which trains a few steps; the peak is the resident memory's high-water
mark, less what the process held before the model was built. It is taken at the full batch and at a batch of two: the
difference is what grows with the batch, the rest are weights and the compiled graph. Files in
`benchmarks/results/training_memory/`.
"""

import resource
import subprocess
import sys

from absl import app, flags

from benchmarks.measure import evidence
from benchmarks.measure.variants import BATCHES, BUDGETS

_MODELS = flags.DEFINE_list("models", list(BATCHES), "Builders.")
_ROUNDS = flags.DEFINE_integer("rounds", 1, "Processes of each variant.")
_ONE = flags.DEFINE_list("one", None, "Model, variant and batch size of this process; the driver sets it.")
_SMALL_BATCH = 2
_STEPS = 5
VARIANTS = ("dense", *(f"{kind}_{budget}" for budget in BUDGETS for kind in ("low_rank", "recomputed")))


def peak_bytes():
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name, variant, batch_size):
    """Prints the bytes that training a variant takes."""
    import keras

    from benchmarks.measure.variants import built, make, training_step

    # What TensorFlow holds once it has run something is not the model's.
    training_step(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")]), 2)
    before = peak_bytes()
    model = make(name, variant)
    built.cache_clear()  # what was made low-rank need not stay
    step = training_step(model, int(batch_size))
    for _ in range(_STEPS):
        step()
    print(peak_bytes() - before)


def measured(*arguments):
    """What `measure` prints in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.measure.training_memory", f"--one={','.join(map(str, arguments))}"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(output.splitlines()[-1])


def main(argv):
    """Measures the models asked for."""
    del argv
    if _ONE.value is not None:
        measure(*_ONE.value)
        return
    for name in _MODELS.value:
        sizes = (_SMALL_BATCH, BATCHES[name])
        taken = {size: {variant: [] for variant in VARIANTS} for size in sizes}
        for _ in range(_ROUNDS.value):
            for size in sizes:
                for variant in VARIANTS:
                    taken[size][variant].append(measured(name, variant, size))
                    print(name, variant, size, f"{taken[size][variant][-1] / 2**20:.0f} MiB", flush=True)
        result = {"model": name, "batch_sizes": sizes, "bytes": [taken[size] for size in sizes]}
        command = f"python -m benchmarks.training_memory --models={name} --rounds={_ROUNDS.value}"
        evidence.write("training_memory", name, result, command)


if __name__ == "__main__":
    app.run(main)
