"""The section of the page of results that sets each default of `elrt-train` beside what else was tried."""

import statistics

from benchmarks.accuracy_sections import (
    FORMATS,
    PENALTIES,
    accuracies,
    differences,
    mean_and_deviation,
    noise,
    runs_of,
    sources,
)
from benchmarks.markdown import section, table
from elrt_keras.launch.config import TrainConfig
from elrt_keras.ranks.budget import SIMD_MULTIPLE

# Per flag: what was tried beside the default, as {first words of the names of runs: label}, and what else speaks for
# the default. The runs of `elrt` have all defaults but what the grid says of them; where the grid says the flag itself,
# other runs have the default.
_WITH_DEFAULT = {"weight_decay_kind": "frobenius_decay"}
CHOICES = {
    "format": (
        {name: label for name, label in FORMATS.items() if name != "elrt"},
        "The format of the method's paper; of its chain all three stages run as dense convolutions or products.",
    ),
    "orthogonality": (
        {name: label for name, label in PENALTIES.items() if label not in ("DSO", "MC", "SRIP")},
        "The penalty of the method's paper.",
    ),
    "orthogonality_strength": (
        {f"dso_orthogonality_strength{strength}": strength for strength in ("0.001", "0.1")},
        "On digits too (below).",
    ),
    "orthogonality_schedule": ({"penalty_schedule": "from 0.1 down to 0.001"}, ""),
    "factor_initializer": (
        {"spectral": "spectral", "glorot": "glorot_uniform"},
        "At the penalty's minimum from the first step on. From trained weights the default is their decomposition.",
    ),
    "rank_method": (
        {"energy_ranks": "energy, from a trained dense network"},
        "Needs no trained network.",
    ),
    "multiple_of": (
        {"finer_ranks_multiple_of4": "4", "finer_ranks_multiple_of1": "1"},
        "Time: [neighbouring ranks](performance.md#neighbouring-ranks).",
    ),
    "weight_decay": (
        {"weight_decay": "0.0001", "stronger_decay": "0.005"},
        "Decoupled here, of which 0.005 is as much as 0.0005 of the default kind.",
    ),
    "weight_decay_kind": (
        {"elrt": "decoupled", "stronger_decay": "decoupled, 0.005"},
        "With SGD; with AdamW the default is decoupled.",
    ),
    "label_smoothing": ({"label_smoothing": "0.1"}, ""),
}


def defaults_section():
    """What each default was chosen over; empty where nothing was tried yet."""
    groups, epochs = runs_of("resnet20")
    rows, results = [], []
    for field, (others, remark) in CHOICES.items():
        tried = {label: groups[name] for name, label in others.items() if name in groups}
        chosen = groups.get(_WITH_DEFAULT.get(field, "elrt"))
        if tried and chosen is not None:
            best = max(tried, key=lambda label: statistics.mean(accuracies(tried[label])))
            told = "; ".join(f"{label}: {mean_and_deviation(accuracies(runs))}" for label, runs in tried.items())
            gap = statistics.mean(accuracies(chosen)) - statistics.mean(accuracies(tried[best]))
            remark = f"{remark} {_told_of_longer_runs(groups)}" if field == "factor_initializer" else remark
            rows.append([f"`--{field}`", _default(field), told, f"{gap:+.2f}", remark])
            results += [run for runs in tried.values() for run in runs]
    if not rows:
        return ""
    default = mean_and_deviation(accuracies(groups["elrt"]))
    short = "" if epochs >= 100 else f" Short schedule: {epochs} epochs of one cycle."
    return section(
        "Where the defaults come from",
        f"""ResNet-20 with the defaults reaches {default} %, at the budget, learning rate and weight decay of the grid,
        which is decoupled; beside it one change each. *Over the best* is the accuracy of the default less that of the
        best of the others, in points.{short} {noise(groups)}""",
        table(["flag", "default", "others, test accuracy %", "over the best", "what else"], rows),
        sources(groups["elrt"] + results),
    )


def _told_of_longer_runs(groups):
    """Whether what other initial factors gain outlasts the schedule of the grid."""
    if not {"longer", "glorot_longer"} <= set(groups):
        return "Whether the others' lead outlasts a short schedule is open."
    gains = [
        mean_and_deviation(differences(groups[other], groups[elrt]), "+")
        for other, elrt in (("glorot", "elrt"), ("glorot_longer", "longer"))
    ]
    return f"In {len(groups['longer'][0]['history'])} epochs glorot_uniform's lead goes from {gains[0]} to {gains[1]}."


def _default(field):
    value = getattr(TrainConfig(), field)
    if value is None:
        return {"multiple_of": str(SIMD_MULTIPLE), "orthogonality_schedule": "constant"}[field]
    return f"{value:g}" if isinstance(value, float) else str(value)
