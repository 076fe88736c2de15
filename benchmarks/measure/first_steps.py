"""Times of a newcomer's first commands on a fresh clone."""

import pathlib
import re
import subprocess
import tempfile
import time

from benchmarks.measure.runner import Flag, measurement

_ROOT = pathlib.Path(__file__).parents[2]


@measurement(
    "first_steps",
    revision=Flag("HEAD", "The commit to clone."),
    name=Flag("now", "Name of the result, one of two.", choices=("before", "now")),
    rounds=Flag(3, "Number of runs of `make test`; 0 times the demo only."),
)
def first_steps(settings):
    """Times `make demo`, and `make test` after its installation, on a fresh clone.

    Nothing else should run on the machine. README.md and docs/reliability.md contain sentences made from the results;
    `python -m benchmarks.pages` updates them.
    """
    with tempfile.TemporaryDirectory() as folder:
        clone = pathlib.Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(_ROOT), str(clone)], check=True)
        subprocess.run(["git", "checkout", "--quiet", settings.revision], cwd=clone, check=True)
        demo, _ = _seconds("make demo", clone)
        result = {"demo_seconds": demo, "demo_megabytes": _megabytes(clone / ".venv")}
        result["demo_again_seconds"], _ = _seconds("rm -rf runs && make demo", clone)
        if settings.rounds:
            result["install_seconds"], _ = _seconds("make .venv/.installed", clone)
            result["test_megabytes"] = _megabytes(clone / ".venv")
            runs = [_seconds("make test", clone) for _ in range(settings.rounds)]
            result["test_seconds"] = [seconds for seconds, _ in runs]
            result["tests"] = tests_by_backend(runs[-1][1])
        return result | {"revision": settings.revision}


@measurement("ci")
def ci(settings):
    """Times `.ci/run` on a fresh clone, installation included, and each of its parts.

    Nothing else should run on the machine.
    """
    del settings
    with tempfile.TemporaryDirectory() as folder:
        clone = pathlib.Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(_ROOT), str(clone)], check=True)
        seconds, output = _seconds(".ci/run", clone)
    return {"seconds": round(seconds), "parts": seconds_by_part(output)}


def seconds_by_part(output):
    """Parses the output of `.ci/run` to `{target of make: seconds}`."""
    return {part: int(seconds) for part, seconds in re.findall(r"^== make ([\w-]+): (\d+) s$", output, re.M)}


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
    """Parses the output of `make test` to `{backend: number of passed tests}`."""
    parts = re.split(r"== quick tests on (\w+)", output)[1:]
    return {backend: int(re.search(r"(\d+) passed", text)[1]) for backend, text in zip(parts[::2], parts[1::2])}
