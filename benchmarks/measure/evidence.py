"""Results as JSON files under `benchmarks/results/`, each with its command and machine."""

import json
import pathlib

from benchmarks.measure import machine

RESULTS = pathlib.Path(__file__).parents[1] / "results"


def write(experiment, name, result, command, results=RESULTS, indent=2):
    """Writes `<results>/<experiment>/<name>.json` atomically and returns its path.

    Args:
        experiment, name: folder and file.
        result: dict of the measured values.
        command: command that repeats the measurement.
        results: the root folder.
        indent: indentation of the JSON.
    """
    path = pathlib.Path(results) / experiment / f"{name}.json"
    write_json(path, {**result, "command": command, "machine": machine.describe()}, indent)
    return path


def write_json(path, content, indent):
    """Writes a JSON file atomically."""
    from elrt_keras.atomic import write_bytes  # imported late: it loads Keras, which pages do not need

    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(content, indent=indent) + "\n").encode())


def read(experiment, results=RESULTS):
    """Reads `{name: result}` of an experiment; empty if nothing was measured yet."""
    paths = sorted((pathlib.Path(results) / experiment).glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
