"""Times what a newcomer runs first, on a fresh clone: `make demo`, and `make test` after its installation.

  python -m benchmarks.first_steps                       # this commit, an hour: three runs of the tests
  python -m benchmarks.first_steps --revision=0f35ffa --rounds=0 --name=before

Nothing else should run on the machine meanwhile. File `benchmarks/results/first_steps/NAME.json`; README.md and
docs/reliability.md hold sentences made of it, which `--write` renews.
"""

import pathlib
import re
import statistics
import subprocess
import tempfile
import time

from absl import app, flags

from benchmarks import markdown
from benchmarks.measure import evidence

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


def sentences():
    """`{page: text}`: what README.md and docs/reliability.md say of the first steps."""
    results = evidence.read("first_steps")
    before, now = results["before"], results["now"]
    minutes = [seconds / 60 for seconds in now["test_seconds"]]
    more = (now["test_megabytes"] - now["demo_megabytes"]) / 1000
    readme = (
        f"On two cores, with a mirror of packages nearby, `make demo` takes {now['demo_seconds'] / 60:.1f} minutes "
        f"and {now['demo_megabytes'] / 1000:.1f} GB the first time, and {now['demo_again_seconds']:.0f} s after that; "
        f"`make test` installs {more:.1f} GB more and then runs for {statistics.median(minutes):.0f} minutes."
    )
    counts = " + ".join(f"{number:,} on {backend}" for backend, number in now["tests"].items())
    runs = (
        f"`make test` on two cores after installation: {', '.join(f'{m:.1f}' for m in minutes)} minutes in "
        f"{len(minutes)} runs; {counts} tests."
    )
    keys = ("demo_seconds", "demo_again_seconds", "demo_megabytes")
    demos = markdown.table(
        ["`make demo` on a fresh clone installs", "seconds", "seconds, again", "MB"],
        [
            [title, *(f"{row[key]:,.0f}" for key in keys)]
            for title, row in (("everything for development (before)", before), ("the runtime alone", now))
        ],
    )
    return {"README.md": readme, "docs/reliability.md": "\n\n".join([runs, demos, markdown.machine(now["machine"])])}


def renewed(page, text):
    """A page with the text between its marks."""
    mark = "<!-- first steps, made by `python -m benchmarks.first_steps --write` -->"
    before, _, after = page.split(mark)
    return f"{before}{mark}\n{text}\n{mark}{after}"


def main(argv):
    """Measures, or writes the sentences."""
    if not FLAGS.write:
        result = measure(FLAGS.revision, FLAGS.rounds)
        command = f"python -m benchmarks.first_steps --rounds={FLAGS.rounds} --name={FLAGS.name}"
        evidence.write("first_steps", FLAGS.name, result, command)
    if len(evidence.read("first_steps")) == 2:
        for name, text in sentences().items():
            page = _ROOT / name
            page.write_text(renewed(page.read_text(encoding="utf-8"), text), encoding="utf-8")


if __name__ == "__main__":
    flags.DEFINE_string("revision", "HEAD", "The commit to clone.")
    flags.DEFINE_enum("name", "now", ["before", "now"], "Which of the two results this is.")
    flags.DEFINE_integer("rounds", 3, "Runs of `make test`.")
    flags.DEFINE_bool("write", False, "Measure nothing; write the sentences anew.")
    app.run(main)
