"""Timing LiteRT models side by side, and what decides how long they take."""

import os
import time
from collections.abc import Sequence

import numpy as np

from elrt_keras.kept_times import processor, processor_kind
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
    hardware = f"{processor()} (kind {processor_kind()}), {os.cpu_count()} cores"
    return f"{software}, {hardware}, {threads} threads"
