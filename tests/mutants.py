"""Runner of the seeded faults: applies one at a time to a copy of the repository and finds the test that fails.

    python tests/mutants.py [--only=PART …] [--missing] [--targeted] [--write]

The faults themselves are in `tests/seeded_faults.py`. Each runs in a fork of this process, which has imported
TensorFlow, Keras and pytest, but no part of the package. So the fork imports the package from the copy.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from seeded_faults import MUTANTS

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- mutants: begin -->", "<!-- mutants: end -->"
# This test checks the list of faults against the sources, so it would fail for every fault.
_OF_THE_LIST = "tests/test_mutants.py"
_QUICK = ["-x", "-q", "--suite=quick", "-p", "no:cacheprovider", "-p", "no:xdist"]
_LIMIT_S = 2400  # of one run of tests: a fault may also hang


def copy_tree(folder):
    """Copies the tracked files of the working tree, with launch/ and models/ linked to where they are installed."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in os.fsdecode(listed).split("\0"):
        source, target = ROOT / name, folder / name
        if name and source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    for room in ("launch", "models"):
        (folder / "elrt_keras" / room).symlink_to(folder / room)


def environment(folder):
    """Returns an environment in which Python imports the package of a copy, not the installed one."""
    return {**os.environ, "PYTHONPATH": str(folder), "KERAS_BACKEND": "tensorflow"}


def mutated(mutant, text):
    """Applies the fault to the text of the mutant's file.

    Raises:
        ValueError: unless the snippet occurs exactly once.
    """
    count = text.count(mutant.old)
    if count != 1:
        raise ValueError(f"Expected the snippet of {mutant.name!r} once in {mutant.file}. Received: {count} times")
    return text.replace(mutant.old, mutant.new)


@contextlib.contextmanager
def applied(mutant, folder):
    """Context in which the copy has the fault."""
    path = folder / mutant.file
    original = path.read_text(encoding="utf-8")
    _write(path, mutated(mutant, original))
    try:
        yield
    finally:
        _write(path, original)


def _write(path, text):
    path.write_text(text, encoding="utf-8")
    # Python compares only size and second, so it may miss stale bytecode.
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


class _Recorder:
    """Pytest plugin that records failures, and modules that could not be collected."""

    def __init__(self):
        self.failed, self.uncollected = [], []

    def pytest_collection(self):
        import hypothesis

        # Do not shrink failing examples: hypothesis would search minutes for a shorter one.
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        hypothesis.settings.register_profile("mutants", hypothesis.settings(phases=phases))
        hypothesis.settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report):
        if report.failed:
            self.uncollected.append(report.nodeid)


def _child(folder, arguments, log, answer):
    """Runs pytest on a copy, in a separate process, and writes the failures to a file."""
    os.setsid()
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment(folder))
    os.chdir(folder)
    own = (ROOT, ROOT / "tests")
    sys.path[:] = [str(folder), *(path for path in sys.path if path and pathlib.Path(path).resolve() not in own)]
    import pytest

    recorder = _Recorder()
    code = int(pytest.main([*_QUICK, f"--ignore={_OF_THE_LIST}", *arguments], plugins=[recorder]))
    foreign = [
        module.__file__
        for name, module in list(sys.modules.items())
        if name.split(".")[0] in ("elrt_keras", "common", "conftest")
        and getattr(module, "__file__", None)
        and not os.path.realpath(module.__file__).startswith(os.path.realpath(folder) + os.sep)
    ]
    found = {"code": code, "failed": recorder.failed, "uncollected": recorder.uncollected, "foreign": foreign}
    pathlib.Path(answer).write_text(json.dumps(found))


def run_tests(folder, arguments):
    """Runs pytest with these arguments on a copy; returns the id of the first failing test, or `None`.

    Raises:
        RuntimeError: if no test could run, or a test imported the package from elsewhere; with the end of the log.
    """
    log, answer = folder.parent / "log.txt", folder.parent / "answer.json"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        try:
            _child(folder, arguments, log, answer)
        finally:
            os._exit(0)
    if not _ended(child):
        return "none within the time limit"
    tail = log.read_text(errors="replace")[-3000:]
    if not answer.exists():
        raise RuntimeError(f"the process of the tests died\n{tail}")
    found = json.loads(answer.read_text())
    if found["foreign"] or found["uncollected"] or (found["code"] > 1 and not found["failed"]):
        raise RuntimeError(f"{found}\n{tail}")
    return found["failed"][0] if found["failed"] else None


