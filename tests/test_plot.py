"""Plots show the numbers that NumPy computes; files are complete; bad input has a plain message."""

import csv
import itertools
import json
import math
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
from common import curves, dense_model, model_of, random_array, to_numpy

import elrt_keras as elrt
from elrt_keras.plot import records
from elrt_keras.terminal.tables import short_names

pytestmark = pytest.mark.tensorflow  # the same on every backend


def bars(axis):
    """Lists widths and middles of all bars, in the order of drawing."""
    return [(round(bar.get_y() + bar.get_height() / 2, 6), bar.get_width()) for bar in axis.patches]


def fitted(low_rank=True):
    """Trains shortly; returns the `History` and the errors that NumPy computes after each epoch."""
    layer = elrt.layers.SVDConv2D(4, 3, 3, factor_initializer="he_normal")
    model = model_of(layer if low_rank else keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D())
    model.compile("sgd", "mse")
    found = []

    def note(epoch, logs):
        matrix = to_numpy(layer.factors[1]).reshape(3, 4)
        found.append(np.linalg.norm(matrix @ matrix.T - np.eye(3)) / np.sqrt(3))

    callbacks = [elrt.callbacks.OrthogonalityLogger()]
    if low_rank:
        callbacks.append(keras.callbacks.LambdaCallback(on_epoch_end=note))
    x, y = random_array(8, 8, 8, 6), random_array(8, 4)
    return model.fit(x, y, epochs=3, verbose=0, callbacks=callbacks), found


def test_orthogonality_of_a_training():
    history, expected = fitted()
    rows = [dict(zip(history.history, values)) for values in zip(*history.history.values())]
    for given in (history, history.history, rows):
        figure = elrt.plot.orthogonality(given)
        (axis,) = figure.axes
        for label in ("mean", "largest"):  # one factor is both
            np.testing.assert_allclose(curves(axis)[label], expected, rtol=1e-5)
            assert list(axis.get_lines()[0].get_xdata()) == [1, 2, 3]
        assert axis.get_xlabel() == "epoch" and "‖S − I‖" in axis.get_ylabel()
        assert axis.get_yscale() == "linear"


def test_orthogonality_of_a_run_with_full_rank_warm_up(tmp_path):
    names = ["epoch", "loss", "orthogonality_error_max", "orthogonality_error_mean"]
    written = [(0, 3.0, "nan", "nan"), (1, 2.0, 0.5, 0.2), (2, 1.0, 0.01, 0.005), (3, 1.0, "NA", "")]
    with open(tmp_path / "history.csv", "w", newline="") as file:
        csv.writer(file).writerows([names, *written])
    for given in (tmp_path, str(tmp_path / "history.csv")):
        axis = elrt.plot.orthogonality(given).axes[0]
        np.testing.assert_array_equal(curves(axis)["mean"], [math.nan, 0.2, 0.005, math.nan])
        np.testing.assert_array_equal(curves(axis)["largest"], [math.nan, 0.5, 0.01, math.nan])
        assert axis.get_yscale() == "log"


@pytest.mark.parametrize(
    "history, message",
    [
        (3, "Expected a history of training.*Received: 3"),
        ([1, 2], r"Expected a history of training.*Received: \[1, 2\]"),
        ({"a": [1], "b": [1, 2]}, "Expected a history of training"),
        ({}, r"OrthogonalityLogger adds for a low-rank model. Received: columns \[\]"),
        ({"orthogonality_error_mean": [0.1]}, r"Received: columns \['orthogonality_error_mean'\]"),
        (dict.fromkeys(("orthogonality_error_mean", "orthogonality_error_max"), [math.nan]), "a history with numbers"),
        (dict.fromkeys(("orthogonality_error_mean", "orthogonality_error_max"), ["x"]), "Received: 'x'"),
        ("none/history.csv", "as CSVLogger writes it. Received: 'none/history.csv'"),
    ],
    ids=str,
)
def test_bad_input_of_orthogonality(history, message):
    with pytest.raises(ValueError, match=message):
        elrt.plot.orthogonality(history)


def test_orthogonality_of_a_dense_training_is_refused():
    with pytest.raises(ValueError, match=r"Received: columns \['epoch', 'loss'\]"):
        elrt.plot.orthogonality(fitted(low_rank=False)[0])


