"""Imports of the pages from other folders: results, and names of measured models and variants."""

import json
import pathlib

from benchmarks.measure.evidence import read
from benchmarks.measure.first_hour import STEPS
from benchmarks.measure.variants import BUDGETS, in_order, ratios, tuning_of
from benchmarks.train.driver import expanded

__all__ = ["BUDGETS", "STEPS", "missing", "of_networks", "one", "ratios", "read", "tuning_of"]

_GRIDS = pathlib.Path(__file__).parents[1] / "grids"


def one(experiment, name):
    """Reads the named result, in a list; the list is empty if the result does not exist yet."""
    results = read(experiment)
    return [results[name]] if name in results else []


def of_networks(experiment, start=""):
    """Reads the results of an experiment from the files named `start` + network, in the order of the networks."""
    found = read(experiment).items()
    return in_order({name.removeprefix(start): result for name, result in found if name.startswith(start)})


def missing(grid):
    """Lists the runs of a grid that have no results."""
    runs = expanded(json.loads((_GRIDS / f"{grid}.json").read_text(encoding="utf-8")))
    found = read(grid)
    return [name for name in runs if name not in found]