def _ended(child):
    """Waits for a process and reports if it ended in time; kills it and its children otherwise."""
    deadline = time.monotonic() + _LIMIT_S
    try:
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return False
            time.sleep(0.05)
    except KeyboardInterrupt:  # the child has its own session and does not get it
        os.killpg(child, signal.SIGKILL)
        raise
    return True


def killer(mutant, folder, targeted_only):
    """Finds the test that fails with the fault: among its named tests, then in the quick suite; `None` for none."""
    with applied(mutant, folder):
        failed = run_tests(folder, mutant.tests)
        if failed is not None or targeted_only:
            return failed
        return run_tests(folder, ["tests", *(f"--ignore={path}" for path in mutant.tests)])


def test_name(node):
    """Removes the parameters from a node id."""
    return node.partition("[")[0]


def read_results():
    """Reads the rows of the results file, by name of the fault; empty before the first run."""
    if not RESULTS.exists():
        return {}
    return {row["name"]: row for row in json.loads(RESULTS.read_text(encoding="utf-8"))}


def write_results(rows):
    """Writes the rows of the existing faults, in the order of their list."""
    known = [rows[mutant.name] for mutant in MUTANTS if mutant.name in rows]
    RESULTS.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def table(rows):
    """Makes the table of the documentation from the rows of the results file."""
    equivalent = {mutant.name: mutant.equivalent for mutant in MUTANTS}
    lines = ["| fault | file | killed by |", "|---|---|---|"]
    for row in rows.values():
        killed_by = f"`{test_name(row['killed_by'])}`" if row["killed_by"] else equivalent[row["name"]]
        lines.append(f"| {row['name']} | `{row['file']}` | {killed_by} |")
    return "\n".join(lines)


def with_table(page, rows):
    """Replaces the table between the two marks of a page's text."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}"


def _chosen(parts):
    return [one for one in MUTANTS if not parts or any(part in f"{one.name} {one.file}" for part in parts)]


def _is_found(rows, mutant):
    return mutant.name in rows and rows[mutant.name]["killed_by"] is not None


def _check_kills(folder, rows):
    """Lists errors for tests that fail without the fault too."""
    nodes = sorted({row["killed_by"] for row in rows if row["killed_by"] and "::" in row["killed_by"]})
    print(f"baseline: {len(nodes)} tests without any fault", flush=True)
    errors = []
    while nodes and (failed := run_tests(folder, nodes)) is not None:
        errors.append(f"{failed} fails without any fault")
        nodes.remove(failed)
    return errors


def main():
    """Runs the selected faults and reports each; the exit status is 1 for survivors and errors."""
    parser = argparse.ArgumentParser(description="Runs the tests against seeded faults, one at a time.")
    parser.add_argument("--only", action="append", default=[], help="faults whose name or file holds this text")
    parser.add_argument(
        "--missing", action="store_true", help="only faults that the results file does not have as found"
    )
    parser.add_argument("--targeted", action="store_true", help="leave the whole suite out where named tests pass")
    parser.add_argument("--write", action="store_true", help="write the table of docs/reliability.md")
    arguments = parser.parse_args()
    for mutant in MUTANTS:
        mutated(mutant, (ROOT / mutant.file).read_text(encoding="utf-8"))
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as in conftest.py, which runs too late here
    import hypothesis  # noqa: F401  (these are what takes time, and are imported once)
    import keras  # noqa: F401
    import pytest  # noqa: F401
    import tensorflow  # noqa: F401

    rows, problems = read_results(), []
    chosen = [one for one in _chosen(arguments.only) if not arguments.missing or not _is_found(rows, one)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) / "tree"
        copy_tree(folder)
        for number, mutant in enumerate(chosen, start=1):
            start, told = time.monotonic(), mutant.equivalent
            killed_by = None
            if mutant.equivalent is None:
                try:
                    killed_by = killer(mutant, folder, arguments.targeted)
                    told = killed_by or "SURVIVED"
                except RuntimeError as error:
                    told = f"ERROR {error}"
                if killed_by is None:
                    problems.append(f"{mutant.name}: {told}")
            seconds = round(time.monotonic() - start, 1)
            print(f"{number} of {len(chosen)}, {seconds} s: {mutant.name}: {told}", flush=True)
            rows[mutant.name] = {
                "name": mutant.name,
                "file": mutant.file,
                "killed_by": killed_by,
                "seconds": seconds,
            }
            write_results(rows)
        problems += _check_kills(folder, [rows[mutant.name] for mutant in chosen])
    if arguments.write:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), read_results()), encoding="utf-8")
    print("\n".join(problems) or f"{len(chosen)} faults, all found")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
