"""Runs the notebooks: from each `NAME.py` to a `NAME.ipynb` with its outputs, which readers see on GitHub.

  python examples/notebooks/execute.py [NAME.py …]

Wants a machine with nothing else to do: two of the notebooks measure times.
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
    """The `.py` halves of the pairs."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def executed(path, more_cells=()):
    """The notebook of a `.py` file with its outputs.

    It runs in a folder of its own, with an empty cache of measured times.

    Args:
        path: the file.
        more_cells: list of code that runs at the end, such as checks.

    Raises:
        nbclient.exceptions.CellExecutionError: for a cell that fails.
    """
    notebook = jupytext.read(path)
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in more_cells]
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index}"  # random by default, which no review wants to see
    client = nbclient.NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=500,
        coalesce_streams=True,
        record_timing=False,
        # What TensorFlow's C++ code logs goes to the terminal instead of the notebook.
        extra_arguments=["--IPKernelApp.capture_fd_output=False"],
    )
    with tempfile.TemporaryDirectory() as folder:
        client.resources = {"metadata": {"path": folder}}
        own = {"ELRT_CACHE_DIR": os.path.join(folder, "cache"), "TF_CPP_MIN_LOG_LEVEL": "2"}
        client.execute(env={**os.environ, **own})
    notebook.metadata.language_info = {"name": "python"}  # without the version of this machine
    return notebook


if __name__ == "__main__":
    for source in map(pathlib.Path, sys.argv[1:] or notebooks()):
        nbformat.write(executed(source), source.with_suffix(".ipynb"))
        print(source.with_suffix(".ipynb"))
