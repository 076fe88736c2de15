"""Sections of the page of results on alternatives to ELRT, on shrinking, on defaults, and on single trainings."""

from functools import partial

from benchmarks.pages import figures, numbers, tables
from benchmarks.pages.measured import read
from benchmarks.pages.numbers import LABELS, accuracies, accuracy, against, labelled, runs_of
from benchmarks.pages.tables import cells
from elrt_keras.launch.config import TrainConfig
from elrt_keras.ranks.budget import SIMD_MULTIPLE

# Runs with the default of a flag where the grid says another than that of `elrt-train`.
_WITH_DEFAULT = {"weight_decay_kind": "frobenius_decay"}
# Defaults that depend on something else, as they are on this grid.
_UNSET = {"multiple_of": str(SIMD_MULTIPLE), "orthogonality_schedule": "constant"}


def alternatives():
    """Accuracies beside what the trainings cost; None with fewer than three of them."""
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


def shrink():
    """One training at half the MACs, shrunk, beside networks trained at those budgets."""
    groups = runs_of("resnet20")
    if "elrt_half" not in groups:
        return None
    shrunk, rows = groups["elrt_half"][0]["shrunk"], []
    trained = [groups[name][0] for name in ("elrt_half", "elrt_0.4", "elrt") if name in groups]
    own = {run["summary"]["macs_fraction"]: run["summary"]["test_accuracy"] for run in trained}
    for part, accuracy_there in [(point["macs_fraction"], point["accuracy"]) for point in shrunk]:
        nearest = min(own, key=lambda fraction: abs(fraction - part))
        close = f"{100 * own[nearest]:.2f}" if abs(nearest - part) < 0.02 else ""
        rows.append(f"{part:.1%} | {100 * accuracy_there:.2f} | {close}")
    header = "MACs | shrunk, test accuracy, % | trained there, %"
    return numbers.section(header, rows, [trained], picture=partial(figures.shrink, shrunk, own))


def defaults():
    """Commands, machines and remarks of the table of defaults, whose rows begin with what `default` returns."""
    groups = runs_of("resnet20")
    tried = [groups[name] for others in LABELS["defaults"].values() for name in others if name in groups]
    if not tried or "elrt" not in groups:
        return None
    return numbers.taken([run for group in (groups["elrt"], *tried) for run in group])


def default(field):
    """Cells of a row: a flag, its default, what else was tried, and points of the default over the best of that."""
    groups = runs_of("resnet20")
    tried = labelled(groups, LABELS["defaults"][field])
    chosen = groups.get(_WITH_DEFAULT.get(field, "elrt"))
    gap = f"{numbers.mean(chosen) - max(map(numbers.mean, tried.values())):+.2f}" if chosen and tried else ""
    told = "; ".join(f"{label}: {accuracy(runs)}" for label, runs in tried.items())
    value = getattr(TrainConfig(), field)
    value = _UNSET[field] if value is None else f"{value:g}" if isinstance(value, float) else value
    return f"`--{field}` | {value} | {told} | {gap}"


def trainings(experiment):
    """Runs of one experiment beside the dense one: accuracies, costs, orthogonality errors."""
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