def test_rank_plan_with_full_ranks_and_macs(tmp_path):
    plan = elrt.plan_ranks(dense_model(), format={"body": "tucker2", "p*": "svd"}, fraction=0.5, multiple_of=1)
    plan.save(tmp_path / "plan.json")
    # Full ranks (C_in, C_out); 8 × 8 positions, and 6 × 6 after the depthwise convolution.
    dense = np.array([64 * 9 * 12 * 10, 36 * 10 * 8])
    planned = np.array([64 * (12 * 6 + 9 * 6 * 5 + 5 * 10), 36 * (10 * 4 + 4 * 8)])
    for given in (plan, str(tmp_path / "plan.json")):
        figure = elrt.plot.rank_plan(given)
        left, right = figure.axes
        assert [label.get_text() for label in left.get_yticklabels()] == list(plan)
        y = {name: index for index, name in enumerate(plan)}
        body, pointwise = y["body"], y["pointwise"]
        assert bars(left) == [  # for each rank, the full one and then the planned one
            *((body - 0.2, 12), (body - 0.2, 6), (body + 0.2, 10), (body + 0.2, 5)),
            *((pointwise, 8), (pointwise, 4)),
        ]
        assert {text.get_text() for text in left.texts} == {"dense"} and len(left.texts) == len(plan) - 2
        expected = 100 * np.concatenate([dense, planned]) / dense.sum()
        np.testing.assert_allclose([width for _, width in bars(right)], expected)
        assert [position for position, _ in bars(right)] == 2 * [body, pointwise]
        assert f"{planned.sum() / dense.sum():.0%}" in right.get_title()
        assert left.get_xlabel() == "rank (light: full rank)" and "% of dense" in right.get_xlabel()
        assert left.yaxis_inverted()


def test_rank_plan_by_hand_knows_ranks_only():
    figure = elrt.plot.rank_plan({"a": ("tensor_train", (3, 4, 5)), "b": None})
    (axis,) = figure.axes
    assert [width for _, width in bars(axis) if not math.isnan(width)] == [3, 4, 5] and axis.get_xlabel() == "rank"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["r_in", "r_mid", "r_out"]


def test_rank_plan_of_dense_layers_alone():
    assert not bars(elrt.plot.rank_plan({"a": None, "b": "dense"}).axes[0])


@pytest.mark.parametrize(
    "plan, message",
    [
        ({}, "Expected a rank plan with layers, or the path of one. Received: plan={}"),
        (3, "Received: plan=3"),
        ({"conv": 3}, r"Received: plan\['conv'\]=3"),
        ("none.json", "Expected a rank plan in JSON at 'none.json'"),
    ],
    ids=str,
)
def test_bad_input_of_rank_plan(plan, message):
    with pytest.raises(ValueError, match=message):
        elrt.plot.rank_plan(plan)


ROWS = [
    {"path": "dense/export/m.tflite", "median_ms": 5.0, "accuracy": 0.9, "macs": 40e6, "threads": 2},
    {"path": "low/export/m.tflite", "median_ms": 2.0, "accuracy": 0.8, "macs": 16e6, "threads": 2},
    {"path": "bad/export/m.tflite", "median_ms": 3.0, "accuracy": 0.7, "macs": None, "threads": 2},
    {"path": "unknown/export/m.tflite", "median_ms": 1.0, "accuracy": None, "macs": 1e6, "threads": 2},
]


def drawn_points(axis):
    return {line.get_label(): [tuple(map(float, point)) for point in line.get_xydata()] for line in axis.get_lines()}


def test_tradeoff_of_litert_files():
    figure = elrt.plot.tradeoff(ROWS)
    (axis,) = figure.axes
    points = drawn_points(axis)
    assert points.pop("Pareto front") == [(2.0, 80.0), (5.0, 90.0)]
    assert points == {"dense/m": [(5.0, 90.0)], "low/m": [(2.0, 80.0)], "bad/m": [(3.0, 70.0)]}
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("median latency (ms), threads: 2", "test accuracy (%)")
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["Pareto front", "dense/m", "low/m", "bad/m"]


