"""The command `python -m benchmarks.measure`."""

import sys

from benchmarks.measure import (  # noqa: F401, each of which registers measurements
    commands,
    first_hour,
    first_steps,
    growth,
    inference,
    kernels,
    latency_plans,
    layers,
    once,
    peers,
    rank_grid,
    steps,
    zoo,
)
from benchmarks.measure.runner import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
