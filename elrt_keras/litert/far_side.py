"""Times LiteRT files on a device with Python, NumPy and ai-edge-litert. This separate program is sent with the files.

python far_side.py pack FILE…                 # local: writes a tar archive of this program, the files and their order
python far_side.py run FOLDER THREADS RUNS    # device: prints {"model": NAME, "seconds": […]} for each file, in order
"""

import io
import json
import os
import sys
import tarfile
import time
from typing import IO

_ORDER = "order.json"
_WARMUP = 2


def pack(paths: list[str], archive: IO[bytes]) -> None:
    """Writes a tar archive to a stream: this program, the files and their order. A file may occur several times."""
    with tarfile.open(fileobj=archive, mode="w|") as tar:
        for path in dict.fromkeys([os.path.abspath(__file__), *paths]):
            tar.add(path, os.path.basename(path))
        order = json.dumps([os.path.basename(path) for path in paths]).encode()
        member = tarfile.TarInfo(_ORDER)
        member.size = len(order)
        tar.addfile(member, io.BytesIO(order))


def run(folder: str, threads: int, runs: int) -> None:
    """Times the files of an unpacked folder and prints a line for each."""
    with open(os.path.join(folder, _ORDER), encoding="utf-8") as file:
        names = json.load(file)
    for name in names:
        seconds = seconds_of(os.path.join(folder, name), threads, runs)
        print(json.dumps({"model": name, "seconds": seconds}), flush=True)


def seconds_of(path: str, threads: int, runs: int) -> list[float]:
    """Seconds of single inferences of a file, on random inputs."""
    import numpy as np

    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        # Older name of the runtime.
        from tflite_runtime.interpreter import Interpreter  # pyright: ignore[reportMissingImports]

    interpreter = Interpreter(path, num_threads=threads)
    interpreter.allocate_tensors()
    random = np.random.default_rng(0)
    for details in interpreter.get_input_details():
        values = random.uniform(0, 1, details["shape"])
        interpreter.set_tensor(details["index"], values.astype(details["dtype"]))
    seconds = []
    for _ in range(_WARMUP + runs):
        start = time.perf_counter()
        interpreter.invoke()
        seconds.append(time.perf_counter() - start)
    return seconds[_WARMUP:]


if __name__ == "__main__":
    if sys.argv[1] == "pack":
        pack(sys.argv[2:], sys.stdout.buffer)
    else:
        run(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
