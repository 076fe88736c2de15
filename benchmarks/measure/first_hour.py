"""A newcomer's first hour on a fresh clone."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks.measure.runner import Flag, measurement

_ROOT = pathlib.Path(__file__).parents[2]
_LINES = 12  # number of last lines of a step's output that are kept

# Name, title and commands of each step. They run in the clone; `bin` of the first step's environment is on the path.
_STEPS = json.loads(pathlib.Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
STEPS = tuple((step["name"], step["title"], "\n".join(step["commands"])) for step in _STEPS)
_NAMES = tuple(name for name, _, _ in STEPS)


@measurement(
    "first_hour",
    name="cpu",
    folder=Flag(None, "Folder for the clone. Default: a temporary folder, removed afterwards."),
    steps=Flag(_NAMES, "Steps to walk; an earlier walk in --folder provides the others.", choices=_NAMES),
)
def first_hour(settings):
    """Walks a newcomer's first hour on a fresh clone with the commands of the README, and times each step.

      python -m benchmarks.measure first_hour
      python -m benchmarks.measure first_hour --folder=/tmp/hour --steps=export,benchmark,classify

    The walk takes only the last commit from this checkout. The pictures are crops of the two photographs in
    scikit-learn, in one folder per class. A walk of some of the steps writes no result.
    """
    with tempfile.TemporaryDirectory(prefix="first_hour_") as temporary:
        folder = pathlib.Path(settings.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = _walk(folder, settings.steps)
    if settings.steps == _NAMES:
        yield settings.file, {"rows": rows, "command": settings.command(folder=None)}


def _walk(folder, names):
    """Runs steps in a clone inside `folder`; returns the time and the output of each."""
    clone = folder / "elrt_keras"
    if not clone.exists():
        subprocess.run(["git", "clone", "--quiet", _ROOT, clone], check=True)
        _write_photos(clone / "photos")
    hidden = ("KERAS_BACKEND", "PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"PATH": f"{clone / 'env' / 'bin'}:{environment['PATH']}", "COLUMNS": "110"}
    environment["ELRT_CACHE_DIR"] = str(folder / "cache")
    rows = []
    for name, title, commands in (step for step in STEPS if step[0] in names):
        print(f"== {title}\n{commands}", flush=True)
        start = time.perf_counter()
        done = subprocess.run(
            ["bash", "-ec", commands], cwd=clone, env=environment, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - start
        print(done.stdout, done.stderr, f"{seconds:.0f} s, exit {done.returncode}", sep="\n", flush=True)
        if done.returncode:
            sys.exit(f"step {name!r} failed")
        output = done.stdout.replace(str(clone), "…").splitlines()
        rows.append({"name": name, "seconds": round(seconds, 1), "output": output[-_LINES:]})
    return rows


def _write_photos(folder, count=200, size=128):
    """Writes crops of two photographs as JPEG files, in one folder per class."""
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
