"""Tables of the zoo of networks, of a newcomer's first hour, and of the first steps (demo and tests)."""

import statistics

from benchmarks.pages.measured import STEPS, one, read
from benchmarks.pages.tables import cells, section, table, taken


def zoo():
    """Makes tables of CNNs of `keras.applications` and keras-hub: `networks`, `tasks`, and numerically `unstable`."""
    tasks = [row for row in read("zoo").values() if "(" in row["model"]]
    networks = [row for row in read("zoo").values() if "(" not in row["model"]]
    header = "model | input | MACs | layers | low-rank | smallest MACs | smallest params | at a budget of 50 %"
    header += " | plan s (uniform / energy) | reloaded | expanded | merged"
    unstable = [row for row in networks if row["merged_difference"] > 1e-5]
    return {
        "networks": section(networks, header, _zoo_row),
        "tasks": section(tasks, header, _zoo_row),
        "unstable": [f"{row['model']} {row['perturbed_difference']:.0e}" for row in unstable],
    }


def _zoo_row(row):
    size = f"{'×'.join(map(str, row['input']))} | {row['macs'] / 1e9:.3f} G"
    parts = [f"{row[key]:.1%}" for key in ("smallest_macs", "smallest_params", "planned_macs")]
    seconds = f"{row['uniform_seconds']:.1f} / {row['energy_seconds']:.1f}"
    ends = [f"{row[f'{kind}_difference']:.0e}" for kind in ("reloaded", "expanded", "merged")]
    return [cells(row["model"], size, row["layers"], row["factorized_layers"], *parts, seconds, *ends)]


def first_hour():
    """Returns the steps of the first hour with commands, times and output of a walk; `walk` is None without one."""
    results = one("first_hour", "cpu")
    found = {row["name"]: row for result in results for row in result["rows"]}

    def overview(_):
        rows = [(title, found[name]["seconds"]) for name, title, _ in STEPS if name in found]
        rows.append(("together", sum(seconds for _, seconds in rows)))
        return [f"{title} | {seconds:,.1f}" for title, seconds in rows]

    steps = [{"title": title, "commands": commands, "output": ""} for _, title, commands in STEPS]
    for (name, *_), step in zip(STEPS, steps):
        if name in found:
            step["seconds"] = f"{found[name]['seconds']:,.1f}"
            step["output"] = "\n".join(line.rstrip() for line in found[name]["output"])
    return {"walk": section(results, "step | seconds", overview), "steps": steps}


def _integration():
    """Writes the minutes of `.ci/run` and of its parts; empty before it was measured."""
    parts = [
        f"{result['seconds'] / 60:.0f} minutes from a fresh clone to the end ("
        + ", ".join(f"`make {name}` {seconds / 60:.1f}" for name, seconds in result["parts"].items())
        + ")"
        for result in read("ci").values()
    ]
    return "".join(parts)


def first_steps():
    """Returns numbers of `make demo` and `make test` on a fresh clone; None without the results `before` and `now`."""
    results = read("first_steps")
    if len(results) < 2:
        return None
    before, now = results["before"], results["now"]
    keys = ("demo_seconds", "demo_again_seconds", "demo_megabytes")
    titles = {"everything for development (before)": before, "the runtime alone": now}
    rows = [cells(title, *(f"{result[key]:,.0f}" for key in keys)) for title, result in titles.items()]
    header = "`make demo` on a fresh clone installs | seconds | seconds, again | MB"
    minutes = [seconds / 60 for seconds in now["test_seconds"]]
    # Continuous integration runs the tests too; its result may be newer.
    latest = [result["parts"]["test"] / 60 for result in read("ci").values() if "test" in result["parts"]]
    return {
        "now": now,
        "table": table(header, rows, [[before], [now]]),
        "demo_minutes": f"{now['demo_seconds'] / 60:.1f}",
        "demo_gigabytes": f"{now['demo_megabytes'] / 1000:.1f}",
        "demo_again": f"{now['demo_again_seconds']:.0f}",
        "more_gigabytes": f"{(now['test_megabytes'] - now['demo_megabytes']) / 1000:.1f}",
        "test_minutes": f"{max([statistics.median(minutes), *latest]):.0f}",
        "all_minutes": [f"{value:.1f}" for value in minutes],
        "tests": [f"{number:,} on {backend}" for backend, number in now["tests"].items()],
        "integration": _integration(),
        **taken([before, now]),
    }
