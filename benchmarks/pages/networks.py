"""Sections of the results page on several networks: ELRT and dense, learning rates, int8."""

import statistics
from functools import partial

from benchmarks.pages import figures, numbers
from benchmarks.pages.measured import missing
from benchmarks.pages.numbers import LABELS, accuracy, against, labelled, runs_of
from benchmarks.pages.tables import cells, table

# Grids with runs called `dense` and `elrt`, after the network's name if there are several networks.
FULL, SHORT = ("full",), ("resnet20", "deeper")
KINDS = {"dense": "dense", "elrt": "ELRT"}


def headline():
    """Compares dense networks and their ELRT twins, on the full and the short schedule."""
    full, short = _twins(FULL), _twins(SHORT)
    runs = [run for pair in full + short for group in pair for run in group]
    if not runs:
        return None
    epochs = sorted({dense[0]["config"]["epochs"] for dense, _ in short})
    return {
        "data": runs[0]["data"],
        "strengths": numbers.strengths(runs),
        "full": full and _full_schedule(full),
        "short": short and {"epochs": epochs, "table": _twins_table(short)},
        **numbers.taken(runs),
    }


def _twins(grids):
    """Returns `(dense runs, low-rank runs)` of each network in some grids."""
    found = []
    for groups in [runs_of(grid) for grid in grids]:
        names = [name.removesuffix("dense") for name in groups if name.endswith("dense")]
        found += [(groups[f"{name}dense"], groups[f"{name}elrt"]) for name in names if f"{name}elrt" in groups]
    return found


def _twins_table(pairs):
    header = "network | epochs | dense, % | ELRT, % | difference, points | MACs | parameters | factor error"
    rows = []
    for dense, low_rank in pairs:
        summary, error = low_rank[0]["summary"], numbers.factor_error(low_rank)
        ends = accuracy(dense), accuracy(low_rank), against(low_rank, dense)
        rows.append(cells(summary["model"], summary["epochs"], *ends, numbers.costs(low_rank, less=True), error))
    return table(header, rows, [dense + low_rank for dense, low_rank in pairs])


def _full_schedule(pairs):
    curves, fit, below = {}, [], []
    for dense, low_rank in pairs:
        model, gap = dense[0]["config"]["model"], statistics.mean(numbers.differences(low_rank, dense))
        histories = [[run["history"] for run in runs] for runs in (dense, low_rank)]
        curves[model] = dict(zip(KINDS.values(), histories))
        ends = (100 * statistics.mean(history[-1]["accuracy"] for history in found) for found in histories)
        fit.append("{} {:.1f} and {:.1f} %".format(model, *ends))
        below += [f"{model} by {-gap:.2f}"] if gap < 0 else []
    references = {"config": pairs[0][0][0]["config"], "fit": fit, "below": below, "changes": _changes()}
    picture = partial(figures.twins, curves)
    return {**references, "missing": missing("full"), "table": _twins_table(pairs), "picture": picture}


def _changes():
    """Makes a table of other methods at about the same MACs on the full schedule; empty without results."""
    groups = runs_of("full")
    found, rows = labelled(groups, LABELS["changes"]), []
    for label, runs in found.items():
        ends = accuracy(runs), against(runs, groups["resnet20_elrt"]), numbers.costs(runs, less=True)
        rows.append(cells(label, *ends, f"{numbers.training_macs(runs, groups['resnet20_dense']):.2f}"))
    header = "beside ELRT of resnet20 | test accuracy, % | against ELRT | MACs | parameters | training MACs of dense"
    return table(header, rows, found.values(), groups["resnet20_elrt"]) if rows else ""


def int8():
    """Makes a table of the accuracies of int8 files, for the networks in `headline`."""
    rows, of = [], []
    for groups in [runs_of(grid) for grid in FULL + SHORT]:
        for name, kind in [(name, kind) for name in groups for kind in KINDS if name.endswith(kind)]:
            runs = [run for run in groups[name] if run.get("int8_accuracy") is not None]
            if runs:
                after = [100 * run["int8_accuracy"] for run in runs]
                drops = [b - a for a, b in zip(numbers.accuracies(runs), after)]
                ends = accuracy(runs), numbers.mean_and_deviation(after), numbers.mean_and_deviation(drops, "+")
                rows.append(cells(runs[0]["summary"]["model"], runs[0]["summary"]["epochs"], KINDS[kind], *ends))
                of.append(runs)
    header = "network | epochs | training | as trained, % | int8, % | difference, points"
    return numbers.section(header, rows, of) if rows else None


def rates():
    """Compares peak learning rates on VGG-16, dense and low-rank; None with fewer than three."""
    groups = runs_of("deeper")
    found = {name: told for name, told in LABELS["rates"].items() if name in groups}
    if len(found) < 3:
        return None
    rows, curves = [], {}
    for name, (kind, factors) in found.items():
        runs, config, history = groups[name], groups[name][0]["config"], groups[name][0]["history"]
        rate, epochs, first = f"{config['learning_rate']:g}", config["epochs"], 100 * history[0]["val_accuracy"]
        minutes = sum(row["cpu_seconds"] for row in history) / 60
        ends = accuracy(runs), f"{first:.1f}", numbers.factor_error(runs[:1]), f"{minutes:.0f}"
        rows.append(cells(kind, rate, factors, epochs, *ends))
        slowed = f", factors {factors}" if factors not in ("", "the same") else ""
        curves[f"{kind}, {rate}, {epochs} epochs{slowed}"] = [history]
    header = "network | peak learning rate | of the factors | epochs | test accuracy, % | after the first epoch, %"
    header += " | factor error | processor minutes"
    picture = partial(figures.twins, {"VGG-16": curves})
    return numbers.section(header, rows, [groups[name] for name in found], picture=picture)
