"""Pictures of a run."""

import math

from elrt_keras.plot import figures, orthogonality, records

_PANELS = {
    "cross-entropy": {"train": "cross_entropy", "test": "val_cross_entropy"},
    "loss": {"train": "loss", "test": "val_loss"},
    "accuracy": {"train": "accuracy", "test": "val_accuracy"},
}


def plot_curves(history_csv, path, title):
    """Draws loss (without penalties), accuracy and orthogonality error over the epochs of a `history.csv`.

    Args:
        history_csv: file written by `keras.callbacks.CSVLogger`.
        path: path of the picture, written atomically.
        title: title of the figure.
    """
    columns = {name: list(map(records.number, values)) for name, values in records.columns(history_csv).items()}
    epochs = [int(epoch) + 1 for epoch in columns["epoch"]]
    panels = {name: series for name, series in _PANELS.items() if all(_has_values(columns, c) for c in series.values())}
    if "cross-entropy" in panels:
        del panels["loss"]
    is_low_rank = _has_values(columns, "orthogonality_error_mean")
    count = len(panels) + is_low_rank
    figure = figures.new(3.4, width=4 * count)
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis, (name, series) in zip(axes, panels.items()):
        for label, column in series.items():
            axis.plot(epochs, columns[column], marker=".", label=label)
        axis.set(xlabel="epoch", ylabel=name)
        axis.grid(alpha=0.3)
        axis.legend()
    if is_low_rank:
        orthogonality(history_csv, axis=axes[-1])
    figure.suptitle(figures.literal(title))
    figures.finish(figure, path)


def _has_values(columns, name):
    """Reports if a column has a number in some row; a dense run has no orthogonality errors."""
    return not all(map(math.isnan, columns.get(name, ())))
