"""Prints how many bytes of memory running a LiteRT model adds at most to a fresh process. Run as a program of its own.

python memory.py MODEL THREADS

Nothing else is imported here, so that no larger peak from before hides the model's.
"""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def resident(field: str) -> int:
    """A figure of Linux' process table in bytes: `VmRSS` (now) or `VmHWM` (the most so far)."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def main(path: str, threads: str) -> None:
    """Loads the model, runs it twice on zeros and prints the growth."""
    before = resident("VmRSS")
    interpreter = Interpreter(path, num_threads=int(threads))
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
    for _ in range(2):
        interpreter.invoke()
    print(max(0, resident("VmHWM") - before))


if __name__ == "__main__":
    main(*sys.argv[1:])
