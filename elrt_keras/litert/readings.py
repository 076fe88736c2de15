"""Readers of inference times: output text or result file of LiteRT's `benchmark_model`, and lines of JSON."""

import json
import math
import pathlib
import re
import statistics
import struct
from typing import Any, NamedTuple

import numpy as np

from elrt_keras.litert.protobuf import fields

# The quartiles of a normal distribution lie this many standard deviations from the mean.
_QUARTILE = statistics.NormalDist().inv_cdf(0.75)
_SERIES = re.compile(r"count=\d+.*\bavg=.*")
_NUMBER = re.compile(r"\b(min|max|avg|std|median|p5|p95)=([-+.\w]+)")
_SUMMARY = re.compile(r"Inference timings in us:.*Inference \(avg\): *([-+.\w]+)")
_GRAPH = re.compile(r"(?:Graph: \[(?P<listed>[^\]]+)\]|Loaded model (?P<loaded>\S+))")
# `benchmark_result.proto` of LiteRT: number of `latency_metrics`, and numbers of the fields in it, which are in ms.
_LATENCY = 2
_FIELDS = {1: "avg", 2: "min", 3: "max", 4: "std", 5: "median", 6: "p5", 7: "p95"}


class Reading(NamedTuple):
    """Inference times of one file.

    Attributes:
        model: name of the file without folders, or `None` if the program does not report it.
        quartiles: three floats, seconds of one inference.
    """

    model: str | None
    quartiles: tuple[float, float, float]


def read_text(text: str) -> list[Reading]:
    """Reads the times in the output of a program, in their order.

    It reads lines `{"model": NAME, "seconds": [SECONDS, …]}` and the output of LiteRT's `benchmark_model`. It ignores
    other lines.

    Raises:
        ValueError: for times that are not positive numbers.

    Example:

    >>> read_text('{"model": "a.tflite", "seconds": [0.25, 0.25]}')
    [Reading(model='a.tflite', quartiles=(0.25, 0.25, 0.25))]
    """
    readings, graph, series = [], None, {}
    for line in text.splitlines():
        named, summary = _GRAPH.search(line), _SUMMARY.search(line)
        if line.lstrip().startswith("{"):
            readings += _of_json(line)
        elif named:
            graph = named["listed"] or named["loaded"]
        elif _SERIES.search(line):
            series = {name: value for name, value in _NUMBER.findall(line)}  # first of the warm-up, then of the runs
        elif summary:
            microseconds = {**series, "avg": series.get("avg", summary[1])}
            readings.append(_reading(graph, {key: value for key, value in microseconds.items()}, 1e-6, line))
            graph, series = None, {}
    return readings


def read_result_file(path: pathlib.Path) -> Reading:
    """Reads the file that `benchmark_model --result_file_path` writes, a protocol buffer.

    Raises:
        ValueError: for any other file.
    """
    try:
        latencies: list[Any] = [value for number, value in fields(path.read_bytes()) if number == _LATENCY]
        values = {_FIELDS[number]: value for number, value in fields(latencies[0]) if number in _FIELDS}
    except (OSError, IndexError, struct.error) as error:
        raise ValueError(f"Expected a result file of benchmark_model. Received: {str(path)!r}: {error}") from error
    return _reading(None, values, 1e-3, str(path))


def _of_json(line):
    try:
        entry = json.loads(line)
    except ValueError:
        return []
    if not isinstance(entry, dict) or "seconds" not in entry:
        return []
    seconds, model = entry["seconds"], entry.get("model")
    listed = seconds if isinstance(seconds, list) else [seconds]
    numbers = [value for value in listed if isinstance(value, int | float) and not isinstance(value, bool)]
    if not numbers or len(numbers) < len(listed) or not all(0 < value < math.inf for value in numbers):
        raise ValueError(f"Expected positive numbers as seconds. Received: {line[:200]}")
    low, middle, high = (float(value) for value in np.quantile(numbers, (0.25, 0.5, 0.75)))
    return [Reading(None if model is None else _name(str(model)), (low, middle, high))]


def _reading(graph, values: dict[str, Any], unit, source):
    """Makes the reading of a summary: median or mean, and quartiles of a normal distribution with its deviation."""
    try:
        numbers = {name: float(value) * unit for name, value in values.items()}
    except ValueError as error:
        raise ValueError(f"Expected times as numbers. Received: {source[:200]}") from error
    middle = numbers.get("median", numbers.get("avg", math.nan))
    if not 0 < middle < math.inf:
        raise ValueError(f"Expected a positive time. Received: {source[:200]}")
    spread = _QUARTILE * numbers.get("std", 0.0)
    low = max(middle - spread, min(numbers.get("min", 0.0), middle))
    return Reading(None if graph is None else _name(graph), (low, middle, middle + spread))


def _name(path):
    return re.split(r"[/\\]", path)[-1]
