"""Runs the notebooks: writes for each `NAME.py` a `NAME.ipynb` with its outputs, which readers see on GitHub.

  python examples/notebooks/execute.py [NAME.py …]

Nothing else should run on the machine: two of the notebooks measure times.
"""

import os
import pathlib
import sys
import tempfile

import jupytext
import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).resolve().parent


def notebooks():
    """Lists the `.py` files of the notebooks."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def executed(path, more_cells=()):
    """Runs a `.py` file as a notebook; returns the notebook with its outputs.

    It runs in a temporary folder, with an empty cache of measured times.

    Args:
        path: the file.
        more_cells: list of code that runs at the end, such as checks.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    notebook = jupytext.read(path)
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in more_cells]
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index}"  # a random id would change the file in every run
    client = nbclient.NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=500,
        coalesce_streams=True,
        record_timing=False,
        # Send the logs of TensorFlow's C++ code to the terminal instead of the notebook.
        extra_arguments=["--IPKernelApp.capture_fd_output=False"],
    )
    with tempfile.TemporaryDirectory() as folder:
        client.resources = {"metadata": {"path": folder}}
        own = {"ELRT_CACHE_DIR": os.path.join(folder, "cache"), "TF_CPP_MIN_LOG_LEVEL": "2"}
        client.execute(env={**os.environ, **own})
    notebook.metadata.language_info = {"name": "python"}  # leave out the Python version of this machine
    return notebook


if __name__ == "__main__":
    for source in map(pathlib.Path, sys.argv[1:] or notebooks()):
        nbformat.write(executed(source), source.with_suffix(".ipynb"))
        print(source.with_suffix(".ipynb"))
