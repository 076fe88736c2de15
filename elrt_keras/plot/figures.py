"""Matplotlib figures in one style. They need no display, are readable on a phone, and are saved atomically."""

import io
import os
from typing import TYPE_CHECKING, Any

from elrt_keras.atomic import Path, write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, DPI = 4.8, 200  # inches, pixels per inch
SMALL, MEDIUM = 7.5, 9  # points
LONGEST = 30  # characters of a name


def check_path(path: Path | None) -> None:
    """Checks that the suffix of a path is a known type of picture. `None` is accepted.

    Raises:
        ValueError: if it is not; the message lists the types.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if path is not None and (not isinstance(path, (str, os.PathLike)) or _suffix(path) not in kinds):
        raise ValueError(f"Expected a plot of a kind in {kinds}. Received: path={path!r}")


def _suffix(path):
    return os.path.splitext(path)[1].removeprefix(".").lower()


def new(height: float, width: float = WIDTH) -> "Figure":
    """Makes a `Figure` of a height and a width in inches."""
    from matplotlib.figure import Figure  # needs no display and does not change the figures of a notebook

    return Figure(figsize=(width, height), layout="constrained")


def finish(figure: Any, path: Path | None) -> "Figure":
    """Saves a figure if `path` is given, in the type of its suffix. Returns the figure.

    Raises:
        OSError: for a full disk or a missing permission; no part of the file stays.
    """
    if path is not None:
        picture = io.BytesIO()
        figure.savefig(picture, dpi=DPI, format=_suffix(path))
        write_bytes(path, picture.getvalue())
    return figure


def add_legend(figure: Any, place: str, columns: int) -> None:
    """Adds one legend for all panels, with every label once.

    Args:
        figure: a `Figure`.
        place: position, as matplotlib's `loc`.
        columns: int, columns of the legend.
    """
    handles = {}
    for axis in figure.axes:
        handles.update({label: handle for handle, label in zip(*axis.get_legend_handles_labels())})
    figure.legend(handles.values(), handles, loc=place, ncols=columns, fontsize=SMALL)


def literal(text: str) -> str:
    """Returns a user's text for a figure. Dollar signs are no mathematics, and labels that begin with `_` are shown.

    Example:

    >>> print(elrt_keras.plot.figures.literal("d$imgs_$2024"))
    d\\$imgs_\\$2024
    """
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def shortened(name: str) -> str:
    """Returns a layer's name as literal text; of a long name only the end.

    Example:

    >>> elrt_keras.plot.figures.shortened("backbone/stage1_block1/conv2_of_the_residual_branch")
    '…1/conv2_of_the_residual_branch'
    """
    return literal(name if len(name) <= LONGEST else f"…{name[-LONGEST:]}")
