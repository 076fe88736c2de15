"""The sections of the page of results that set runs of ResNet-20 side by side: formats, penalties, initial factors.

They are made from what `benchmarks.train` wrote for the grids in `benchmarks/grids/`: of each grid those on
the full schedule if there are any, else those on the short one.
"""

import collections
import statistics

from benchmarks import figures_of_accuracy
from benchmarks.markdown import machine, section, table
from benchmarks.measure import evidence

# Rows of the tables: the first words of the names of runs, and what they are called.
FORMATS = {
    "elrt": "Tucker-2",
    "svd": "SVD",
    "spatial_svd": "spatial SVD",
    "cp": "CP",
    "tensor_train": "tensor train",
}
PENALTIES = {
    "no_penalty": "none",
    "dso_orthogonality_strength0.001": "DSO",
    "elrt": "DSO",
    "dso_orthogonality_strength0.1": "DSO",
    "so": "SO",
    **{f"mc_orthogonality_strength{strength}": "MC" for strength in (0.001, 0.01, 0.1, 1.0)},
    **{f"srip_orthogonality_strength{strength}": "SRIP" for strength in (0.001, 0.01, 0.1, 1.0)},
    "stiefel": "Stiefel constraint",
}
STARTS = {
    "elrt": "orthogonal",
    "spectral": "spectral",
    "glorot": "Glorot, each factor on its own",
}


def runs_of(grid):
    """`({name without seed: runs in the order of their seeds}, epochs)`, of the longer schedule that has results."""
    for folder in (grid, f"{grid}_short"):
        groups = collections.defaultdict(list)
        for name, run in evidence.read(folder).items():
            groups[name.rpartition("_seed")[0] or name].append(run)
        if groups:
            ordered = {name: sorted(runs, key=lambda run: run["config"]["seed"]) for name, runs in groups.items()}
            return ordered, next(iter(ordered.values()))[0]["config"]["epochs"]
    return {}, None


def accuracies(runs):
    """Test accuracies in percent."""
    return [100 * run["summary"]["test_accuracy"] for run in runs]


