"""Keeps the evidence of finished runs: summary, history, flags and machine, as JSON under `benchmarks/results/`.

python -m benchmarks.collect --experiment=cifar10_short --data="CIFAR-10" runs/dense runs/elrt_dso
"""

import csv
import dataclasses
import json
import os
import pathlib

from absl import app, flags

from benchmarks.measure import machine

_EXPERIMENT = flags.DEFINE_string("experiment", None, "Folder under benchmarks/results.", required=True)
_DATA = flags.DEFINE_string("data", None, "What the data is, as it should stand in tables.", required=True)
_RESULTS = pathlib.Path(__file__).parents[1] / "results"
# Where the data lay is of no interest elsewhere.
_LOCAL = ("data_dir", "download")


def collect(run_dir, data):
    """The evidence of one run as a dict."""
    from elrt_keras.launch import rundir

    config, summary = rundir.read_config(run_dir), rundir.read_summary(run_dir)
    if summary is None:
        raise ValueError(f"Expected a finished run. Received: {run_dir!r}")
    with open(rundir.history_path(run_dir), newline="", encoding="utf-8") as file:
        history = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    defaults = type(config)()
    changed = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if value != getattr(defaults, name) and name not in _LOCAL and value is not None
    }
    command = " ".join(["elrt-train", *(f"--{name}={value}" for name, value in changed.items())])
    return {
        "name": os.path.basename(os.path.normpath(run_dir)),
        "command": command,
        "data": data,
        "config": {k: v for k, v in dataclasses.asdict(config).items() if k not in _LOCAL},
        "summary": summary,
        "history": history,
        "machine": machine.describe(),
    }


def main(argv):
    """Collects the run directories named on the command line."""
    folder = _RESULTS / _EXPERIMENT.value
    folder.mkdir(parents=True, exist_ok=True)
    for run_dir in argv[1:]:
        evidence = collect(run_dir, _DATA.value)
        path = folder / f"{evidence['name']}.json"
        path.write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    app.run(main)
