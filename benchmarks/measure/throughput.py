"""Measures input pipelines against training steps with `elrt-benchmark data` and keeps the results.

python -m benchmarks.throughput --cifar10_dir=DIR

CIFAR-10 from a TFDS directory under several augmentations, and a folder of generated JPEG photographs for the streamed
pipeline. Files in `benchmarks/results/throughput/`.
"""

import io
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from absl import app, flags

from benchmarks.measure import machine

_CIFAR10_DIR = flags.DEFINE_string("cifar10_dir", None, "TFDS directory with cifar10; TFDS' own default if not given.")
_SECONDS = flags.DEFINE_float("seconds", 5.0, "How long each measurement lasts at least.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each measurement is made.")
_RESULTS = pathlib.Path(__file__).parents[1] / "results" / "throughput"
_AUGMENTATIONS = (
    "crop,flip",
    "crop,flip,cutout",
    "crop,flip,jitter",
    "crop,flip,mixup,cutmix",
    "crop,flip,randaugment",
)
_PHOTOS, _HEIGHT, _WIDTH = 512, 375, 500


def write_photos(folder):
    """Generated photographs of ImageNet's usual size: smooth colours and some noise. Returns their mean bytes."""
    from PIL import Image

    random = np.random.default_rng(0)
    sizes = []
    for number in range(_PHOTOS):
        coarse = random.integers(0, 256, (12, 16, 3), dtype="uint8")
        smooth = np.asarray(Image.fromarray(coarse).resize((_WIDTH, _HEIGHT), Image.BICUBIC), dtype="float32")
        pixels = np.clip(smooth + random.normal(0, 12, smooth.shape), 0, 255).astype("uint8")
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        path = pathlib.Path(folder) / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(buffer.getvalue())
        sizes.append(len(buffer.getvalue()))
    return round(sum(sizes) / len(sizes))


def measure(name, note, *arguments):
    """Runs the command in a process of its own and keeps what it measured."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "result.json"
        shown = ["elrt-benchmark", "data", *arguments, f"--seconds={_SECONDS.value}", f"--rounds={_ROUNDS.value}"]
        command = [sys.executable, "-m", "elrt_keras.launch.benchmark", *shown[1:], f"--output={path}"]
        extra = [f"--data_dir={_CIFAR10_DIR.value}"] if _CIFAR10_DIR.value and "--dataset=cifar10" in arguments else []
        subprocess.run([*command, *extra], check=True)
        result = json.loads(path.read_text(encoding="utf-8"))
    # Where the photographs lay is of no interest elsewhere.
    shown = [part.split(":")[0] + ":PHOTOS" if part.startswith("--dataset=folder:") else part for part in shown]
    result["dataset"] = result["dataset"].split(":")[0]
    result.update(note=note, command=" ".join(shown), machine=machine.describe())
    _RESULTS.mkdir(parents=True, exist_ok=True)
    (_RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def main(argv):
    """Measures everything."""
    del argv
    for augmentation in _AUGMENTATIONS:
        name = f"cifar10_{augmentation.replace(',', '_')}"
        measure(name, "CIFAR-10, in memory", "--dataset=cifar10", f"--augmentation={augmentation}")
    with tempfile.TemporaryDirectory() as folder:
        size = write_photos(folder)
        note = f"generated JPEGs of {_WIDTH}×{_HEIGHT} pixels, {size / 1000:.0f} kB each, from a folder"
        for augmentation in ("crop,flip", "crop,flip,jitter"):
            name = f"photos_{augmentation.replace(',', '_')}"
            measure(
                name,
                note,
                *(f"--dataset=folder:{folder}", f"--augmentation={augmentation}"),
                *("--model=resnet18", "--batch_size=32"),
            )


if __name__ == "__main__":
    app.run(main)
