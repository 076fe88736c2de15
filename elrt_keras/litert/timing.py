"""Timing LiteRT models side by side, and what decides how long they take."""

import os
import pathlib
import platform
import time
from collections.abc import Sequence

import numpy as np

from elrt_keras.litert.interpreter import Runner


def time_interleaved(runners: Sequence[Runner], runs: int, warmup: int = 3) -> np.ndarray:
    """Seconds of single inferences, one model after the other in every round, so that noise hits all alike.

    Args:
        runners: list of `Runner`.
        runs: int, rounds that count.
        warmup: int, rounds before that do not.

    Returns:
        An array `(runners, runs)`.
    """
    for runner in runners:
        runner.set_random_input()
    seconds = np.empty((len(runners), warmup + runs))
    for number in range(warmup + runs):
        for position, runner in enumerate(runners):
            start = time.perf_counter()
            runner.invoke()
            seconds[position, number] = time.perf_counter() - start
    return seconds[:, warmup:]


def machine_key(threads: int) -> str:
    """What times hold for: the runtime, the converter that made the files, the processor, threads."""
    import ai_edge_litert
    import tensorflow as tf

    software = f"ai-edge-litert {ai_edge_litert.__version__}, TensorFlow {tf.__version__}"
    return f"{software}, {processor()}, {os.cpu_count()} cores, {threads} threads"


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    if os.path.exists("/proc/cpuinfo"):
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