def mean_and_deviation(values, sign=""):
    """`91.20 ± 0.13 (3)`: mean, standard deviation and number; the number alone for one value."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.2f}{deviation} ({len(values)})"


def differences(runs, others):
    """Accuracies of `runs` less those of the runs in `others` with the same seed, in points."""
    base = {run["config"]["seed"]: value for run, value in zip(others, accuracies(others))}
    return [a - base[run["config"]["seed"]] for run, a in zip(runs, accuracies(runs)) if run["config"]["seed"] in base]


def beside_dense(label, runs, dense):
    """Cells of a table: accuracy, its difference to the dense runs, MACs, parameters."""
    summary = runs[0]["summary"]
    against = differences(runs, dense) if runs is not dense else []
    return [
        label,
        mean_and_deviation(accuracies(runs)),
        mean_and_deviation(against, "+") if against else "",
        f"{summary['macs_fraction']:.1%}",
        f"{summary['params_fraction']:.1%}",
    ]


def strengths(results):
    """The strengths of the penalty in some runs, as text."""
    found = {run["config"]["orthogonality_strength"] for run in results if run["config"]["orthogonality"] != "none"}
    return ", ".join(f"ρ = {strength:g}" for strength in sorted(found))


def orthogonality_error(runs):
    errors = [error for run in runs for error in run["summary"]["orthogonality_error"].values()]
    return statistics.mean(errors) if errors else float("nan")


def macs_of_epochs(run):
    """MACs of one image in each epoch, summed up."""
    # The first runs did not keep them; their network was the same all along.
    return sum(row.get("macs", run["summary"]["macs"]) for row in run["history"])


def comparison(title, text, names, images):
    """One table and one figure of the ResNet-20 runs in `names`; empty with fewer than two of them.

    The runs of `elrt`, where they are among them, are what the others are compared with.
    """
    groups, epochs = runs_of("resnet20")
    found = {label: groups[name] for name, label in names.items() if name in groups}
    if len(found) < 2 or "dense" not in groups:
        return ""
    rows = []
    for label, runs in found.items():
        beside = beside_dense(label, runs, groups["dense"])
        gained = differences(runs, groups["elrt"]) if label != names.get("elrt") else []
        rows.append(
            [
                *beside[:3],
                mean_and_deviation(gained, "+") if gained else "",
                *beside[3:],
                f"{orthogonality_error(runs):.3f}",
            ]
        )
    picture = images / f"accuracy_{title.lower().replace(' ', '_')}.png"
    figures_of_accuracy.comparison(
        {label: accuracies(runs) for label, runs in found.items()},
        accuracies(groups["dense"]),
        {label: runs[0]["history"] for label, runs in found.items()},
        picture,
    )
    base = names["elrt"]
    header = ["run", "test accuracy, %", "against dense", f"against {base}", "MACs", "parameters", "factor error"]
    short = "" if epochs >= 100 else f" Short schedule: {epochs} epochs of one cycle."
    return section(
        f"{title}, ResNet-20",
        f"{text}{short} {noise(groups)}",
        table(header, rows),
        f"![Test accuracies of the runs, and over the epochs](images/{picture.name})",
        sources([run for runs in found.values() for run in runs]),
    )


def seed_deviation(groups):
    """Standard deviation between seeds within the recipes of three or more, in points; `None` without any."""
    several = [accuracies(runs) for runs in groups.values() if len(runs) > 2]
    return statistics.mean(statistics.variance(values) for values in several) ** 0.5 if several else None


def least_difference(deviation):
    """What two runs of one seed each have to differ by before it says anything: two standard deviations, in points."""
    return 2 * 2**0.5 * deviation


def noise(groups):
    """How far seeds alone set runs apart, as a sentence."""
    deviation = seed_deviation(groups)
    if deviation is None:
        return ""
    return (
        f"Seeds alone set runs apart by {deviation:.2f} points (standard deviation within the recipes of three seeds): "
        f"between two runs of one seed each, less than {least_difference(deviation):.1f} says nothing."
    )


def _best_strengths(groups):
    """Each penalty at the best of its strengths, as a sentence."""
    tried = collections.defaultdict(dict)
    for name, label in PENALTIES.items():
        if name in groups:
            tried[label][strengths(groups[name])] = accuracies(groups[name])
    best = {
        label: max(found, key=lambda strength: statistics.mean(found[strength]))
        for label, found in tried.items()
        if len(found) > 1
    }
    told = [f"{label} {strength}, {mean_and_deviation(tried[label][strength])} %" for label, strength in best.items()]
    return f"Of several strengths the best: {'; '.join(told)}." if told else ""


def penalties_section(images):
    """Penalties side by side, and how far the two that must agree do."""
    groups, _ = runs_of("resnet20")
    agreement = ""
    # Runs with a remark saw the batches in another order.
    so, dso = (groups[name][0] if name in groups else None for name in ("so", "elrt"))
    if so is not None and dso is not None and "remark" not in dso:
        first, last = (abs(so["history"][i]["val_accuracy"] - dso["history"][i]["val_accuracy"]) for i in (0, -1))
        agreement = f"""SO at 2ρ has the gradient of DSO at ρ, so these two runs with one seed differ by rounding alone:
        by {100 * first:.2f} points of test accuracy after the first epoch and {100 * last:.2f} after the last."""
    text = f"""What holds the factors orthonormal, at the strengths that were tried. {_best_strengths(groups)}
    {agreement}"""
    with_strength = {
        name: f"{label}, {strengths(groups[name])}" if label in ("DSO", "SO", "MC", "SRIP") else label
        for name, label in PENALTIES.items()
        if name in groups
    }
    return comparison("Penalties", text, with_strength, images)


def accuracy_sections(images):
    """All sections, as a list of texts."""
    return [
        comparison("Formats", "Each format at the same part of the MACs, with DSO.", FORMATS, images),
        penalties_section(images),
        comparison("Initial factors", "What the factors start from, with DSO.", STARTS, images),
    ]


def sources(results):
    """The commands, the machines and the remarks of some runs."""
    grids = sorted({result["command"].rpartition(" --only")[0] for result in results})
    lines = "\n".join(f"{command} --data=TFDS_DIR" for command in grids)
    remarks = collections.defaultdict(list)
    for result in results:
        if "remark" in result:
            remarks[result["remark"]].append(result["name"])
    notes = "".join(f" {', '.join(sorted(set(names)))}: {remark}." for remark, names in remarks.items())
    machines = {(m["processor"], m.get("device")): machine(m) for m in reversed([run["machine"] for run in results])}
    return f"```\n{lines}\n```\n\n{' '.join(reversed(machines.values()))}{notes}"
