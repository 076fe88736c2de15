"""Text from users, such as layer names and paths, is never markup; a failed picture does not lose a result."""

import csv
import json

import keras
import pytest
from common import model_of, thorough_but
from matplotlib.text import Text

import elrt_keras as elrt
from elrt_keras.launch import plots, rundir, training
from elrt_keras.launch.config import TrainConfig
from elrt_keras.plot import figures
from elrt_keras.terminal.tables import render_table

pytestmark = pytest.mark.tensorflow  # the same on every backend

# Broken and correct mathematics, markup of rich, an emoji by name, a label that matplotlib would hide.
NAMES = [
    "a$x_$y",
    "$\\frac$",
    "d$imgs_$2024$",
    "50$",
    "[bold]",
    "[/red]",
    "conv[1]",
    ":smile:",
    "_hidden",
    "<b>&",
    "%s {0}",
]


def drawn_texts(figure):
    """Returns the texts of a figure as drawn, without those that are read as mathematics."""
    figure.draw_without_rendering()
    read = [text._preprocess_math(text.get_text()) for text in figure.findobj(Text)]
    return {text.strip() for text, is_math in read if is_math is False}


@pytest.mark.parametrize("name", thorough_but(("a$x_$y", "$\\frac$", "[bold]"), NAMES))
def test_names_in_figures(name, tmp_path):
    plan = elrt.plot.rank_plan({name: ("svd", 3)}, path=tmp_path / "plan.png")
    results = [{"name": name, "accuracy": 0.5, "macs": 10}]
    for figure in (plan, elrt.plot.tradeoff(results, path=tmp_path / "tradeoff.png")):
        assert name in drawn_texts(figure)
    assert {path.name for path in tmp_path.iterdir()} == {"plan.png", "tradeoff.png"}


def test_names_in_titles(tmp_path, monkeypatch):
    model = model_of(keras.layers.Conv2D(16, 3, name="a$x_$y"), keras.layers.Conv2D(16, 3, name="b$"))
    assert {"a$x_$y", "b$"} <= drawn_texts(elrt.plot.spectra(model))
    history, kept = tmp_path / "history.csv", []
    history.write_text("epoch,loss,val_loss\n0,2,2\n1,1,1\n")
    monkeypatch.setattr(figures, "finish", lambda figure, path: kept.append(figure))
    plots.plot_curves(history, tmp_path / "curves.png", "resnet18, folder:/data/d$imgs_$2024")
    assert "resnet18, folder:/data/d$imgs_$2024" in drawn_texts(kept[0])


@pytest.mark.parametrize("name", NAMES)
def test_names_in_tables(name):
    table = render_table(["layer", "ranks"], [(name, "[3]"), ("other", "4")])
    assert name in table and "[3]" in table


@pytest.mark.thorough
def test_no_picture_costs_a_result(tmp_path, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise RuntimeError("no picture today")

    monkeypatch.setattr(rundir, "plot_curves", broken)
    monkeypatch.setattr(rundir.plot, "rank_plan", broken)
    with caplog.at_level("WARNING"):
        summary = training.run(TrainConfig(model="resnet8", smoke=True, epochs=1), str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert [name in caplog.text for name in ("rank_plan.png", "curves.png", "no picture today")] == [True] * 3
    with open(tmp_path / "run" / "history.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 1
    assert not (tmp_path / "run" / "checkpoints").exists()
