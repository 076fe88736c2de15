"""How long `import elrt_keras` takes beside `import keras`, on every backend, and whether it loads TensorFlow.

  python -m benchmarks.imports

Fresh processes, in turns. File `benchmarks/results/imports/all.json`.
"""

import os
import subprocess
import sys

from absl import app, flags

from benchmarks.measure import evidence

_ROUNDS = flags.DEFINE_integer("rounds", 7, "Processes of each kind.")
BACKENDS = ("tensorflow", "jax", "torch")
_PROGRAM = (
    "import sys, time; start = time.perf_counter(); import {name}; "
    "print(time.perf_counter() - start, 'tensorflow' in sys.modules)"
)


def measure(backend, name):
    """`(seconds, whether TensorFlow is loaded afterwards)` of importing a package in a fresh process."""
    environment = {**os.environ, "KERAS_BACKEND": backend}
    command = [sys.executable, "-c", _PROGRAM.format(name=name)]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, loaded = output.split()[-2:]
    return float(seconds), loaded == "True"


def main(argv):
    """Measures all backends and writes the file."""
    del argv
    import elrt_keras  # noqa: F401, whose byte code is made here and not in the first round

    found = {backend: {"keras": [], "elrt_keras": [], "tensorflow_loaded": False} for backend in BACKENDS}
    for _ in range(_ROUNDS.value):
        for backend in BACKENDS:
            for name in ("keras", "elrt_keras"):
                seconds, loaded = measure(backend, name)
                found[backend][name].append(round(seconds, 4))
                found[backend]["tensorflow_loaded"] |= loaded
    print(found)
    evidence.write("imports", "all", {"backends": found}, f"python -m benchmarks.imports --rounds={_ROUNDS.value}")


if __name__ == "__main__":
    app.run(main)
