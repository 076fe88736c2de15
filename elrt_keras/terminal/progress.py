"""A progress bar for work that takes minutes."""

import sys
from collections.abc import Iterable


def progress_bar(items: Iterable, told: str) -> Iterable:
    """Yields the items and shows a progress bar on a terminal, which disappears at the end.

    Args:
        items: the items to work on.
        told: text before the bar.
    """
    if sys.stderr is None or not sys.stderr.isatty():  # a service or a windowed program may have none
        return items
    # rich is imported here so that importing the package stays quick.
    from rich.console import Console
    from rich.progress import track

    return track(items, told, console=Console(stderr=True), transient=True)
