"""A bar for what takes minutes."""

import sys
from collections.abc import Iterable


def progress_bar(items: Iterable, told: str) -> Iterable:
    """The items one after another, with a bar on a terminal that goes away at the end.

    Args:
        items: what is worked through.
        told: what is being done, before the bar.
    """
    if sys.stderr is None or not sys.stderr.isatty():  # a service or a windowed program may have none
        return items
    # rich is imported on use so that importing the package stays quick.
    from rich.console import Console
    from rich.progress import track

    return track(items, told, console=Console(stderr=True), transient=True)
