"""One process per model, so that none finds another's memory, threads or caches."""

import subprocess
import sys


def run_each(module, names, environment=None):
    """Runs `python -m module` with this process's flags once for each name, as `--one=NAME`."""
    for name in names:
        command = [sys.executable, "-m", module, *sys.argv[1:], f"--one={name}"]
        subprocess.run(command, check=True, env=environment)
