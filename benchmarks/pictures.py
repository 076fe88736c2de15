"""The pictures of the page on performance."""

import textwrap

import numpy as np

from benchmarks.measure.variants import BUDGETS, ratios


def speedups(results, goal, path):
    """Speed-up over MACs reduction, a line for each model and kind, with the goal."""
    figure = _figure(6.4, 4.6)
    axis = figure.subplots()
    for index, result in enumerate(results):
        for kind, style in (("low_rank", "o-"), ("thin", "s:")):
            variants = [f"{kind}_{budget}" for budget in BUDGETS if f"{kind}_{budget}" in result["seconds"]]
            reductions = [result["macs"]["dense"] / result["macs"][variant] for variant in variants]
            times = [ratios(result["seconds"], "dense")[variant][0] for variant in variants]
            axis.plot(reductions, times, style, color=f"C{index}", label=f"{result['model']}, {kind.replace('_', '-')}")
    ends = np.array([1.0, 4.2])
    axis.plot(ends, ends, color="gray", linewidth=0.8, label="speed-up = MACs reduction")
    axis.plot(ends, goal * ends, color="gray", linestyle="--", linewidth=0.8, label=f"{goal} of it")
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set(xlabel="MACs reduction (×)", ylabel="speed-up of a training step (×)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=110)


def growth(curves, path):
    """Milliseconds over sizes, both logarithmic, one panel a curve."""
    rows = -(-len(curves) // 3)
    figure = _figure(11, 3.6 * rows)
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
    """Medians and quartiles over neighbouring ranks, relative to the smallest, one panel a series."""
    figure = _figure(11, 3.4)
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


def _figure(width, height):
    from matplotlib.figure import Figure  # needs no display and leaves a notebook's figures alone

    return Figure(figsize=(width, height), layout="constrained")
