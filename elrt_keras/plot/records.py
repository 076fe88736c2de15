"""Readers of training histories and measured results, which may have several forms."""

import collections.abc
import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from elrt_keras.checks import number_in
from elrt_keras.terminal.tables import short_names

ACCURACIES = {"accuracy": 100.0, "test_accuracy": 100.0}  # entry → factor to get %
LATENCIES = {"median_ms": 1.0, "latency_ms": 1.0, "latency": 1e3}  # entry → factor to get ms
MACS = {"macs": 1e-6}  # entry → factor to get millions


def columns(history: Any) -> dict[str, Sequence[Any]]:
    """Returns a history of training as `{column: values}`. The values are not converted.

    Args:
        history: the result of `fit`, its `.history`, a list of rows by epoch, or the path of a `history.csv` or of a
            directory with one.

    Raises:
        ValueError: for any other value, or a file that cannot be read.

    Example:

    >>> elrt_keras.plot.records.columns([{"epoch": 0, "loss": 2.5}, {"epoch": 1, "loss": 2.0}])
    {'epoch': [0, 1], 'loss': [2.5, 2.0]}
    """
    if isinstance(history, (str, os.PathLike)):
        history = _read(history)
    if isinstance(getattr(history, "history", None), dict):  # keras.callbacks.History
        history = {"epoch": history.epoch, **history.history}
    if isinstance(history, collections.abc.Mapping):
        values = list(history.values())
        if all(isinstance(one, (list, tuple)) and len(one) == len(values[0]) for one in values):
            return dict(history)
    elif isinstance(history, (list, tuple)) and all(isinstance(row, collections.abc.Mapping) for row in history):
        return {name: [row.get(name) for row in history] for name in dict.fromkeys(k for row in history for k in row)}
    raise ValueError(f"Expected a history of training: {{column: values}} or its rows. Received: {str(history):.200}")


def _read(path):
    path = os.path.join(path, "history.csv") if os.path.isdir(path) else path
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"Expected a history as CSVLogger writes it. Received: {str(path)!r}: {error}") from error


def number(value: Any) -> float:
    """Converts a value of a history to a float. A missing value (`CSVLogger` writes `NA`) gives NaN.

    Raises:
        ValueError: for a value that is no number.
    """
    if value in (None, "", "NA"):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"Expected numbers in a history. Received: {value!r}") from None


def entry(result: Any, name: str) -> Any:
    """Returns the entry `name` of a mapping, or the attribute of an object; `None` if it is missing."""
    return result.get(name) if isinstance(result, collections.abc.Mapping) else getattr(result, name, None)


def points(results: Sequence[Any], costs: Mapping[str, float]) -> dict[int, tuple[float, float]]:
    """Returns `{index: (cost, accuracy)}` of the results that have both numbers, with the accuracy in %.

    Args:
        results: list of mappings or objects.
        costs: `LATENCIES` or `MACS`.

    Raises:
        ValueError: for an accuracy that is no number from 0 to 1, or a cost that is no number of at least 0.

    Example:

    >>> records = elrt_keras.plot.records
    >>> records.points([{"accuracy": 0.5, "macs": 2e6}, {"accuracy": 0.5}], records.MACS)
    {0: (2.0, 50.0)}
    """
    point_by_index = {}
    for index, result in enumerate(results):
        cost, accuracy = _scaled(result, costs, "[0, inf)"), _scaled(result, ACCURACIES, "[0, 1]")
        if cost is not None and accuracy is not None:
            point_by_index[index] = (cost, accuracy)
    return point_by_index


def _scaled(result, factors, interval):
    """Returns the first of the entries that the result has, times its factor."""
    for name, factor in factors.items():
        value = entry(result, name)
        if value is not None:
            return factor * number_in(value, interval, name)
    return None


def names(results: Sequence[Any]) -> list[str]:
    """Returns a name for each result: its `name`, its `path` (shortened), or its `model` and `format`.

    Example:

    >>> elrt_keras.plot.records.names([{"path": "a/export/int8.tflite"}, {"path": "b/export/int8.tflite"}])
    ['a/int8', 'b/int8']
    """
    paths = [entry(result, "path") for result in results]
    known = dict.fromkeys(path for path in paths if path is not None)
    short = dict(zip(known, short_names(list(known)) if known else ()))

    def name(number, result, path):
        model = " ".join(str(part) for part in (entry(result, "model"), entry(result, "format")) if part is not None)
        return str(entry(result, "name") or short.get(path) or model or f"result {number}")

    return [name(*one) for one in zip(range(1, len(results) + 1), results, paths)]


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Lists the points `(cost, accuracy)` of the Pareto front: no other point costs at most as much and is better.

    Example:

    >>> elrt_keras.plot.records.pareto_front([(3, 0.7), (1, 0.6), (2, 0.8)])
    [(1, 0.6), (2, 0.8)]
    """
    front = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front
