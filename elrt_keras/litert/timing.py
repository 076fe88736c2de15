"""Times of LiteRT models, measured in turns, and the key of the machine."""

import os
import time
from collections.abc import Sequence

import numpy as np

from elrt_keras.kept_times import processor, processor_kind
from elrt_keras.litert.interpreter import Runner


def time_interleaved(runners: Sequence[Runner], runs: int, warmup: int = 3) -> np.ndarray:
    """Measures single inferences, in seconds. Each round runs every model once, so noise affects all equally.

    Args:
        runners: list of `Runner`.
        runs: int, number of rounds that count.
        warmup: int, number of earlier rounds that do not count.

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
    """Text that identifies the conditions of times: runtime, converter of the files, processor, threads."""
    import ai_edge_litert
    import tensorflow as tf

    software = f"ai-edge-litert {ai_edge_litert.__version__}, TensorFlow {tf.__version__}"
    hardware = f"{processor()} (kind {processor_kind()}), {os.cpu_count()} cores"
    return f"{software}, {hardware}, {threads} threads"
