"""The pictures of the sections on accuracy."""

import textwrap

from elrt_keras.plot import figures


def comparison(accuracies, dense, histories, path):
    """A dot for each run beside the dense network's mean, and test accuracies over the epochs.

    Args:
        accuracies: dict from label to test accuracies in percent, one for each seed.
        dense: test accuracies of the dense network, in percent.
        histories: dict from label to the epochs of one run.
        path: where the picture goes.
    """
    labels = [textwrap.fill(label, 34) for label in accuracies]
    # A row as high as the labels on the average row, which have their neighbours' room too.
    rows = 0.6 * len(labels) + 0.4 * sum(label.count("\n") + 1 for label in labels)
    figure = figures.new(2.6 + 0.28 * rows)
    # Subfigures, so that long labels above take no width from the curves below.
    parts = figure.subfigures(2, 1, height_ratios=[max(1, 0.16 * rows), 1.4])
    ends, curves = (part.subplots() for part in parts)
    mean = sum(dense) / len(dense)
    ends.axvline(mean, color="black", linewidth=1, label="dense, mean")
    for row, values in enumerate(accuracies.values()):
        ends.plot(values, [row] * len(values), "o", color=f"C{row % 10}", markersize=4, alpha=0.8)
    ends.set_yticks(range(len(accuracies)), labels)
    ends.invert_yaxis()
    ends.set_xlabel("test accuracy (%), a dot for each seed", fontsize=figures.MEDIUM)
    ends.legend(fontsize=figures.SMALL, loc="lower right")
    for row, history in enumerate(histories.values()):
        epochs = [line["epoch"] + 1 for line in history]
        style = "-" if row < 10 else "--"
        curves.plot(epochs, [100 * line["val_accuracy"] for line in history], style, color=f"C{row % 10}", linewidth=1)
    curves.set_xlabel("epoch", fontsize=figures.MEDIUM)
    curves.set_ylabel("test accuracy (%)", fontsize=figures.MEDIUM)
    for axis in (ends, curves):
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=figures.SMALL)
    figures.finish(figure, path)


def curves(histories, path):
    """Test accuracies over the epochs.

    Args:
        histories: dict from label to the epochs of one run.
        path: where the picture goes.
    """
    figure = figures.new(2.6 + 0.14 * len(histories))
    axis = figure.subplots()
    for row, (label, history) in enumerate(histories.items()):
        epochs, values = zip(*((line["epoch"] + 1, 100 * line["val_accuracy"]) for line in history))
        axis.plot(epochs, values, color=f"C{row % 10}", linewidth=1, label=label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("epoch", fontsize=figures.MEDIUM)
    axis.set_ylabel("test accuracy (%)", fontsize=figures.MEDIUM)
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=figures.SMALL)
    figures.add_legend(figure, "outside lower center", 2)
    figures.finish(figure, path)


def twins(networks, path):
    """Test accuracies over the epochs, a panel for each network: the mean of the seeds, and the area they span.

    Args:
        networks: dict from network to a dict from label to the epochs of its runs, one list for each seed.
        path: where the picture goes.
    """
    figure = figures.new(0.7 + 1.5 * len(networks))
    axes = figure.subplots(len(networks), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (network, groups) in zip(axes, networks.items()):
        lowest = 100.0
        for color, (label, seeds) in enumerate(groups.items()):
            epochs = [line["epoch"] + 1 for line in seeds[0]]
            values = [sorted(100 * line["val_accuracy"] for line in lines) for lines in zip(*seeds)]
            axis.fill_between(epochs, [v[0] for v in values], [v[-1] for v in values], color=f"C{color}", alpha=0.25)
            axis.plot(epochs, [sum(v) / len(v) for v in values], color=f"C{color}", linewidth=1, label=label)
            lowest = min(lowest, *(v[0] for v in values[len(values) // 4 :]))
        # The first epochs, far below all others, would flatten what matters: where the curves end.
        axis.set_ylim(bottom=lowest)
        axis.set_title(network, fontsize=figures.MEDIUM)
        axis.set_ylabel("test accuracy (%)", fontsize=figures.SMALL)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=figures.SMALL)
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    axes[-1].set_xlabel("epoch", fontsize=figures.MEDIUM)
    figures.add_legend(figure, "outside lower center", 2)
    figures.finish(figure, path)


def accuracy_over_cost(points, path):
    """Test accuracy over what the training cost.

    Args:
        points: dict from label to `(cost as a multiple of dense training, accuracies in percent)`.
        path: where the picture goes.
    """
    figure = figures.new(2.8 + 0.14 * len(points))
    axis = figure.subplots()
    for row, (label, (cost, values)) in enumerate(points.items()):
        axis.plot(
            [cost] * len(values), values, "os^Dvp"[row % 6], color=f"C{row}", label=label, markersize=5, alpha=0.8
        )
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("MACs of the training, of dense", fontsize=figures.MEDIUM)
    axis.set_ylabel("test accuracy (%)", fontsize=figures.MEDIUM)
    axis.grid(alpha=0.3, which="both")
    axis.tick_params(labelsize=figures.SMALL, which="both")
    figures.add_legend(figure, "outside lower center", 1)
    figures.finish(figure, path)


def shrink(points, trained, path):
    """Accuracy over MACs of a shrunk model, beside models trained there.

    Args:
        points: dicts with `macs_fraction` and `accuracy` of the shrunk model.
        trained: dict from part of the MACs to accuracy.
        path: where the picture goes.
    """
    figure = figures.new(2.6)
    axis = figure.subplots()
    lines = (
        ("shrunk", [(p["macs_fraction"], p["accuracy"]) for p in points], "o-"),
        ("trained there", sorted(trained.items()), "s--"),
    )
    for label, pairs, style in lines:
        axis.plot(*([100 * value for value in values] for values in zip(*pairs)), style, label=label, markersize=4)
    axis.set_xlabel("MACs (% of dense)", fontsize=figures.MEDIUM)
    axis.set_ylabel("test accuracy (%)", fontsize=figures.MEDIUM)
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=figures.SMALL)
    axis.legend(fontsize=figures.SMALL)
    figures.finish(figure, path)
