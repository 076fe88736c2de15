"""Tables and numbers of the generated pages."""

import statistics


def table(header, rows):
    """A Markdown table; header and rows are lists of texts."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def spread(values, digits=0):
    """Median, with the lowest and the highest in brackets."""
    middle, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}–{high})"


def quartiles(three, digits=2, unit="×"):
    """`(median, lower quartile, upper quartile)` as text."""
    middle, low, high = (f"{value:.{digits}f}" for value in three)
    return f"{middle}{unit} ({low}–{high})"


def machine(described):
    """The machine of a result, as a sentence."""
    return f"Machine: {', '.join(f'{key} {value}' for key, value in described.items())}."


def section(title, text, *blocks):
    """A section: its text, whose line breaks do not count, and blocks (tables, pictures, commands) below it."""
    return "\n\n".join([f"## {title}", " ".join(text.split()), *blocks]) + "\n"


def commands(results):
    """The commands and the machine of some results."""
    lines = "\n".join(dict.fromkeys(result["command"] for result in results))
    return f"```\n{lines}\n```\n\n{machine(results[0]['machine'])}"