def test_tradeoff_of_runs_and_objects():
    runs = [
        {"model": "resnet20", "format": "dense", "test_accuracy": 0.9, "macs": 40_000_000},
        {"model": "resnet20", "format": "tucker2", "test_accuracy": np.float32(0.75), "macs": 16_000_000},
        types.SimpleNamespace(model="resnet20", format="tucker2", test_accuracy=0.5, macs=16_000_000),
    ]
    axis = elrt.plot.tradeoff(runs).axes[0]
    assert drawn_points(axis) == {
        "Pareto front": [(16.0, 75.0), (40.0, 90.0)],
        "resnet20 dense": [(40.0, 90.0)],
        "resnet20 tucker2": [(16.0, 75.0), (16.0, 50.0)],
    }
    assert axis.get_xlabel() == "MACs of one example (millions)"


def test_the_cost_is_the_one_that_more_results_have():
    labels = [elrt.plot.tradeoff(rows).axes[0].get_xlabel() for rows in (ROWS, [{**ROWS[0], "median_ms": None}])]
    assert [label.split()[0] for label in labels] == ["median", "MACs"]
    seconds = elrt.plot.tradeoff([{"accuracy": 0.5, "latency": 0.25, "macs": 1e6}]).axes[0]
    assert drawn_points(seconds)["result 1"] == [(250.0, 50.0)]
    assert elrt.plot.tradeoff(ROWS, cost="macs").axes[0].get_xlabel().startswith("MACs")


def test_pareto_front_against_all_pairs():
    points = [(int(a), int(b)) for a, b in np.random.default_rng(0).integers(0, 12, (40, 2))]

    def is_beaten(point):
        return any(o[0] <= point[0] and o[1] >= point[1] and o != point for o in points)

    assert records.pareto_front(points) == sorted({point for point in points if not is_beaten(point)})


@pytest.mark.parametrize(
    "results, arguments, message",
    [
        ([], {}, r"\['accuracy', 'test_accuracy'\] and one of \['median_ms', .*'macs'\]. Received: results=\[\]"),
        ([{"macs": 3}], {}, r"Received: results=\[\{'macs': 3\}\]"),
        (ROWS[2:3], {"cost": "macs"}, r"one of \['macs'\]"),
        (ROWS[0], {}, "Expected a list of results"),
        ("rows.json", {}, "Received: results='rows.json'"),
        (ROWS, {"cost": "params"}, r"Expected one of \[None, 'latency', 'macs'\]. Received: cost='params'"),
        ([{"accuracy": 83.0, "macs": 1}], {}, r"accuracy as a number in \[0, 1\]. Received: accuracy=83.0"),
        ([{"accuracy": math.nan, "macs": 1}], {}, "Received: accuracy=nan"),
        ([{"accuracy": 0.5, "macs": "1 M"}], {}, "macs as a number of at least 0. Received: macs='1 M'"),
        ([{"accuracy": 0.5, "median_ms": math.inf}], {}, "Received: median_ms=inf"),
    ],
    ids=str,
)
def test_bad_input_of_tradeoff(results, arguments, message):
    with pytest.raises(ValueError, match=message):
        elrt.plot.tradeoff(results, **arguments)


def test_figures_can_share_axes():
    from matplotlib.figure import Figure

    figure = Figure()
    left, right = figure.subplots(1, 2)
    errors = {"orthogonality_error_mean": [0.1], "orthogonality_error_max": [0.1]}
    assert elrt.plot.orthogonality(errors, axis=left) is figure and elrt.plot.tradeoff(ROWS, axis=right) is figure
    assert left.get_xlabel() == "epoch" and len(drawn_points(right)) == 4 and right.get_legend()


