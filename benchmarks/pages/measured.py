"""Everything that pages take from outside of this folder: results, and names of what was measured."""

import json
import pathlib

from benchmarks.measure.evidence import read
from benchmarks.measure.first_hour import STEPS
from benchmarks.measure.variants import BUDGETS, in_order, ratios, tuning_of
from benchmarks.train.driver import expanded

__all__ = ["BUDGETS", "STEPS", "missing", "of_networks", "one", "ratios", "read", "tuning_of"]

_GRIDS = pathlib.Path(__file__).parents[1] / "grids"


def one(experiment, name):
    """The result of that name, in a list; an empty list where it was not measured yet."""
    results = read(experiment)
    return [results[name]] if name in results else []


def of_networks(experiment, start=""):
    """Results of an experiment in the order of the networks, of files named `start` and the network."""
    found = read(experiment).items()
    return in_order({name.removeprefix(start): result for name, result in found if name.startswith(start)})


def missing(grid):
    """Names of the runs of a grid that have no results."""
    runs = expanded(json.loads((_GRIDS / f"{grid}.json").read_text(encoding="utf-8")))
    found = read(grid)
    return [name for name in runs if name not in found]
