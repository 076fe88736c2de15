"""Markdown tables, numbers as they stand on pages, and the commands and machines that results come from."""

import re
import statistics

from benchmarks.pages.measured import ratios


def table(header, rows, of=(), beside=()):
    """A Markdown table of texts, whose cells are divided by " | ".

    Args:
        header: text of the first line.
        rows: texts of the others.
        of: for each row the list of results it was taken from; where their processors differ, a column names them.
        beside: results of other tables that the rows are compared with, whose processors count as well.
    """
    lines, names = [header, *rows], [list(dict.fromkeys(map(processor, results))) for results in of]
    if len(set(map(processor, beside)).union(*names)) > 1:
        lines = [f"{line} | {name}" for line, name in zip(lines, ["processor", *map("; ".join, names)])]
    lines.insert(1, cells(*["---"] * len(lines[0].split(" | "))))
    return "\n".join(f"| {line} |" for line in lines)


def cells(*values):
    """Values as cells of a row."""
    return " | ".join(map(str, values))


def section(results, header, rows_of, **more):
    """References of the template of a section; None without results.

    Args:
        results: list of results as files hold them; `first` is the first of them.
        header: header of the table.
        rows_of: function from a result to its rows.
        **more: numbers and figures that the template refers to as well.
    """
    if not results:
        return None
    rows, of = zip(*((row, [result]) for result in results for row in rows_of(result)))
    return {"first": results[0], "table": table(header, rows, of), **taken(results), **more}


def relative(results, heading, base, label_of):
    """A section of how many times faster than `base` others are, of results with `rows` of `seconds`.

    Args:
        results: list of results.
        heading: header of the first column.
        base: name that the others are compared with.
        label_of: function from a result and one of its rows to the text in the first column.
    """

    def rows(result):
        for row in result["rows"]:
            faster = {name: quartiles(three) for name, three in ratios(row["seconds"], base).items() if name != base}
            middle = 1e3 * statistics.median(row["seconds"][base])
            yield cells(label_of(result, row), f"{middle:.1f}", *faster.values())

    names = [name for result in results[:1] for name in result["rows"][0]["seconds"] if name != base]
    return section(results, cells(heading, f"{base.removeprefix('elrt_keras ')}, ms", *names), rows)


def taken(results, commands=None):
    """Commands, machines and remarks of results; the commands of all unless others are given."""
    machines, remarks = {}, {}
    for result in results:
        machine = result["machine"]
        described = ", ".join(f"{key} {value}" for key, value in machine.items())
        machines.setdefault((machine.get("processor"), machine.get("device")), described)
        if "remark" in result:
            remarks.setdefault(result["remark"], set()).add(result["name"])
    return {
        "commands": commands or list(dict.fromkeys(result["command"] for result in results)),
        "machines": list(machines.values()),
        "remarks": {remark: sorted(names) for remark, names in remarks.items()},
    }


def processor(result):
    """The short name of a result's processor, and of its accelerator."""
    machine = result["machine"]
    name = re.sub(r"\((R|TM)\)| (Processor|CPU)\b.*", "", machine.get("processor", "not kept"))
    return f"{name}, {machine['device']}" if "device" in machine else name


def spread(values, digits=0):
    """Median, with the lowest and the highest in brackets."""
    middle, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}–{high})"


def quartiles(three, digits=2, unit="×"):
    """`(median, lower quartile, upper quartile)` as text."""
    middle, low, high = (f"{value:.{digits}f}" for value in three)
    return f"{middle}{unit} ({low}–{high})"


def medians(series):
    """The median of each series in a dict."""
    return {name: statistics.median(values) for name, values in series.items()}


def label(variant):
    """A variant's name with spaces."""
    return variant.replace("_", " ")
