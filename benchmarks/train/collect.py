"""Copies summary, history, flags and machine of finished runs to JSON files under `benchmarks/results/`.

python -m benchmarks.train.collect --experiment=cifar10_short --data="CIFAR-10" runs/dense runs/elrt_dso
"""

import argparse
import csv
import dataclasses
import os

from benchmarks.measure import evidence

_LOCAL = ("data_dir", "download")  # the place of the data is left out: it exists on this machine only


def collect(run_dir, data):
    """Returns the evidence of one run as a dict, without its machine."""
    from elrt_keras.launch import rundir

    config, summary = rundir.read_config(run_dir), rundir.read_summary(run_dir)
    if summary is None:
        raise ValueError(f"Expected a finished run. Received: {run_dir!r}")
    with open(rundir.history_path(run_dir), newline="", encoding="utf-8") as file:
        history = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in _LOCAL}
    defaults = type(config)()
    changed = [f"--{n}={v}" for n, v in fields.items() if v not in (None, getattr(defaults, n))]
    return {
        "name": os.path.basename(os.path.normpath(run_dir)),
        "command": " ".join(["elrt-train", *changed]),
        "data": data,
        "config": fields,
        "summary": summary,
        "history": history,
    }


def main():
    """Collects the run directories that the command line names."""
    parser = argparse.ArgumentParser("python -m benchmarks.train.collect", description=__doc__)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR")
    parser.add_argument("--experiment", required=True, help="Folder under benchmarks/results.")
    parser.add_argument("--data", required=True, help="Name of the data in tables.")
    parser.add_argument("--results", default=evidence.RESULTS, help="Root folder of the results.")
    values = parser.parse_args()
    for run_dir in values.run_dirs:
        result = collect(run_dir, values.data)
        print(evidence.write(values.experiment, result["name"], result, result["command"], values.results, 1))


if __name__ == "__main__":
    main()
