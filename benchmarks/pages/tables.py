"""Markdown tables, formatted numbers, and the commands and machines of results."""

import re
import statistics

from benchmarks.pages.measured import ratios


def table(header, rows, of=(), beside=()):
    """Makes a Markdown table of texts with cells separated by " | ".

    Args:
        header: text of the first line.
        rows: texts of the other lines.
        of: for each row the list of its results; if their processors differ, a column names them.
        beside: results of other tables that are compared with the rows; their processors count too.
    """
    lines, names = [header, *rows], [list(dict.fromkeys(map(processor, results))) for results in of]
    if len(set(map(processor, beside)).union(*names)) > 1:
        lines = [f"{line} | {name}" for line, name in zip(lines, ["processor", *map("; ".join, names)])]
    lines.insert(1, cells(*["---"] * len(lines[0].split(" | "))))
    return "\n".join(f"| {line} |" for line in lines)


def cells(*values):
    """Joins values to the cells of a row."""
    return " | ".join(map(str, values))


def section(results, header, rows_of, **more):
    """Returns the values for the template of a section; None without results.

    Args:
        results: list of results from the files; the template sees the first one as `first`.
        header: header of the table.
        rows_of: function from a result to its rows.
        **more: further numbers and figures for the template.
    """
    if not results:
        return None
    rows, of = zip(*((row, [result]) for result in results for row in rows_of(result)))
    return {"first": results[0], "table": table(header, rows, of), **taken(results), **more}


def relative(results, heading, base, label_of):
    """Makes a section of speed-ups against `base`, from results with `rows` of `seconds`.

    Args:
        results: list of results.
        heading: header of the first column.
        base: name of the base of the comparison.
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
    """Returns commands, machines and remarks of results; `commands` replaces the commands of the results."""
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
    """Returns the short name of a result's processor and accelerator."""
    machine = result["machine"]
    name = re.sub(r"\((R|TM)\)| (Processor|CPU)\b.*", "", machine.get("processor", "not kept"))
    return f"{name}, {machine['device']}" if "device" in machine else name


def spread(values, digits=0):
    """Writes the median, with the lowest and the highest value in brackets."""
    middle, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}–{high})"


def quartiles(three, digits=2, unit="×"):
    """Writes `(median, lower quartile, upper quartile)` as text."""
    middle, low, high = (f"{value:.{digits}f}" for value in three)
    return f"{middle}{unit} ({low}–{high})"


def medians(series):
    """Returns the median of each series in a dict."""
    return {name: statistics.median(values) for name, values in series.items()}


def label(variant):
    """Writes a variant's name with spaces."""
    return variant.replace("_", " ")
