"""Times what a newcomer runs first, on a fresh clone: `make demo`, and `make test` after its installation.

  python -m benchmarks.first_steps                       # this commit, an hour: three runs of the tests
  python -m benchmarks.first_steps --revision=0f35ffa --rounds=0 --name=before

Nothing else should run on the machine meanwhile. File `benchmarks/results/first_steps/NAME.json`; README.md and
docs/reliability.md hold sentences made of it, which `python -m benchmarks.pages` renews.
"""

import pathlib
import re
import subprocess
import tempfile
import time

from absl import app, flags

from benchmarks import evidence

_ROOT = pathlib.Path(__file__).parents[1]
FLAGS = flags.FLAGS


def _seconds(command, folder):
    """Runs a shell command and shows its output; returns `(seconds, output)`."""
    print(f"$ {command}", flush=True)
    start, lines = time.monotonic(), []
    process = subprocess.Popen(
        command, shell=True, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        lines.append(line)
        print(line, end="", flush=True)
    if process.wait() != 0:
        raise RuntimeError(f"Expected status 0 of {command!r}. Received: {process.returncode}")
    return time.monotonic() - start, "".join(lines)


def _megabytes(folder):
    return int(subprocess.run(["du", "-sm", folder], capture_output=True, text=True, check=True).stdout.split()[0])


def tests_by_backend(output):
    """`{backend: tests that passed}` of what `make test` prints."""
    parts = re.split(r"== quick tests on (\w+)", output)[1:]
    return {backend: int(re.search(r"(\d+) passed", text)[1]) for backend, text in zip(parts[::2], parts[1::2])}


def measure(revision, rounds):
    """Seconds and megabytes of the demo's and the tests' first start, and `rounds` runs of the tests."""
    with tempfile.TemporaryDirectory() as folder:
        clone = pathlib.Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(_ROOT), str(clone)], check=True)
        subprocess.run(["git", "checkout", "--quiet", revision], cwd=clone, check=True)
        demo, _ = _seconds("make demo", clone)
        result = {"demo_seconds": demo, "demo_megabytes": _megabytes(clone / ".venv")}
        result["demo_again_seconds"], _ = _seconds("rm -rf runs && make demo", clone)
        if rounds:
            result["install_seconds"], _ = _seconds("make .venv/.installed", clone)
            result["test_megabytes"] = _megabytes(clone / ".venv")
            runs = [_seconds("make test", clone) for _ in range(rounds)]
            result["test_seconds"] = [seconds for seconds, _ in runs]
            result["tests"] = tests_by_backend(runs[-1][1])
        return result | {"revision": revision}


def main(argv):
    """Measures."""
    result = measure(FLAGS.revision, FLAGS.rounds)
    command = f"python -m benchmarks.first_steps --rounds={FLAGS.rounds} --name={FLAGS.name}"
    evidence.write("first_steps", FLAGS.name, result, command)


if __name__ == "__main__":
    flags.DEFINE_string("revision", "HEAD", "The commit to clone.")
    flags.DEFINE_enum("name", "now", ["before", "now"], "Which of the two results this is.")
    flags.DEFINE_integer("rounds", 3, "Runs of `make test`.")
    app.run(main)
