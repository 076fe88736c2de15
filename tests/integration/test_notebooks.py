"""The notebooks run, show each figure once, and agree with their `.py` halves."""

import re
import shutil
import subprocess
import sys

import pytest

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

from examples.notebooks import execute  # noqa: E402

pytestmark = pytest.mark.tensorflow  # the same on every backend

NOTEBOOKS = {path.stem: path for path in execute.notebooks()}
NAMES = pytest.mark.parametrize("name", NOTEBOOKS)
LARGEST = 300_000  # bytes

# Statements of a notebook's text, as code that runs after its last cell.
CHECKS = {
    "01_training_from_scratch": [
        "costs = {name: elrt.count_costs(model).macs for name, model in models.items()}",
        "assert costs['low-rank'] == costs['without penalty'] <= 0.4 * costs['dense']",
        "assert all(history['val_accuracy'][-1] > 0.95 for history in histories.values())",
        "errors = {name: history.get('orthogonality_error_mean') for name, history in histories.items()}",
        "assert max(errors['low-rank']) > 1.5 * errors['low-rank'][-1]",
        "assert errors['low-rank'][-1] < 0.5 * errors['without penalty'][-1]",
        "assert ratio > 1.2, 'the last layer looked at is the one without penalty'",
    ],
    "02_factorizing_an_application": [
        "assert difference < 1e-4",
        "assert low_rank_costs.macs <= 0.65 * costs.macs",
        "assert accuracies['dense'] > 0.9 and accuracies['fine-tuned'] > accuracies['dense'] - 0.03",
        "assert accuracies['decomposed'] < accuracies['dense'] - 0.1",
    ],
    "03_ranks_for_a_latency": [
        "assert [round(x) for x in macs[::4]] == [4, 53] and macs[-2] < 100 < macs[-1]",
        "latency = plans['max_latency=0.6'].latency",
        "assert latency['planned'] <= 0.6 * latency['dense']",
        "assert 0 < measured['max_latency=0.6']",
    ],
    "04_shrinking_after_training": [
        "parts = [point.macs / curve.dense_macs for point in curve.points]",
        "assert all(part <= budget for part, budget in zip(parts, (0.6, 0.5, 0.4, 0.3, 0.2)))",
        "assert curve.points[0].metric > 0.95 and curve.points[-1].metric < 0.8",
        "assert all(accuracy(model) > 0.95 for model in [*fine_tuned, from_scratch])",
    ],
    "05_export_and_quantization": [
        "sizes = {title: report.size_bytes for title, report in reports.items()}",
        "assert 3.3 * sizes['low-rank, int8'] > sizes['low-rank, float32'] > 3 * sizes['low-rank, int8']",
        "assert 3.2 * sizes['low-rank, float32'] > sizes['dense, float32'] > 3 * sizes['low-rank, float32']",
        "assert all(report.accuracy > 0.95 for report in reports.values())",
        "assert not [name for report in reports.values() for name in report.operators if name.startswith('Flex')]",
    ],
}


def draws(cell):
    """Reports if a cell draws a figure: by `elrt.plot` in its last line, or by pyplot."""
    return cell.source.splitlines()[-1].startswith("elrt.plot.") or "plt.subplots(" in cell.source


def check_outputs(notebook):
    """Checks that each figure is shown once, below its cell, and that all other outputs are printed text."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        assert len(pictures) == draws(cell), cell.source
        others = [output for output in cell.outputs if output not in pictures]
        assert all(output.output_type == "stream" for output in others), cell.source
        assert len(others) == ("print(" in cell.source), cell.source


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 5 and set(NOTEBOOKS) == set(CHECKS)
    assert {path.stem for path in execute.FOLDER.glob("*.ipynb")} == set(NOTEBOOKS)
    index = (execute.FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"({name}.ipynb)" in index for name in NOTEBOOKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name):
    notebook = execute.executed(NOTEBOOKS[name], more_cells=["\n".join(CHECKS[name])])
    *cells, checks = notebook.cells
    assert checks.outputs == []
    notebook.cells = cells
    check_outputs(notebook)
    # Outputs that do not depend on trained weights or measured times must equal the published ones.
    kept = nbformat.read(NOTEBOOKS[name].with_suffix(".ipynb"), as_version=4)
    for cell, shown in zip(cells, kept.cells):
        if re.search(r"^print\(plan\)|by_type", cell.source, re.M):
            assert cell.outputs == shown.outputs


@NAMES
def test_the_pair_agrees(name):
    source = jupytext.read(NOTEBOOKS[name])
    kept = nbformat.read(NOTEBOOKS[name].with_suffix(".ipynb"), as_version=4)
    nbformat.validate(kept)
    assert [(cell.cell_type, cell.source) for cell in kept.cells] == [
        (cell.cell_type, cell.source) for cell in source.cells
    ]


@NAMES
def test_what_readers_see(name):
    path = NOTEBOOKS[name].with_suffix(".ipynb")
    assert path.stat().st_size < LARGEST
    notebook = nbformat.read(path, as_version=4)
    check_outputs(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum(map(draws, code)) >= 2 and any("elrt.plot." in cell.source for cell in code)
    for output in (output for cell in code for output in cell.outputs):
        assert output.get("name", "stdout") == "stdout"
        text = output.get("text") or output.data["text/plain"]
        assert not re.search(r"(?<![\w.])[/\\](\w+[/\\])+|WARNING|Warning:", text), text


def test_jupyter_keeps_a_pair_in_step(tmp_path):
    """Simulates saving in Jupyter: an edit of the `.ipynb` reaches the `.py`, and nothing else changes there."""
    name = "01_training_from_scratch"
    for file in ("jupytext.toml", f"{name}.py", f"{name}.ipynb"):
        shutil.copy(execute.FOLDER / file, tmp_path / file)
    notebook = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4)
    notebook.cells[0].source = notebook.cells[0].source.replace("# Low-rank training", "# Training low-rank")
    nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    command = [sys.executable, "-m", "jupytext", "--sync", f"{name}.ipynb"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, timeout=100)
    before = NOTEBOOKS[name].read_text(encoding="utf-8")
    after = (tmp_path / f"{name}.py").read_text(encoding="utf-8")
    assert after == before.replace("# # Low-rank training", "# # Training low-rank") != before
