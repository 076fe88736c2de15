"""Plain-text tables, rendered by rich, and short names for their rows."""

import io
import os
from collections.abc import Sequence


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]], last_is_total: bool = False) -> str:
    """Returns a table as a string. Columns of numbers are right-aligned, except the first column.

    Args:
        header: list of column titles.
        rows: list of rows of strings.
        last_is_total: draws a rule above the last row.
    """
    # rich is imported here so that importing the package stays quick.
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE)
    for column, title in enumerate(header):
        numeric = all(_is_number(row[column]) for row in rows) and column > 0
        table.add_column(title, justify="right" if numeric else "left", no_wrap=True)
    for index, row in enumerate(rows):
        if last_is_total and index == len(rows) - 1:
            table.add_section()
        table.add_row(*row)
    text = io.StringIO()
    # Without markup and emoji, rich prints names in brackets or between colons unchanged.
    console = Console(
        file=text, width=240, color_system=None, force_jupyter=False, markup=False, emoji=False, highlight=False
    )
    console.print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())


def short_names(paths: Sequence[str]) -> list[str]:
    """Returns the shortest ends of the paths that are all different, without the suffix.

    Example:

    >>> elrt_keras.terminal.tables.short_names(["runs/a/export/int8.tflite", "runs/b/export/int8.tflite"])
    ['a/int8', 'b/int8']
    """
    parts = [os.path.splitext(os.path.abspath(path))[0].split(os.sep) for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        # The folder "export", which `elrt-export` writes to, is left out of the names.
        names = [os.path.join(*[p for p in part[-depth:-1] if p != "export"], part[-1]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def _is_number(cell):
    return not cell or cell.lstrip("+-−").replace(",", "").replace(".", "").rstrip("%×MGKs ").isdigit()
