"""Prints the peak memory, in bytes, that a LiteRT model adds to a new process. Runs as a separate program.

python memory.py MODEL THREADS

The program imports nothing else, because an earlier and larger memory peak would hide that of the model.
"""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def resident(field: str) -> int:
    """Reads memory of this process in bytes from Linux: `VmRSS` (at present) or `VmHWM` (the peak)."""
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
