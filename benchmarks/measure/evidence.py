"""Results as JSON files under `benchmarks/results/`: what was measured, the command and the machine."""

import json
import os
import pathlib

from benchmarks.measure import machine

RESULTS = pathlib.Path(__file__).parents[1] / "results"


def write(experiment, name, result, command, **versions):
    """Writes `results/<experiment>/<name>.json`, whole or not at all.

    Args:
        experiment, name: folder and file.
        result: dict of what was measured.
        command: what measures it again.
        **versions: libraries that `machine.describe` does not know.
    """
    folder = RESULTS / experiment
    folder.mkdir(parents=True, exist_ok=True)
    content = {**result, "command": command, "machine": {**machine.describe(), **versions}}
    temporary = folder / f"{name}.tmp"
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, folder / f"{name}.json")


def read(experiment):
    """`{name: result}` of an experiment, empty where nothing was measured yet."""
    paths = sorted((RESULTS / experiment).glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
