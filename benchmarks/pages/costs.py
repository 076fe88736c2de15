"""Sections of the results page on alternatives to ELRT, on shrinking, on defaults, and on single trainings."""

from functools import partial

from benchmarks.pages import figures, numbers, tables
from benchmarks.pages.measured import read
from benchmarks.pages.numbers import LABELS, accuracies, accuracy, against, labelled, runs_of
from benchmarks.pages.tables import cells
from elrt_keras.launch.config import TrainConfig
from elrt_keras.ranks.budget import SIMD_MULTIPLE

# Runs with the default of a flag, for flags whose value in the grid differs from the default of `elrt-train`.
_WITH_DEFAULT = {"weight_decay_kind": "frobenius_decay"}
# Values on this grid of defaults that depend on other settings.
_UNSET = {"multiple_of": str(SIMD_MULTIPLE), "orthogonality_schedule": "constant"}


def alternatives():
    """Compares accuracies and costs of trainings; None with fewer than three of them."""
    groups = runs_of("resnet20")
    found = labelled(groups, LABELS["alternatives"])
    if len(found) < 3 or "dense" not in groups:
        return None
    rows, points, dense = [], {}, groups["dense"]
    for label, runs in found.items():
        work = numbers.training_macs(runs, dense)
        training = f"{len(runs[0]['history'])} | {work:.2f} | {numbers.processor_minutes(runs)}"
        rows.append(cells(label, accuracy(runs), against(runs, dense), numbers.costs(runs), training))
        points[label] = work, accuracies(runs)
    header = "training | test accuracy, % | against dense | MACs | parameters | epochs | training MACs of dense"
    picture = partial(figures.accuracy_over_cost, points)
    return numbers.section(f"{header} | processor minutes", rows, found.values(), picture=picture)


# Treatment of a shrunk model (kind, epochs of recovery, True if taught) → heading.
_SHRUNK = {
    ("plain", 0, False): "truncated",
    ("recalibrated", 0, False): "and recalibrated",
    ("fitted", 0, False): "fitted to data",
    ("plain", 1, False): "truncated, 1 epoch",
    ("fitted", 1, False): "fitted, 1 epoch",
    ("fitted", 1, True): "fitted, 1 epoch, taught",
}
# Grid, shrunk run, runs trained at lower budgets.
_PARENTS = (
    ("resnet20", "elrt_half", ("elrt_0.4", "elrt", "elrt_0.2")),
    ("deeper", "vgg16_half", ("vgg16_elrt_0.28", "vgg16_elrt")),
)


def shrink():
    """Compares trainings at half the MACs, shrunk afterwards, with networks trained at the lower budgets."""
    rows, of, curves = [], [], {}
    for grid, name, others in _PARENTS:
        groups = runs_of(grid)
        if name not in groups:
            continue
        parent, trained = groups[name][0], [groups[other][0] for other in others if other in groups]
        network, points = parent["summary"]["model"], _shrunk_points(parent)
        own = {run["summary"]["macs_fraction"]: run["summary"]["test_accuracy"] for run in trained}
        whole = 100 * parent["summary"]["test_accuracy"]
        rows.append(cells(network, f"{parent['summary']['macs_fraction']:.1%}", *[f"{whole:.2f}"] * len(_SHRUNK), ""))
        for part in sorted({fraction for found in points.values() for fraction in found}, reverse=True):
            close = [f"{100 * value:.2f}" for fraction, value in own.items() if abs(fraction - part) < 0.02]
            found = [_at(points.get(key, {}), part) for key in _SHRUNK]
            rows.append(cells(network, f"{part:.1%}", *found, *(close[:1] or [""])))
        of += [[parent, *trained]] * (len(rows) - len(of))
        curves[network] = {_SHRUNK[key]: found for key, found in points.items()} | {"trained there": own}
    header = cells("network", "MACs", *_SHRUNK.values(), "trained there")
    return numbers.section(header, rows, of, picture=partial(figures.shrink, curves)) if rows else None


def _shrunk_points(parent):
    """Returns `{(kind, epochs, taught): {part of the MACs: accuracy}}` of a shrunk run."""
    points = {}
    for point in parent["shrunk"]:
        key = (point.get("kind", "plain"), point.get("epochs", 0), point.get("taught", False))
        if key in _SHRUNK:
            # The MACs of the kinds differ a little; all kinds of one budget share a row.
            points.setdefault(key, {})[round(point["macs_fraction"], 2)] = point["accuracy"]
    return points


def _at(found, part):
    return f"{100 * found[part]:.2f}" if part in found else ""


def defaults():
    """Returns commands, machines and remarks of the table of defaults; `default` returns the cells of its rows."""
    groups = runs_of("resnet20")
    tried = [groups[name] for others in LABELS["defaults"].values() for name in others if name in groups]
    if not tried or "elrt" not in groups:
        return None
    return numbers.taken([run for group in (groups["elrt"], *tried) for run in group])


def default(field):
    """Returns cells of a row: a flag, its default, other values, and points of the default over the best of these."""
    groups = runs_of("resnet20")
    tried = labelled(groups, LABELS["defaults"][field])
    chosen = groups.get(_WITH_DEFAULT.get(field, "elrt"))
    gap = f"{numbers.mean(chosen) - max(map(numbers.mean, tried.values())):+.2f}" if chosen and tried else ""
    others = "; ".join(f"{label}: {accuracy(runs)}" for label, runs in tried.items())
    value = getattr(TrainConfig(), field)
    value = _UNSET[field] if value is None else f"{value:g}" if isinstance(value, float) else value
    return f"`--{field}` | {value} | {others} | {gap}"


def trainings(experiment):
    """Compares runs of one experiment with the dense one: accuracies, costs, orthogonality errors."""
    runs = sorted(read(experiment).values(), key=lambda run: (run["config"]["format"] != "dense", run["name"]))
    if not runs:
        return None
    commands = [f"{run['command']} --run_dir=runs/{run['name']}" for run in runs]
    dense = [run for run in runs if run["config"]["format"] == "dense"]
    header = "run | test accuracy | against dense | params | MACs | MACs of dense | mean orthogonality error | s/epoch"
    text = tables.table(header, [_training_row(run, dense) for run in runs], [[run] for run in runs])
    picture = partial(figures.trainings, runs)
    return {"data": runs[0]["data"], "table": text, "picture": picture, **tables.taken(runs, commands)}


def _training_row(run, dense):
    summary = run["summary"]
    points = [f"{a - b:+.2f} points" for a, b in zip(accuracies([run]), accuracies(dense)) if run not in dense]
    size = f"{summary['params']:,} | {summary['macs'] / 1e6:.2f} M | {summary['macs_fraction']:.1%}"
    error, seconds = numbers.factor_error([run]), f"{summary['seconds_per_epoch']:.0f}"
    return cells(run["name"], f"{summary['test_accuracy']:.2%}", "".join(points), size, error, seconds)
