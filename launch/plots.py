"""Pictures of a run."""

import csv
import math

from elrt_keras.plot import orthogonality


def plot_curves(history_csv, path, title):
    """Draws loss, accuracy and orthogonality error over the epochs of a `history.csv` into a PNG.

    Args:
        history_csv: file written by `keras.callbacks.CSVLogger`.
        path: the PNG.
        title: title of the figure.
    """
    # The object interface needs no display and leaves a notebook's own figures alone.
    from matplotlib.figure import Figure

    with open(history_csv, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) + 1 for row in rows]
    panels = [
        ("loss (with penalties)", {"train": "loss", "test": "val_loss"}),
        ("accuracy", {"train": "accuracy", "test": "val_accuracy"}),
    ]
    panels = [(name, series) for name, series in panels if all(_has_values(rows, c) for c in series.values())]
    is_low_rank = _has_values(rows, "orthogonality_error_mean")
    count = len(panels) + is_low_rank
    figure = Figure(figsize=(4 * count, 3.4), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis, (name, series) in zip(axes, panels):
        for label, column in series.items():
            axis.plot(epochs, [float(row[column]) for row in rows], marker=".", label=label)
        axis.set(xlabel="epoch", ylabel=name)
        axis.grid(alpha=0.3)
        axis.legend()
    if is_low_rank:
        orthogonality(rows, axis=axes[-1])
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _has_values(rows, column):
    """Whether a column has a number in some row; a dense run has no orthogonality errors."""
    return any(not math.isnan(float(row.get(column) or "nan")) for row in rows)
