"""Pictures of a run."""

import csv
import math


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
        ("orthogonality error", {"mean": "orthogonality_error_mean", "largest": "orthogonality_error_max"}),
    ]
    panels = [(name, series) for name, series in panels if all(_has_values(rows, c) for c in series.values())]
    figure = Figure(figsize=(4 * len(panels), 3.4), layout="constrained")
    for axis, (name, series) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for label, column in series.items():
            axis.plot(epochs, [float(row[column]) for row in rows], marker=".", label=label)
        axis.set(xlabel="epoch", ylabel=name)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _has_values(rows, column):
    """Whether a column has a number in some row; a dense run has no orthogonality errors."""
    return any(not math.isnan(float(row.get(column) or "nan")) for row in rows)
