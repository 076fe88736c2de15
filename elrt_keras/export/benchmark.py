"""Latency and memory of LiteRT files on this machine."""

import dataclasses
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable

import numpy as np

from elrt_keras import litert
from elrt_keras.atomic import Path

_MEMORY_PROGRAM = pathlib.Path(litert.__file__).parent / "memory.py"


@dataclasses.dataclass(frozen=True)
class LatencyResult:
    """Measurements of one LiteRT file.

    Attributes:
        path: the file.
        size_bytes: its size.
        threads: CPU threads.
        runs: number of inferences that count.
        median_ms: median time of one inference, in milliseconds.
        low_ms, high_ms: 10th and 90th percentile.
        peak_memory_bytes: peak memory that loading and running the file adds to a new process; `None` if not known.
    """

    path: str
    size_bytes: int
    threads: int
    runs: int
    median_ms: float
    low_ms: float
    high_ms: float
    peak_memory_bytes: int | None


def benchmark_litert(
    paths: Path | Iterable[Path], threads: int = 1, runs: int = 50, warmup: int = 5
) -> list[LatencyResult]:
    """Times LiteRT files. Each round runs every file once, so noise affects all equally.

    Args:
        paths: list of `.tflite` files (or one path).
        threads: int, CPU threads of each interpreter.
        runs: int, number of rounds that count.
        warmup: int, number of earlier rounds that do not count.

    Returns:
        A list of `LatencyResult`, in the order of `paths`.

    Raises:
        ValueError: for no path, numbers below 1, or a file that is no LiteRT model.
        ImportError: without the `litert` extra.

    Example:

    >>> # dense, low_rank = elrt_keras.export.benchmark_litert(["dense.tflite", "low_rank.tflite"])
    >>> # dense.median_ms / low_rank.median_ms
    """
    paths = [os.fspath(paths)] if isinstance(paths, (str, os.PathLike)) else [os.fspath(path) for path in paths]
    if not paths or threads < 1 or runs < 1 or warmup < 0:
        raise ValueError(
            "Expected at least one path, threads and runs of at least 1, warmup of at least 0. "
            f"Received: paths={paths}, threads={threads}, runs={runs}, warmup={warmup}"
        )
    threads, runs, warmup = int(threads), int(runs), int(warmup)  # the interpreter refuses NumPy's ints
    runners = [litert.Runner(path, threads) for path in paths]
    milliseconds = 1e3 * litert.time_interleaved(runners, runs, warmup)
    return [
        LatencyResult(
            path=path,
            size_bytes=os.path.getsize(path),
            threads=threads,
            runs=runs,
            median_ms=float(np.median(times)),
            low_ms=float(np.quantile(times, 0.1)),
            high_ms=float(np.quantile(times, 0.9)),
            peak_memory_bytes=_peak_memory(path, threads),
        )
        for path, times in zip(paths, milliseconds)
    ]


def _peak_memory(path, threads):
    if not sys.platform.startswith("linux"):
        return None
    # -P: Python does not import from the folder of the program.
    command = [sys.executable, "-P", str(_MEMORY_PROGRAM), path, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else None
