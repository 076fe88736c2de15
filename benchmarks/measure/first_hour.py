"""Walks a newcomer's first hour on a fresh clone with the commands of the README, and times each step.

  python -m benchmarks.first_hour
  python -m benchmarks.first_hour --folder=/tmp/hour --steps=export,benchmark,classify

Nothing is taken from this checkout but its last commit. The pictures are crops of the two photographs that come with
scikit-learn, in folders of their classes. File `benchmarks/results/first_hour/cpu.json`, the page `docs/first-hour.md`.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from benchmarks.measure import evidence

_ROOT = pathlib.Path(__file__).parents[2]
FLAGS = flags.FLAGS
_LINES = 12  # of a step's output that are kept, the last ones

_PHOTOS = "--dataset=folder:photos --model=resnet18 --image_size=96 --batch_size=32 --learning_rate=0.02 --epochs=10"

# Name, what it is, commands. They run in the clone, with `bin` of the environment of the first step on the path.
STEPS = (
    (
        "install",
        "Install, with what runs LiteRT files",
        "python3 -m venv env\nenv/bin/python -m pip install --quiet '.[litert]'",
    ),
    ("demo", "The demonstration, which first sets up the environment for developers", "make demo"),
    (
        "train",
        "Train on a folder of images, low-rank",
        f"elrt-train {_PHOTOS} --run_dir=runs/own",
    ),
    (
        "dense",
        "The dense network, to compare with",
        f"elrt-train {_PHOTOS} --format=dense --run_dir=runs/own_dense",
    ),
    (
        "plan",
        "Plan ranks for 60 % of the latency",
        "elrt-plan --model=resnet18 --image_size=96 --classes=2 --max_latency=0.6 --output=fast.json",
    ),
    (
        "fast",
        "Train at these ranks",
        f"elrt-train {_PHOTOS} --rank_plan=fast.json --run_dir=runs/fast",
    ),
    (
        "export",
        "Export, float32 and int8",
        "elrt-export runs/fast --quantization=float32,int8\nelrt-export runs/own_dense",
    ),
    ("benchmark", "Benchmark on LiteRT", "elrt-benchmark litert runs/own_dense runs/fast"),
    (
        "classify",
        "Classify an image",
        "python examples/classify.py --model=runs/fast/export/low_rank_int8.tflite photos/china/000.jpg",
    ),
)


def write_photos(folder, count=200, size=128):
    """Crops of two photographs, as JPEG files in folders of their classes."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    for name, photograph in zip(("china", "flower"), load_sample_images().images):
        (folder / name).mkdir(parents=True)
        height, width = photograph.shape[:2]
        for number in range(count):
            row, column = rng.integers(0, height - size), rng.integers(0, width - size)
            crop = Image.fromarray(photograph[row : row + size, column : column + size])
            crop.save(folder / name / f"{number:03}.jpg", quality=90)


def walk(folder):
    """Runs the steps in a clone inside `folder`; what each took and said."""
    clone = folder / "elrt_keras"
    if not clone.exists():
        subprocess.run(["git", "clone", "--quiet", _ROOT, clone], check=True)
        write_photos(clone / "photos")
    hidden = ("KERAS_BACKEND", "PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"PATH": f"{clone / 'env' / 'bin'}:{environment['PATH']}", "COLUMNS": "110"}
    environment["ELRT_CACHE_DIR"] = str(folder / "cache")
    rows = []
    for name, title, commands in STEPS:
        if FLAGS.steps and name not in FLAGS.steps:
            continue
        print(f"== {title}\n{commands}", flush=True)
        start = time.perf_counter()
        done = subprocess.run(
            ["bash", "-ec", commands],
            cwd=clone,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - start
        print(done.stdout, done.stderr, f"{seconds:.0f} s, exit {done.returncode}", sep="\n", flush=True)
        if done.returncode:
            sys.exit(f"step {name!r} failed")
        output = done.stdout.replace(str(clone), "…").splitlines()
        rows.append({"name": name, "seconds": round(seconds, 1), "output": output[-_LINES:]})
    return rows


def main(argv):
    """Walks and writes the file."""
    del argv
    unknown = set(FLAGS.steps or ()) - {name for name, _, _ in STEPS}
    if unknown:
        sys.exit(f"Expected some of {[name for name, _, _ in STEPS]}. Received: --steps={','.join(sorted(unknown))}")
    folder = pathlib.Path(FLAGS.folder or tempfile.mkdtemp(prefix="first_hour_"))
    folder.mkdir(parents=True, exist_ok=True)
    rows = walk(folder)
    if FLAGS.steps is None:
        evidence.write("first_hour", "cpu", {"rows": rows}, "python -m benchmarks.first_hour")
    if FLAGS.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    flags.DEFINE_string("folder", None, "Where to walk; a temporary folder, removed afterwards, if not given.")
    flags.DEFINE_list("steps", None, "Only these; the others are as an earlier walk in --folder left them.")
    app.run(main)
