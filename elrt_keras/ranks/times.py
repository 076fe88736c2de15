"""Measured seconds of layers and of whole models: a cache per device, and files for other machines."""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elrt_keras.atomic import Path, check_file, write_bytes
from elrt_keras.checks import one_of
from elrt_keras.formats.chain import Stage
from elrt_keras.graph.view import View
from elrt_keras.kept_times import KeptTimes
from elrt_keras.litert.convert import QUANTIZATIONS, Quantization
from elrt_keras.litert.readings import read_text
from elrt_keras.litert.timers import LocalTimer, Timer

_HEAD = {"kind": "elrt_keras.Times", "version": 1}
_SET = {"kind": "elrt_keras.TimingSet", "version": 1}
MANIFEST, RESULTS = "manifest.json", "times.txt"


class TimeTable:
    """Measured seconds by key, in one JSON file per device, runtime, threads and quantisation.

    Args:
        threads: int, CPU threads.
        quantization: one of `litert.QUANTIZATIONS`: the type of the timed files.
        folder: folder of the file; `None` for `$ELRT_CACHE_DIR`, or else `~/.cache/elrt_keras`.
        timer: the `Timer` that measures; `None` for the interpreter of this process.
    """

    def __init__(
        self,
        threads: int,
        quantization: Quantization | None = None,
        folder: str | None = None,
        timer: Timer | None = None,
    ):
        self._timer: Timer | None = timer or LocalTimer()
        self._start(threads, quantization, self._timer.device(threads))
        name = self.device if quantization is None else f"{self.device}, {quantization}"
        self._kept: KeptTimes | None = KeptTimes("latency", name, folder)
        self.path: str = self._kept.path
        self._seconds: dict[str, float] = self._kept.seconds

    def _start(self, threads, quantization, device):
        self.threads: int
        self.quantization: Quantization | None
        self.device: str
        self.threads, self.quantization, self.device = threads, quantization, device
        self._ranges, self._medians = 0.0, 0.0

    def of_kind(self, quantization: Quantization | None) -> "TimeTable":
        """Returns the device's table for files of another quantisation; an empty one where there is none."""
        if self._timer is None:
            return KnownTimes({}, self.threads, quantization, self.device, self.path)
        return TimeTable(self.threads, quantization, os.path.dirname(self.path), self._timer)

    @property
    def can_measure(self) -> bool:
        """Reports if missing times can be measured."""
        return self._timer is not None

    @property
    def scatter(self) -> float:
        """Interquartile range, as a part of the median, of all measurements since the table was opened."""
        return self._ranges / self._medians if self._medians else 0.0

    def check(self) -> None:
        """Raises an `ImportError` or `ValueError` if times cannot be measured. It is called before any other work."""
        if self._timer is not None:
            self._timer.check()

    def measure(self, contents: Sequence[bytes]) -> np.ndarray:
        """Returns the three quartiles of seconds of LiteRT models, `(3, models)`, and adds to the scatter."""
        if self._timer is None:
            raise ValueError(f"Expected all times in {self.path!r}. Received: a model without one")
        quartiles = self._timer.measure(contents, self.threads)
        low, middle, high = quartiles.sum(axis=1)
        self._ranges, self._medians = self._ranges + float(high - low), self._medians + float(middle)
        return quartiles

    def get(self, key: str) -> float | None:
        """Returns the seconds of a key, or `None`."""
        return self._seconds.get(key)

    def add(self, measured: Mapping[str, float]) -> None:
        """Adds a dict of seconds to a table that can measure, and writes its file."""
        if self._kept is None:
            raise ValueError(f"Expected a table that can measure. Received: {self.path!r}")
        self._kept.add(measured)
        self._seconds = self._kept.seconds

    def save(self, path: Path) -> None:
        """Writes the table to a file for other machines; see `load`.

        Raises:
            ValueError: for a path that cannot be written.
        """
        check_file(path, "save_times")
        about = {"device": self.device, "threads": self.threads, "quantization": self.quantization}
        document = {**_HEAD, **about, "seconds": dict(sorted(self._seconds.items()))}
        write_bytes(path, (json.dumps(document, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> "TimeTable":
        """Reads a table that `save` wrote, or a timing set with its times (see `export_timing_set`).

            {"kind": "elrt_keras.Times", "version": 1, "device": TEXT, "threads": INT,
             "quantization": null or TEXT, "seconds": {KEY: SECONDS, …}}

        Raises:
            ValueError: if the file is missing or is no such table; the message names the file.
        """
        if os.path.isdir(path):
            return _of_set(pathlib.Path(path))
        document = _document(path, _HEAD)
        fields = _checked_head(document, path)
        seconds = document.get("seconds")
        if not isinstance(seconds, dict) or not all(map(_is_time, seconds.values())):
            raise ValueError(f"Expected positive seconds by key in {os.fspath(path)!r}. Received: {str(seconds)[:80]}")
        return KnownTimes({key: float(value) for key, value in seconds.items()}, *fields, path)


class KnownTimes(TimeTable):
    """A table that cannot measure: it has only the given seconds.

    Args:
        seconds: seconds by key.
        threads, quantization, device: conditions of the measurements.
        path: file or folder that the seconds were read from.
    """

    def __init__(
        self, seconds: Mapping[str, float], threads: int, quantization: Quantization | None, device: str, path: Path
    ):
        self._timer, self._kept = None, None
        self._seconds, self.path = dict(seconds), os.fspath(path)
        self._start(threads, quantization, device)


def open_table(threads: int, quantization: Quantization | None, timer: Timer | None, times: Path | None) -> TimeTable:
    """Returns the table of a device, or a table from a file.

    Args:
        threads, quantization, timer: as for `TimeTable`.
        times: path of a saved table or of a timing set; `None` to measure.

    Raises:
        ValueError: for both a timer and a file, or a file with other threads or another quantisation.
    """
    if times is None:
        return TimeTable(threads, quantization, timer=timer)
    if timer is not None:
        raise ValueError(f"Expected either a timer or measured times. Received: timer={timer!r}, times={times!r}")
    table = TimeTable.load(times)
    if (table.threads, table.quantization) != (threads, quantization):
        raise ValueError(
            f"Expected times with {threads} threads and quantization={quantization!r}. Received: {os.fspath(times)!r} "
            f"with {table.threads} threads and quantization={table.quantization!r}"
        )
    return table


def chain_key(stages: Sequence[Stage], size: Sequence[int], padding: str) -> str:
    """Returns the key of a chain: text of everything that its time depends on."""
    fields = [dataclasses.astuple(stage) for stage in stages]
    # One group is left out of the key, because older tables do not contain groups.
    return json.dumps([list(size), padding, [one[:-1] if one[-1] == 1 else one for one in fields]])


def whole_key(view: View) -> str:
    """Returns the key of a whole model, from kinds, weights and shapes of its calls. Names do not count."""
    calls = [
        (type(layer).__name__, [tuple(weight.shape) for weight in layer.weights], tuple(before), tuple(after))
        for layer, before, after in view.calls
    ]
    return f"whole {hashlib.sha256(repr(calls).encode()).hexdigest()[:16]}"


def write_set(folder: Path, files: Mapping[str, bytes], quantization: Quantization | None, threads: int) -> list[str]:
    """Writes LiteRT models that are timed elsewhere, and a manifest of them. Returns the paths of the models.

    Args:
        folder: a new or empty folder.
        files: models by key.
        quantization: type of the files.
        threads: CPU threads to time them with.

    Raises:
        ValueError: for a folder that is not empty or cannot be written.
    """
    folder = pathlib.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ValueError(f"Expected a new or empty folder. Received: {str(folder)!r}")
        names = {f"t{number:04d}.tflite": key for number, key in enumerate(files)}
        for name, key in names.items():
            write_bytes(folder / name, files[key])
        about = {"quantization": quantization, "threads": threads, "results": RESULTS}
        write_bytes(folder / MANIFEST, (json.dumps({**_SET, **about, "files": names}, indent=1) + "\n").encode())
    except OSError as error:
        raise ValueError(f"Cannot write the files to be timed. Received: {str(folder)!r}: {error}") from error
    return [str(folder / name) for name in names]


def _of_set(folder):
    """Reads the table of a timing set: the times are in its results, their keys in its manifest."""
    manifest = _document(folder / MANIFEST, _SET)
    threads, quantization, device = _checked_head({"device": str(folder), **manifest}, folder / MANIFEST)
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise ValueError(f"Expected files by name in {str(folder / MANIFEST)!r}. Received: {str(files)[:80]}")
    try:
        text = (folder / RESULTS).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"Expected the times of the files in {str(folder / RESULTS)!r}, as benchmark_model prints them or as lines "
            f'{{"model": NAME, "seconds": [SECONDS]}}. Received: {error}'
        ) from error
    seconds: dict[str, list[float]] = {}
    for reading in read_text(text):
        if reading.model not in files:
            raise ValueError(f"Expected times of files of {MANIFEST}. Received: {reading.model!r} in {RESULTS}")
        seconds.setdefault(files[reading.model], []).append(reading.quartiles[0])
    medians = {key: float(np.median(values)) for key, values in seconds.items()}
    return KnownTimes(medians, threads, quantization, device, folder)


def _document(path, head):
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"Expected measured times in JSON. Received: {os.fspath(path)!r}: {error}") from error
    if not isinstance(document, dict) or any(document.get(name) != value for name, value in head.items()):
        raise ValueError(
            f"Expected kind {head['kind']!r} and version {head['version']} in {os.fspath(path)!r}. "
            f"Received: {str(document)[:80]}"
        )
    return document


def _checked_head(document: dict[str, Any], path: Path) -> tuple[int, Any, str]:
    threads, device = document.get("threads"), document.get("device")
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1 or not isinstance(device, str):
        raise ValueError(
            f"Expected threads of at least 1 and a device in {os.fspath(path)!r}. "
            f"Received: threads={threads!r}, device={device!r}"
        )
    quantization = one_of(document.get("quantization"), QUANTIZATIONS, f"quantization in {os.fspath(path)!r}")
    return threads, quantization, device


def _is_time(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
