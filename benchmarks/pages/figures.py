"""Figures for the pages. The last argument of each function is the path of the picture."""

import textwrap

import numpy as np

from benchmarks.pages.measured import BUDGETS, ratios
from elrt_keras.plot import figures


def speedups(results, goal, path):
    """Draws speed-up over MACs reduction, a line for each model and kind, with the goal."""
    figure = figures.new(4.6, 6.4)
    axis = figure.subplots()
    for index, result in enumerate(results):
        faster, macs = ratios(result["seconds"], "dense"), result["macs"]
        for kind, style in (("low_rank", "o-"), ("thin", "s:")):
            variants = [name for name in (f"{kind}_{budget}" for budget in BUDGETS) if name in faster]
            points = [[macs["dense"] / macs[name] for name in variants], [faster[name][0] for name in variants]]
            axis.plot(*points, style, color=f"C{index}", label=f"{result['model']}, {kind.replace('_', '-')}")
    ends = np.array([1.0, 4.2])
    axis.plot(ends, ends, color="gray", linewidth=0.8, label="speed-up = MACs reduction")
    axis.plot(ends, goal * ends, color="gray", linestyle="--", linewidth=0.8, label=f"{goal} of it")
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set(xlabel="MACs reduction (×)", ylabel="speed-up of a training step (×)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=110)


def growth(curves, path):
    """Draws milliseconds over sizes, both logarithmic, a panel for each curve."""
    rows = -(-len(curves) // 3)
    figure = figures.new(3.6 * rows, 11)
    axes = list(figure.subplots(rows, 3, squeeze=False).flat)
    for axis, (name, curve) in zip(axes, curves.items()):
        for series, points in curve["seconds"].items():
            milliseconds = [1e3 * seconds for seconds in points.values()]
            axis.plot([float(size) for size in points], milliseconds, "o-", label=series)
        label = "\n".join(textwrap.wrap(curve["axis"], 36))
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="ms", title=name.replace("_", " "))
        sizes = sorted({float(size) for points in curve["seconds"].values() for size in points})
        axis.set_xticks(sizes, labels=[f"{size:g}" for size in sizes], minor=False)
        axis.set_xticks([], minor=True)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    for axis in axes[len(curves) :]:
        axis.set_axis_off()
    figure.savefig(path, dpi=100)


def rank_grid(seconds, path):
    """Draws medians and quartiles over neighbouring ranks, relative to the smallest, a panel for each series."""
    figure = figures.new(3.4, 11)
    for axis, (name, of_rank) in zip(figure.subplots(1, len(seconds), squeeze=False).flat, seconds.items()):
        ranks = [int(rank) for rank in of_rank]
        low, middle, high = np.percentile(np.array(list(of_rank.values())), (25, 50, 75), axis=1)
        axis.plot(ranks, middle / middle[0], "o-")
        axis.fill_between(ranks, low / middle[0], high / middle[0], alpha=0.25)
        axis.set(xlabel="rank", ylabel=f"time, of that at rank {ranks[0]}", title=name)
        axis.set_xticks([rank for rank in ranks if rank % 16 == 0])
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def trainings(runs, path):
    """Draws test accuracy and orthogonality error over the epochs, a line for each run."""
    figure = figures.new(3.8, 10)
    accuracy, error = figure.subplots(1, 2)
    for axis, key, scale in ((accuracy, "val_accuracy", 100), (error, "orthogonality_error_mean", 1)):
        for run in [run for run in runs if key in run["history"][0]]:
            axis.plot(*_over_epochs(run["history"], key, scale), marker=".", label=run["name"])
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend()
    accuracy.set(xlabel="epoch", ylabel="test accuracy (%)")
    error.set(xlabel="epoch", ylabel="mean orthogonality error of the factors", yscale="log")
    figure.savefig(path, dpi=110)


def comparison(accuracies, dense, histories, path):
    """Draws a dot for each seed beside the dense network's mean, and test accuracies over the epochs, by label."""
    labels = [textwrap.fill(label, 34) for label in accuracies]
    # Each row is as high as an average label: a higher label can use the room of its neighbours.
    rows = 0.6 * len(labels) + 0.4 * sum(label.count("\n") + 1 for label in labels)
    figure = figures.new(2.6 + 0.28 * rows)
    # Subfigures, so that long labels above take no width from the curves below.
    parts = figure.subfigures(2, 1, height_ratios=[max(1, 0.16 * rows), 1.4])
    ends, over_epochs = (part.subplots() for part in parts)
    ends.axvline(sum(dense) / len(dense), color="black", linewidth=1, label="dense, mean")
    for row, values in enumerate(accuracies.values()):
        ends.plot(values, [row] * len(values), "o", color=f"C{row % 10}", markersize=4, alpha=0.8)
    ends.set_yticks(range(len(accuracies)), labels)
    ends.invert_yaxis()
    ends.legend(fontsize=figures.SMALL, loc="lower right")
    _label(ends, "test accuracy (%), a dot for each seed")
    for row, history in enumerate(histories.values()):
        style = "-" if row < 10 else "--"
        over_epochs.plot(*_over_epochs(history), style, color=f"C{row % 10}", linewidth=1)
    _label(over_epochs, "epoch", "test accuracy (%)")
    figures.finish(figure, path)


def twins(networks, path):
    """Draws test accuracies over the epochs, a panel for each network: mean and range of the seeds.

    Args:
        networks: dict from network to a dict from label to the epochs of its runs, one list for each seed.
        path: path of the picture.
    """
    figure = figures.new(0.5 + 1.5 * len(networks) + 0.1 * max(map(len, networks.values())))
    axes = figure.subplots(len(networks), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (network, groups) in zip(axes, networks.items()):
        lowest = 100.0
        for color, (label, seeds) in enumerate(groups.items()):
            epochs = [line["epoch"] + 1 for line in seeds[0]]
            values = [sorted(100 * line["val_accuracy"] for line in lines) for lines in zip(*seeds)]
            axis.fill_between(epochs, [v[0] for v in values], [v[-1] for v in values], color=f"C{color}", alpha=0.25)
            axis.plot(epochs, [sum(v) / len(v) for v in values], color=f"C{color}", linewidth=1, label=label)
            lowest = min(lowest, *(v[0] for v in values[len(values) // 4 :]))
        # Cut off the first epochs, far below the others: they would flatten the ends of the curves.
        axis.set_ylim(bottom=lowest)
        axis.set_title(network, fontsize=figures.MEDIUM)
        _label(axis)
        axis.set_ylabel("test accuracy (%)", fontsize=figures.SMALL)
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    axes[-1].set_xlabel("epoch", fontsize=figures.MEDIUM)
    figures.add_legend(figure, "outside lower center", 2)
    figures.finish(figure, path)


def accuracy_over_cost(points, path):
    """Draws test accuracies over training costs, from a dict of label to `(cost, accuracies in percent)`."""
    figure = figures.new(2.8 + 0.14 * len(points))
    axis = figure.subplots()
    for row, (label, (cost, values)) in enumerate(points.items()):
        style = {"color": f"C{row}", "markersize": 5, "alpha": 0.8, "label": label}
        axis.plot([cost] * len(values), values, "os^Dvp"[row % 6], **style)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    _label(axis, "MACs of the training, of dense", "test accuracy (%)", which="both")
    figures.add_legend(figure, "outside lower center", 1)
    figures.finish(figure, path)


def accuracy_over_macs(networks, path):
    """Test accuracies over the MACs of one image, a colour for each network and a mark for each kind of training.

    Args:
        networks: dict from network to a dict from kind to `(millions of MACs, accuracies in percent)`.
        path: path of the picture.
    """
    figure = figures.new(4.2)
    axis = figure.subplots()
    kinds = list(dict.fromkeys(kind for points in networks.values() for kind in points))
    for color, (network, points) in enumerate(networks.items()):
        for kind, (macs, values) in points.items():
            mark, filled = "os^Dvp*"[kinds.index(kind) % 7], kind == "dense"
            style = {"color": f"C{color}", "markersize": 6, "markerfacecolor": None if filled else "none"}
            axis.plot([macs] * len(values), values, mark, **style)
        axis.plot([], [], "o", color=f"C{color}", label=network)
    for number, kind in enumerate(kinds):
        axis.plot([], [], "os^Dvp*"[number % 7], color="gray", label="\n".join(textwrap.wrap(kind, 40)))
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    _label(axis, "MACs of one image, millions", "test accuracy (%)", which="both")
    figures.add_legend(figure, "outside lower center", 2)
    figures.finish(figure, path)


def formats(networks, path):
    """Draws test accuracy over LiteRT speed-up: a panel for each network and kind of file, a point for each format.

    Args:
        networks: dict from network to a dict from format to `(speed-up in float32, in int8, accuracy in percent)`.
        path: path of the picture.
    """
    figure = figures.new(0.4 + 2.1 * len(networks))
    panels = figure.subplots(len(networks), 2, sharey="row", squeeze=False)
    for row, (network, points) in zip(panels, networks.items()):
        for kind, (axis, label) in enumerate(zip(row, ("float32", "int8"))):
            for number, (name, values) in enumerate(points.items()):
                axis.plot(values[kind], values[2], "os^Dvp*"[number % 7], color=f"C{number}", label=name)
            axis.set_title(f"{network}, {label}", fontsize=figures.MEDIUM)
            _label(axis, "speed-up on LiteRT (×)", "" if kind else "test accuracy (%)")
    figures.add_legend(figure, "outside lower center", 4)
    figures.finish(figure, path)


def shrink(networks, path):
    """Draws accuracies over MACs: a panel for each network, a line for each way to shrink or train.

    Args:
        networks: dict from network to a dict from label to `{part of the MACs: accuracy}`.
        path: path of the picture.
    """
    figure = figures.new(0.6 + 2.4 * len(networks))
    for axis, (network, curves) in zip(figure.subplots(len(networks), 1, squeeze=False)[:, 0], networks.items()):
        for number, (label, found) in enumerate(curves.items()):
            parts, values = ([100 * value for value in of] for of in zip(*sorted(found.items())))
            style = "s--" if label == "trained there" else "o-"
            axis.plot(parts, values, style, color=f"C{number}", label=label, markersize=4, linewidth=1)
        axis.set_title(network, fontsize=figures.MEDIUM)
        _label(axis, "MACs (% of dense)", "test accuracy (%)")
    figures.add_legend(figure, "outside lower center", 2)
    figures.finish(figure, path)


def _over_epochs(history, key="val_accuracy", scale=100):
    return zip(*((line["epoch"] + 1, scale * line[key]) for line in history))


def _label(axis, x="", y="", which="major"):
    axis.set_xlabel(x, fontsize=figures.MEDIUM)
    axis.set_ylabel(y, fontsize=figures.MEDIUM)
    axis.grid(alpha=0.3, which=which)
    axis.tick_params(labelsize=figures.SMALL, which=which)