DRAWINGS = {
    "spectra": lambda path: elrt.plot.spectra(dense_model(), path=path),
    "orthogonality": lambda path: elrt.plot.orthogonality(
        {"orthogonality_error_mean": [0.1], "orthogonality_error_max": [0.1]}, path=path
    ),
    "rank_plan": lambda path: elrt.plot.rank_plan({"a": ("svd", 3)}, path=path),
    "tradeoff": lambda path: elrt.plot.tradeoff(ROWS, path=path),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_saved_pictures_are_whole(tmp_path, name):
    from matplotlib.image import imread

    path = tmp_path / "picture.png"
    figure = DRAWINGS[name](path)
    pixels = imread(path)  # decodes all of it
    width, height = figure.get_size_inches()
    assert pixels.shape[:2] == (round(200 * height), round(200 * width)) and pixels.std() > 0.01
    assert [entry.name for entry in tmp_path.iterdir()] == ["picture.png"]
    assert DRAWINGS[name](str(tmp_path / "picture.svg")) and "</svg>" in (tmp_path / "picture.svg").read_text()
    with pytest.raises(OSError, match="none"):
        DRAWINGS[name](tmp_path / "none" / "picture.png")


@pytest.mark.thorough
def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path):
    (tmp_path / "p.png").write_bytes(b"old")
    program = (
        "import resource, elrt_keras\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "elrt_keras.plot.rank_plan({'a': ('svd', 3)}, path='p.png')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert "File too large: 'p.png'" in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.png"] and (tmp_path / "p.png").read_bytes() == b"old"


def test_labels_lie_inside_the_picture():
    """Checks letters at the width of a phone: at least 7 pixels high in a picture 400 wide, and none cut off."""
    names = itertools.cycle(["stage1_block1_1_conv", "backbone/blocks/stage4/block3/conv2_of_the_residual_branch"])
    plan = {f"{name}{index}": ("tucker2", (8, 12)) for index, name in zip(range(20), names)}
    rows = [{**ROWS[0], "path": f"{name}/{index}.tflite"} for index, name in zip(range(12), names)]
    for figure in (elrt.plot.rank_plan(plan), elrt.plot.tradeoff(rows), elrt.plot.spectra(dense_model())):
        figure.draw_without_rendering()
        box = figure.bbox
        for axis in figure.axes:
            low, high = sorted(axis.get_ylim())  # ticks beyond are not drawn
            ticks = [label for label in axis.get_yticklabels() if low <= label.get_position()[1] <= high]
            texts = [axis.title, axis.xaxis.label, axis.yaxis.label, *ticks]
            for text in (one for one in texts if one.get_text()):
                extent = text.get_window_extent()
                assert box.x0 <= extent.x0 and extent.x1 <= box.x1 and box.y0 <= extent.y0 and extent.y1 <= box.y1
                assert text.get_fontsize() / 72 * 400 / figure.get_size_inches()[0] >= 7
            assert axis.get_window_extent().width > 0.2 * box.width


@pytest.mark.parametrize("accuracies", [(0.9, 0.8), (0.9, None)])
def test_the_command_draws_the_same_picture(tmp_path, accuracies):
    from elrt_keras.launch import latency

    paths = [str(tmp_path / f"{name}.tflite") for name in "ab"]
    for path, accuracy in zip(paths, accuracies):
        (tmp_path / f"{path}.json").write_text(json.dumps({"accuracy": accuracy, "macs": 1}))
    rows = [{**ROWS[0], "path": path, "accuracy": accuracy} for path, accuracy in zip(paths, accuracies)]
    latency.check_plot(paths, tmp_path / "drawn.png")
    latency.plot(rows, tmp_path / "drawn.png")
    elrt.plot.tradeoff(rows, cost="latency", path=tmp_path / "expected.png")
    assert (tmp_path / "drawn.png").read_bytes() == (tmp_path / "expected.png").read_bytes()


def test_the_curves_of_a_run_hold_the_orthogonality(tmp_path):
    from elrt_keras.launch.plots import plot_curves

    rows = [(0, 2.0, 2.1, 0.3, 0.2, 0.3, 0.1), (1, 1.0, 1.1, 0.6, 0.5, 0.2, 0.1)]
    names = ["epoch", "loss", "val_loss", "accuracy", "val_accuracy"]
    errors = ["orthogonality_error_max", "orthogonality_error_mean"]
    widths = []
    for header in (names + errors, names):  # low-rank, dense
        with open(tmp_path / "history.csv", "w", newline="") as file:
            csv.writer(file).writerows([header, *(row[: len(header)] for row in rows)])
        plot_curves(tmp_path / "history.csv", tmp_path / "curves.png", "a run")
        widths.append(int.from_bytes((tmp_path / "curves.png").read_bytes()[16:20]))
    assert widths == [3 * 800, 2 * 800]


def test_a_file_called_like_the_folder_of_exports():
    assert short_names(["export.tflite"]) == ["export"]
    assert short_names(["a/export/m.tflite", "b/export/m.tflite", "export.tflite"])[2].endswith("export")
