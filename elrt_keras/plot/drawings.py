"""Figures of spectra, orthogonality, rank plans and trade-offs."""

import collections.abc
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np

from elrt_keras import formats
from elrt_keras.atomic import Path
from elrt_keras.checks import one_of
from elrt_keras.plot import figures, records
from elrt_keras.plot.kernels import layer_spectra
from elrt_keras.ranks import RankPlan
from elrt_keras.ranks.plan import Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LIGHT = 0.3  # opacity of bars for the dense model and full ranks
_MARKERS = "os^vDP*X<"  # their number differs from that of colours, so that pairs of both do not repeat soon
_ERRORS = {"mean": "orthogonality_error_mean", "largest": "orthogonality_error_max"}
_COSTS: dict[Any, tuple[str, dict[str, float]]] = {
    "latency": ("median latency (ms)", records.LATENCIES),
    "macs": ("MACs of one example (millions)", records.MACS),
}


def spectra(
    model: keras.Model,
    *,
    format: str = "tucker2",
    plan: RankPlan | Mapping[str, Entry] | None = None,
    layers: str | Sequence[str] | None = None,
    path: Path | None = None,
) -> "Figure":
    """Draws the singular values σ_i of every layer's kernel, relative to the largest. They show possible low ranks.

    Each layer has a panel, with one line per rank of its format: the singular values of the unfolding of this rank (for
    `cp` the weights of orthogonal rank-one terms). `plan_ranks(method="energy")` uses the same values. A dashed line
    shows the rank of a low-rank layer, or the rank of a dense layer in `plan`.

    Args:
        model: a built model, dense or low-rank. For low-rank layers the composed kernel and their own format are used.
        format: name of the format whose unfoldings are used for dense kernels; kernels of one position are matrices
            (`svd`).
        plan: a `RankPlan`, or a mapping of the same entries, with formats and ranks to show for dense layers.
        layers: name or pattern, or a list of them, of the layers to draw; `None` for all.
        path: path to save the picture.

    Returns:
        The `Figure`, with one `Axes` per layer in the order of the model. No axis has a unit.

    Raises:
        ValueError: for a model without such layers, a name that matches no layer, weights that are not finite, ranks
            above the full ones, or a path of an unknown type.
        OSError: if `path` cannot be written.

    Example:

    >>> model = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(6, 3, name="conv")])
    >>> figure = elrt_keras.plot.spectra(model, plan={"conv": ("tucker2", (2, 3))})
    >>> [line.get_label() for line in figure.axes[0].get_lines()[::2]]
    ['r_in', 'r_out']
    """
    figures.check_path(path)
    spectra_by_path = layer_spectra(model, format, plan, layers)
    columns = min(2, len(spectra_by_path))
    rows = -(-len(spectra_by_path) // columns)
    figure = figures.new(0.8 + 1.5 * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    colors = {}
    for axis, (name, spectra_of_layer) in zip(panels, spectra_by_path.items()):
        _draw_spectra(axis, spectra_of_layer, colors)
        axis.set_title(figures.shortened(name), fontsize=figures.SMALL)
        axis.set_ylim(0, 1.06)
        axis.tick_params(labelsize=figures.SMALL)
        axis.grid(alpha=0.3)
    for axis in panels[len(spectra_by_path) :]:
        axis.remove()
    figures.add_legend(figure, "outside upper center", 5)
    figure.supxlabel("index i of the singular value (dashed: rank)", fontsize=figures.MEDIUM)
    figure.supylabel("singular value σ$_i$ / σ$_1$", fontsize=figures.MEDIUM)
    return figures.finish(figure, path)


def orthogonality(history: Any, *, axis: "Axes | None" = None, path: Path | None = None) -> "Figure":
    """Draws the orthogonality error of the factors over the epochs: mean and maximum over all factors.

    The error of a factor is ‖S − I‖_F / √Φ, where S is its smaller Gram matrix, of Φ × Φ: 0 if it is orthonormal.

    Args:
        history: the result of `fit` with an `OrthogonalityLogger` among its callbacks, its `.history`, a list of rows
            by epoch, or the path of a `history.csv` or of a run directory with one. Epochs without an error, such as
            those of full-rank warm-up, are left out.
        axis: matplotlib `Axes` to draw on; `None` for a new figure.
        path: path to save the picture.

    Returns:
        The `Figure`. Epochs count from 1. If the errors span more than a factor of 10, their axis is logarithmic.

    Raises:
        ValueError: for any other `history`, a history without these errors, or a path of an unknown type.
        OSError: if `path` cannot be written.

    Example:

    >>> history = {"orthogonality_error_mean": [0.2, 0.1], "orthogonality_error_max": [0.4, 0.3]}
    >>> figure = elrt_keras.plot.orthogonality(history)
    >>> figure.axes[0].get_ylabel()
    'orthogonality error ‖S − I‖$_F$ / √Φ'
    """
    figures.check_path(path)
    columns = records.columns(history)
    errors = {label: [records.number(value) for value in columns.get(name, ())] for label, name in _ERRORS.items()}
    if not all(any(map(math.isfinite, values)) for values in errors.values()):
        raise ValueError(
            f"Expected a history with numbers in {list(_ERRORS.values())}, which OrthogonalityLogger adds for a "
            f"low-rank model. Received: columns {sorted(columns)}"
        )
    axis = figures.new(3.0).subplots() if axis is None else axis
    for label, values in errors.items():
        epochs = columns.get("epoch", range(len(values)))
        axis.plot([int(records.number(epoch)) + 1 for epoch in epochs], values, marker=".", label=label)
    known = [value for values in errors.values() for value in values if math.isfinite(value)]
    if 0 < 10 * min(known) < max(known):
        axis.set_yscale("log")
    axis.set(xlabel="epoch", ylabel="orthogonality error ‖S − I‖$_F$ / √Φ")
    axis.xaxis.get_major_locator().set_params(integer=True)  # pyright: ignore[reportCallIssue]  (a MaxNLocator)
    axis.grid(alpha=0.3)
    axis.legend()
    return figures.finish(axis.figure, path)


def rank_plan(plan: RankPlan | Mapping[str, Entry] | Path, *, path: Path | None = None) -> "Figure":
    """Draws a rank plan: the ranks of each layer beside its full ranks, and the MACs of each layer before and after.

    Args:
        plan: a `RankPlan`, a mapping of the same entries, or the path of a plan's JSON file. Full ranks and MACs are
            drawn if `plan.costs` contains them; an entry set by hand has none.
        path: path to save the picture.

    Returns:
        The `Figure`. The left panel shows the ranks, with full ranks in a lighter colour. If MACs are known, the right
        panel shows those of each layer, in % of the dense total of these layers, with dense MACs in a lighter colour.

    Raises:
        ValueError: for any other `plan`, a plan without layers, or a path of an unknown type.
        OSError: if `path` cannot be written.

    Example:

    >>> figure = elrt_keras.plot.rank_plan({"conv1": ("tucker2", (8, 12)), "conv2": None})
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['conv1', 'conv2']
    """
    figures.check_path(path)
    plan = _opened_plan(plan)
    costs = {
        y: (plan.costs[name]["macs"], plan.costs[name]["planned_macs"])
        for y, name in enumerate(plan)
        if {"macs", "planned_macs"} <= set(plan.costs.get(name, ()))
    }
    figure = figures.new(1.2 + 0.24 * len(plan))
    panels = figure.subplots(1, 2 if costs else 1, sharey=True, squeeze=False)[0]
    _draw_ranks(panels[0], plan)
    if costs:
        _draw_macs(panels[1], costs)
    panels[0].set_yticks(range(len(plan)), map(figures.shortened, plan))
    panels[0].set_ylim(len(plan) - 0.4, -0.6)
    for panel in panels:
        panel.tick_params(labelsize=figures.SMALL)
        panel.grid(alpha=0.3, axis="x")
    figures.add_legend(figure, "outside upper center", 5)
    return figures.finish(figure, path)


def tradeoff(
    results: Iterable[Any],
    *,
    cost: Literal["latency", "macs"] | None = None,
    axis: "Axes | None" = None,
    path: Path | None = None,
) -> "Figure":
    """Draws accuracy against latency or MACs, with one point per result, and the Pareto front.

    Args:
        results: list of mappings or objects. Accuracy (0 to 1): `accuracy` or `test_accuracy`. Latency: `median_ms`,
            `latency_ms`, or `latency` in seconds. MACs: `macs`. Name: `name`, `path` (shortened) or `model` with its
            `format`; results with the same name form one series. Rows of `elrt-benchmark litert` and summaries of runs
            have these entries. Results without an accuracy or a cost are left out.
        cost: `"latency"` or `"macs"`; `None` for the one that more results have (latency, if both are equal).
        axis: matplotlib `Axes` to draw on; `None` for a new figure.
        path: path to save the picture.

    Returns:
        The `Figure`, with accuracy in %, latency in ms, MACs in millions.

    Raises:
        ValueError: for any other `results`, no result with both numbers, or a path of an unknown type.
        OSError: if `path` cannot be written.

    Example:

    >>> runs = [{"name": "dense", "accuracy": 0.83, "macs": 40e6}, {"name": "elrt", "accuracy": 0.80, "macs": 16e6}]
    >>> figure = elrt_keras.plot.tradeoff(runs)
    >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
    ('MACs of one example (millions)', 'test accuracy (%)')
    """
    figures.check_path(path)
    one_of(cost, (None, *_COSTS), "cost")
    if not isinstance(results, collections.abc.Iterable) or isinstance(results, (str, bytes, collections.abc.Mapping)):
        raise ValueError(f"Expected a list of results. Received: results={results!r}")
    results = list(results)
    known = {kind: records.points(results, entries) for kind, (_, entries) in _COSTS.items() if cost in (None, kind)}
    cost = max(known, key=lambda kind: len(known[kind]))
    if not known[cost]:
        entries = [entry for kind in known for entry in _COSTS[kind][1]]
        raise ValueError(
            f"Expected results with one of {list(records.ACCURACIES)} and one of {entries}. "
            f"Received: results={str(results):.200}"
        )
    series = {}
    for name, point in zip(records.names([results[index] for index in known[cost]]), known[cost].values()):
        series.setdefault(name, []).append(point)
    legend_columns = 2 if max(map(len, series)) <= figures.LONGEST else 1
    own = axis is None
    axis = figures.new(3.2 + 0.17 * (1 + len(series)) / legend_columns).subplots() if own else axis
    front = np.array(records.pareto_front(known[cost].values()))
    axis.plot(*front.T, color="gray", linewidth=1, drawstyle="steps-post", label="Pareto front", zorder=1)
    for number, (name, points) in enumerate(series.items()):
        axis.plot(*np.array(points).T, _MARKERS[number % len(_MARKERS)], label=figures.literal(name), alpha=0.8)
    threads = {records.entry(results[index], "threads") for index in known[cost]}
    note = f", threads: {threads.pop()}" if cost == "latency" and len(threads) == 1 and None not in threads else ""
    axis.set(xlabel=_COSTS[cost][0] + note, ylabel="test accuracy (%)")
    axis.margins(x=0.1, y=0.1)
    axis.grid(alpha=0.3)
    # A legend, because points of one model are close together and names beside them would overlap.
    if own:
        figures.add_legend(axis.figure, "outside lower center", legend_columns)
    else:
        axis.legend(fontsize=figures.SMALL)
    return figures.finish(axis.figure, path)


def _draw_spectra(axis, layer, colors):
    for index, (name, values) in enumerate(layer.values.items()):
        color = colors.setdefault(name, f"C{len(colors)}")
        relative = values / max(values[0], np.finfo("float64").tiny)
        axis.plot(np.arange(1, len(values) + 1), relative, color=color, label=name)
        if name in layer.ranks:
            # The dashes are shifted, so that lines of equal ranks are both visible.
            dashes = (3 * index, (3, 3 * max(1, len(layer.ranks) - 1)))
            axis.axvline(layer.ranks[name], color=color, linestyle=dashes, gid="rank")


def _opened_plan(plan):
    if isinstance(plan, (str, os.PathLike)):
        plan = RankPlan.load(plan)
    if not isinstance(plan, collections.abc.Mapping) or not plan:
        raise ValueError(f"Expected a rank plan with layers, or the path of one. Received: plan={plan!r}")
    return plan if isinstance(plan, RankPlan) else RankPlan(plan)


def _draw_ranks(axis, plan):
    bars = {}
    for y, (name, planned) in enumerate(plan.items()):
        if planned.is_dense:
            axis.annotate("dense", (0, y), (2, 0), textcoords="offset points", va="center", size=6, color="gray")
            continue
        costs = plan.costs.get(name, {})
        layer_format = formats.grouped(formats.get(planned.format), costs.get("groups", 1))  # pyright: ignore
        shape = costs.get("kernel_shape")
        fits = shape is not None and len(shape) - 2 in layer_format.spatial_dims
        full = layer_format.max_ranks(shape) if fits else (math.nan,) * len(planned.ranks)  # pyright: ignore
        height = 0.8 / len(planned.ranks)
        for index, bar in enumerate(zip(planned.ranks, full)):
            middle = y - 0.4 + height * (index + 0.5)
            bars.setdefault(layer_format.rank_names[index], []).append((middle, height, *bar))
    for number, (rank_name, rank_bars) in enumerate(bars.items()):
        middles, heights, ranks, full = map(np.array, zip(*rank_bars))
        axis.barh(middles, full, heights, color=f"C{number}", alpha=_LIGHT)
        axis.barh(middles, ranks, heights, color=f"C{number}", label=rank_name)
    has_full = any(not math.isnan(bar[-1]) for rank_bars in bars.values() for bar in rank_bars)
    axis.set_xlabel("rank (light: full rank)" if has_full else "rank", fontsize=figures.MEDIUM)
    axis.set_xlim(left=0)


def _draw_macs(axis, costs):
    dense, planned = np.array(list(costs.values()), "float64").T
    total = max(dense.sum(), 1.0)
    axis.barh(list(costs), 100 * dense / total, color="gray", alpha=_LIGHT)
    axis.barh(list(costs), 100 * planned / total, color="gray", label="MACs")
    part = f"{planned.sum() / 1e6:.3g} of {total / 1e6:.3g} M MACs: {planned.sum() / total:.0%}"
    axis.set_title(part, fontsize=figures.SMALL)
    axis.set_xlabel("MACs (% of dense, light)", fontsize=figures.MEDIUM)
