"""ResNet-20 on CIFAR-10, dense and low-rank, in every kind of LiteRT file: accuracy, size, latency. Resumes.

  python -m benchmarks.quantization --cifar10_dir=DIR --runs_dir=runs/quantization

Trains both models with one recipe, exports float32, float16 and int8 files after training, the dense architecture of
the low-rank model, and int8 files after quantisation-aware fine-tuning; then times all files in turn. The result is
`benchmarks/results/quantization/cifar10.json`.
"""

import json
import os
import pathlib
import subprocess
import sys

from absl import app, flags

from benchmarks.measure import machine

_CIFAR10_DIR = flags.DEFINE_string("cifar10_dir", None, "TFDS directory with cifar10; TFDS' own default if not given.")
_RUNS_DIR = flags.DEFINE_string("runs_dir", "runs/quantization", "Where the two runs go.")
_DATASET = flags.DEFINE_string("dataset", "cifar10", "Another data set, to try this script.")
_EPOCHS = flags.DEFINE_integer("epochs", 12, "Epochs of each run.")
_TUNING = flags.DEFINE_integer("tuning_epochs", 2, "Epochs of quantisation-aware fine-tuning.")
_RUNS = flags.DEFINE_integer("runs", 100, "Timed inferences of each file.")
_KINDS = "float32,float16,dynamic_int8,int8"
_MODELS = {"dense": ["--format=dense"], "low_rank": ["--max_macs=0.4"]}
_RESULTS = pathlib.Path(__file__).parents[1] / "results" / "quantization"


def call(name, *arguments):
    """Runs one of the package's commands; what it printed is shown as it comes."""
    subprocess.run([sys.executable, "-m", f"elrt_keras.launch.{name}", *arguments], check=True)


def main(argv):
    """Trains, exports, fine-tunes, times."""
    del argv
    recipe = [f"--dataset={_DATASET.value}", f"--epochs={_EPOCHS.value}", "--lr_schedule=one_cycle"]
    data_dir = [f"--data_dir={_CIFAR10_DIR.value}"] if _CIFAR10_DIR.value else []
    paths = []
    for title, options in _MODELS.items():
        run_dir = os.path.join(_RUNS_DIR.value, title)
        call("train", f"--run_dir={run_dir}", *recipe, *options, *data_dir)
        # What a fine-tuning cannot keep is to be seen here, not refused.
        call("export", run_dir, f"--quantization={_KINDS}", "--max_accuracy_drop=1")
        tuning = [f"--quantization_aware_epochs={_TUNING.value}"]
        call("train", f"--run_dir={run_dir}", "--quantization_aware", *tuning)
        paths += [os.path.join(run_dir, "export", f"{title}_{kind}.tflite") for kind in _KINDS.split(",")]
        paths.append(os.path.join(run_dir, "quantization_aware", "model.tflite"))
    call("export", run_dir, "--merge")
    paths.append(os.path.join(run_dir, "export", "merged_float32.tflite"))
    output = os.path.join(_RUNS_DIR.value, "latency.json")
    call("benchmark", "litert", *paths, f"--runs={_RUNS.value}", f"--output={output}")
    rows = json.loads(pathlib.Path(output).read_text(encoding="utf-8"))
    for row in rows:
        # Where the files lay is of no interest elsewhere.
        row["path"] = os.path.relpath(row["path"], _RUNS_DIR.value)
    commands = [f"elrt-train {' '.join([*recipe, *options])}" for options in _MODELS.values()]
    result = {"rows": rows, "commands": commands, "tuning_epochs": _TUNING.value, "machine": machine.describe()}
    _RESULTS.mkdir(parents=True, exist_ok=True)
    (_RESULTS / f"{_DATASET.value}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
