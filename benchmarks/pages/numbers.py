"""Numbers of training runs: accuracies by seed, costs of a training, and differences between seeds."""

import collections
import pathlib
import statistics
import tomllib

from benchmarks.pages import tables
from benchmarks.pages.measured import read

LABELS = tomllib.loads((pathlib.Path(__file__).parent / "labels.toml").read_text(encoding="utf-8"))


def runs_of(grid):
    """Returns `{name without seed: runs ordered by seed}`, of the longest schedule that has results."""
    for folder in (grid, f"{grid}_short"):
        groups = collections.defaultdict(list)
        for name, run in read(folder).items():
            groups[name.rpartition("_seed")[0] or name].append(run)
        if groups:
            return {name: sorted(runs, key=lambda run: run["config"]["seed"]) for name, runs in groups.items()}
    return {}


def epochs(groups):
    """Returns the epochs of a grid's schedule; None without results."""
    return next((runs[0]["config"]["epochs"] for runs in groups.values()), None)


def labelled(groups, labels):
    """Returns `{label: runs}` of the groups that have labels."""
    return {label: groups[name] for name, label in labels.items() if name in groups}


def section(header, rows, of, beside=(), **more):
    """Returns the values for the template of a section on runs: table, commands that train whole grids, machines.

    Args:
        header, rows, of, beside: arguments of `tables.table`.
        **more: further values for the template.
    """
    runs = [run for group in of for run in group]
    return {"table": tables.table(header, rows, of, beside), **taken(runs), **more}


def taken(runs):
    """Returns commands that train the missing runs of the same grids, machines and remarks."""
    commands = sorted({run["command"].rpartition(" --only")[0] for run in runs})
    return tables.taken(runs, [f"{command} --data=TFDS_DIR" for command in commands])


def accuracies(runs):
    """Returns test accuracies in percent."""
    return [100 * run["summary"]["test_accuracy"] for run in runs]


def mean_and_deviation(values, sign=""):
    """Writes `91.20 ± 0.13 (3)`: mean, standard deviation and count; one value has no deviation."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.2f}{deviation} ({len(values)})"


def mean(runs):
    """Returns the mean of the test accuracies."""
    return statistics.mean(accuracies(runs))


def accuracy(runs):
    """Writes mean and deviation of the test accuracies."""
    return mean_and_deviation(accuracies(runs))


def differences(runs, others):
    """Subtracts from the accuracies of `runs` those in `others` with the same seed, in points."""
    base = {run["config"]["seed"]: value for run, value in zip(others, accuracies(others))}
    return [a - base[run["config"]["seed"]] for run, a in zip(runs, accuracies(runs)) if run["config"]["seed"] in base]


def against(runs, others):
    """Writes mean and deviation of the differences; empty for the same runs, or if no seed is the same."""
    points = differences(runs, others) if runs is not others else []
    return mean_and_deviation(points, "+") if points else ""


def strengths(runs):
    """Writes the strengths of the penalty in some runs."""
    configs = [run["config"] for run in runs if run["config"]["orthogonality"] not in ("none", "stiefel")]
    values = {config["orthogonality_strength"] for config in configs}
    return ", ".join(f"ρ = {strength:g}" for strength in sorted(values))


def factor_error(runs):
    """Writes the mean orthogonality error of all factors; empty without factors."""
    errors = [error for run in runs for error in run["summary"]["orthogonality_error"].values()]
    return f"{statistics.mean(errors):.3f}" if errors else ""


def costs(runs, less=False):
    """Writes cells of MACs and parameters, relative to the dense network; with `less`, as reductions."""
    parts = (runs[0]["summary"][f"{kind}_fraction"] for kind in ("macs", "params"))
    return tables.cells(*(f"−{1 - part:.1%}" if less else f"{part:.1%}" for part in parts))


def macs_of_epochs(run):
    """Sums the MACs of one image over all epochs."""
    # The first runs did not record them; their network was the same in all epochs.
    return sum(row.get("macs", run["summary"]["macs"]) for row in run["history"])


def training_macs(runs, dense):
    """Returns the MACs of a training as a multiple of the dense network's."""
    return macs_of_epochs(runs[0]) / macs_of_epochs(dense[0])


def processor_minutes(runs):
    """Writes the processor time of a training, the median of the runs that recorded it."""
    kept = [run["summary"]["training_cpu_seconds"] for run in runs if "training_cpu_seconds" in run["summary"]]
    return f"{statistics.median(kept) / 60:.0f}" if kept else ""


def seed_deviation(groups):
    """Returns the standard deviation between seeds in points, from recipes with three or more seeds; else None."""
    several = [accuracies(runs) for runs in groups.values() if len(runs) > 2]
    return statistics.mean(statistics.variance(values) for values in several) ** 0.5 if several else None


def least_difference(deviation):
    """Returns the least significant difference of two runs with one seed each, in points: two standard deviations."""
    return 2 * 2**0.5 * deviation


def noise(groups):
    """Returns the deviation between seeds and the least significant difference, in points; None without three seeds."""
    deviation = seed_deviation(groups)
    return deviation and {"deviation": f"{deviation:.2f}", "least": f"{least_difference(deviation):.1f}"}


def best(groups, *names):
    """Returns the name with the highest mean accuracy among those with results; None without results."""
    mean_by_name = {name: mean(groups[name]) for name in names if name in groups}
    return max(mean_by_name, key=mean_by_name.get, default=None)


def apart(runs, others, epoch):
    """Writes the difference of test accuracy after an epoch, between the first seeds of two groups, in points."""
    ends = [found[0]["history"][epoch]["val_accuracy"] for found in (runs, others)]
    return f"{100 * abs(ends[0] - ends[1]):.2f}"
