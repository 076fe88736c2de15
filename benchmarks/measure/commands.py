"""Measurements with the package's own commands: input pipelines, and every kind of LiteRT file."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np

from benchmarks.measure.runner import Flag, measurement

_CIFAR10_DIR = Flag(None, "TFDS directory with cifar10. Default: TFDS' own.")
_AUGMENTATIONS = ("", ",cutout", ",jitter", ",mixup,cutmix", ",randaugment")  # after crop,flip
_PHOTOS, _HEIGHT, _WIDTH = 512, 375, 500
_SECONDS = Flag(5.0, "Shortest duration of each measurement.")


@measurement("throughput", rounds=5, seconds=_SECONDS, cifar10_dir=_CIFAR10_DIR)
def throughput(settings):
    """Measures input pipelines against training steps with `elrt-benchmark data`.

    The data are CIFAR-10 from a TFDS directory with several augmentations, and a folder of generated JPEG photographs
    for the streamed pipeline. Each gets a result file.
    """
    directory = [f"--data_dir={settings.cifar10_dir}"] if settings.cifar10_dir else []
    for augmentation in (f"crop,flip{more}" for more in _AUGMENTATIONS):
        result = _rates(settings, ["--dataset=cifar10", f"--augmentation={augmentation}"], directory)
        yield f"cifar10_{augmentation.replace(',', '_')}", {**result, "note": "CIFAR-10, in memory"}
    with tempfile.TemporaryDirectory() as folder:
        size = _write_photos(folder)
        note = f"generated JPEGs of {_WIDTH}×{_HEIGHT} pixels, {size / 1000:.0f} kB each, from a folder"
        for augmentation in ("crop,flip", "crop,flip,jitter"):
            flags = [f"--augmentation={augmentation}", "--model=resnet18", "--batch_size=32"]
            result = _rates(settings, [f"--dataset=folder:{folder}", *flags], [])
            yield f"photos_{augmentation.replace(',', '_')}", {**result, "note": note}


def _rates(settings, flags, directory):
    """Returns images per second of pipeline and step, measured by `elrt-benchmark data` in a separate process."""
    flags = [*flags, f"--seconds={settings.seconds}", f"--rounds={settings.rounds}"]
    result = _result_of("data", *flags, *directory)
    # Leave out the folder of the photographs: it exists on this machine only.
    command = re.sub(r"folder:\S+", "folder:PHOTOS", " ".join(["elrt-benchmark data", *flags]))
    return {**result, "dataset": result["dataset"].split(":")[0], "command": command}


def _result_of(*arguments):
    """Returns the result of an `elrt-benchmark` command."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "result.json"
        _call("benchmark", *arguments, f"--output={path}")
        return json.loads(path.read_text(encoding="utf-8"))


def _call(name, *arguments):
    """Runs one of the package's commands and shows its output."""
    subprocess.run([sys.executable, "-m", f"elrt_keras.launch.{name}", *arguments], check=True)


def _write_photos(folder):
    """Writes generated photographs of ImageNet's usual size: smooth colours and noise. Returns their mean bytes."""
    from PIL import Image

    random = np.random.default_rng(0)
    sizes = []
    for number in range(_PHOTOS):
        coarse = random.integers(0, 256, (12, 16, 3), dtype="uint8")
        smooth = np.asarray(Image.fromarray(coarse).resize((_WIDTH, _HEIGHT), Image.BICUBIC), dtype="float32")
        pixels = np.clip(smooth + random.normal(0, 12, smooth.shape), 0, 255).astype("uint8")
        path = pathlib.Path(folder) / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
        sizes.append(path.stat().st_size)
    return round(sum(sizes) / len(sizes))


_KINDS = "float32,float16,dynamic_int8,int8"
_MODELS = {"dense": ["--format=dense"], "low_rank": ["--max_macs=0.4"]}


@measurement(
    "quantization",
    cifar10_dir=_CIFAR10_DIR,
    runs_dir=Flag("runs/quantization", "Folder of the two training runs."),
    dataset=Flag("cifar10", "Data set; another one is for trials."),
    epochs=Flag(12, "Epochs of each run."),
    tuning_epochs=Flag(2, "Epochs of quantisation-aware fine-tuning."),
    runs=Flag(100, "Number of timed inferences of each file."),
)
def quantization(settings):
    """Measures ResNet-20, dense and low-rank, as every kind of LiteRT file: accuracy, size, latency. Resumes.

      python -m benchmarks.measure quantization --cifar10_dir=DIR

    Trains both models with one recipe. Exports float32, float16 and int8 files, the dense architecture of the low-rank
    model, and int8 files after quantisation-aware fine-tuning. Then times all files in turn.
    """
    recipe = [f"--dataset={settings.dataset}", f"--epochs={settings.epochs}", "--lr_schedule=one_cycle"]
    directory = [f"--data_dir={settings.cifar10_dir}"] if settings.cifar10_dir else []
    paths = []
    for title, options in _MODELS.items():
        run_dir = os.path.join(settings.runs_dir, title)
        _call("train", f"--run_dir={run_dir}", *recipe, *options, *directory)
        # The result shows a loss of accuracy by fine-tuning; the export must not refuse the file.
        _call("export", run_dir, f"--quantization={_KINDS}", "--max_accuracy_drop=1")
        tuning = f"--quantization_aware_epochs={settings.tuning_epochs}"
        _call("train", f"--run_dir={run_dir}", "--quantization_aware", tuning)
        paths += [os.path.join(run_dir, "export", f"{title}_{kind}.tflite") for kind in _KINDS.split(",")]
        paths.append(os.path.join(run_dir, "quantization_aware", "model.tflite"))
    _call("export", run_dir, "--merge")
    paths.append(os.path.join(run_dir, "export", "merged_float32.tflite"))
    rows = _result_of("litert", *paths, f"--runs={settings.runs}")
    for row in rows:
        # Leave out the folder of the files: it exists on this machine only.
        row["path"] = os.path.relpath(row["path"], settings.runs_dir)
    commands = [f"elrt-train {' '.join([*recipe, *options])}" for options in _MODELS.values()]
    told = {"commands": commands, "command": settings.command(cifar10_dir=None)}
    yield settings.dataset, {"rows": rows, "tuning_epochs": settings.tuning_epochs, **told}
