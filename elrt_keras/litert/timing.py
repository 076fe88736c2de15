"""Timing LiteRT models side by side, and what decides how long they take."""

import hashlib
import os
import pathlib
import platform
import time
from collections.abc import Sequence

import numpy as np

from elrt_keras.litert.interpreter import Runner

_CPUINFO = pathlib.Path("/proc/cpuinfo")
# Lines of it that tell one kind of processor from another, on x86 and on ARM.
_TELLING = {"vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features"}
_TELLING |= {f"CPU {name}" for name in ("implementer", "architecture", "variant", "part", "revision")}


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
    hardware = f"{processor()} (kind {_kind()}), {os.cpu_count()} cores"
    return f"{software}, {hardware}, {threads} threads"


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    names = [value for name, value in _described() if name == "model name"]
    return names[0] if names else platform.processor() or platform.machine()


def _kind():
    """Eight digits for what the processor is and can do: virtual machines call unlike ones by one name."""
    told = sorted({f"{name}: {value}" for name, value in _described() if name in _TELLING})
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:8]


def _described():
    """What Linux says of its processors, as (name, value); nothing elsewhere."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
