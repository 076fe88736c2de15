"""The section of the page of results about what changes to the training close the gap to the dense network."""

import statistics

from benchmarks.accuracy_sections import (
    accuracies,
    comparison,
    differences,
    least_difference,
    mean_and_deviation,
    runs_of,
    seed_deviation,
)

# The first words of the names of runs, and what they are called.
RECIPES = {
    "elrt": "ELRT",
    "frobenius_decay": "weight decay on the composed kernels",
    "label_smoothing": "label smoothing",
    "weight_decay": "weight decay 1e-4 instead of 5e-4",
    "stronger_decay": "weight decay 5e-3 instead of 5e-4",
    "lower_rate": "half the learning rate",
    "higher_rate": "twice the learning rate",
    "factor_rate_factor_learning_rate0.3": "0.3 times the learning rate for the factors",
    "factor_rate_factor_learning_rate3.0": "3 times the learning rate for the factors",
    "penalty_schedule": "ρ from 0.1 down to 0.001",
    "longer": "more epochs than the dense network",
    "finer_ranks_multiple_of4": "ranks in multiples of 4",
    "finer_ranks_multiple_of1": "any ranks",
    "early_ranks": "any ranks, more of them in early stages",
    "late_ranks": "any ranks, more of them in late stages",
    "energy_ranks": "ranks by the spectra of the trained dense network",
    "distillation": "taught by the dense network",
    "combined": "decay on the composed kernels, any ranks, taught by the dense network",
    "combined_longer": "decay on the composed kernels, any ranks, more epochs",
    "cp_combined": "CP format, decay on the composed kernels, any ranks",
    "cp_longer": "CP format, any ranks, more epochs",
    "cp_distillation": "CP format, any ranks, taught by the dense network",
    "cp_distillation_longer": "CP format, any ranks, taught by the dense network, more epochs",
    "glorot_longer": "Glorot factors, more epochs",
    "spatial_svd_combined": "spatial SVD format, decay on the composed kernels, any ranks",
}


def recipe_section(images):
    """What changes to the training gain, the largest gain first, and whether the gap closes as both train longer."""
    groups, _ = runs_of("resnet20")
    gains = {name: statistics.mean(gained) for name in RECIPES if (gained := _gained(groups, name))}
    names = {name: RECIPES[name] for name in ("elrt", *sorted(gains, key=gains.get, reverse=True))}
    text = f"""One change each to what trains the low-rank network, to see what of the gap to the dense one it closes,
    and those that help together. {_told_gains(groups, gains)} {_told_length(groups)} {_told_decay(groups)}
    {_told_combined(groups)} Where a dense network is trained first,
    its epochs are in the curves, which fall when the low-rank one begins."""
    return comparison("Recipe", text, names, images)


def _gained(groups, name):
    """Points over ELRT with the same seed."""
    return differences(groups[name], groups["elrt"]) if name != "elrt" and {name, "elrt"} <= set(groups) else []


def _told_gains(groups, gains):
    """Which changes do more than another seed would."""
    deviation = seed_deviation(groups)
    if deviation is None or not gains:
        return ""
    clear = [name for name, gain in gains.items() if abs(gain) > least_difference(deviation)]
    told = "; ".join(f"{RECIPES[name]} ({gains[name]:+.1f})" for name in sorted(clear, key=gains.get, reverse=True))
    return f"What goes beyond a change of the seed: {told or 'nothing'}."


def _told_length(groups):
    """The gap to the dense network on the schedule of the grid and on the longer one."""
    if not {"elrt", "dense", "longer", "dense_longer"} <= set(groups):
        return ""
    gaps = [
        mean_and_deviation(differences(groups[low_rank], groups[dense]), "+")
        for low_rank, dense in (("elrt", "dense"), ("longer", "dense_longer"))
    ]
    by_cp = differences(groups.get("cp_longer", []), groups["dense_longer"])
    cp = f", with the CP format to {mean_and_deviation(by_cp, '+')}" if by_cp else ""
    return f"""Trained for {len(groups["longer"][0]["history"])} epochs instead of {len(groups["dense"][0]["history"])}
    the dense network reaches {mean_and_deviation(accuracies(groups["dense_longer"]))} %, so the difference to a dense
    network that trained as long goes from {gaps[0]} to {gaps[1]} points{cp}."""


def _told_decay(groups):
    """What decay on the composed kernels does for the dense network, whose decay is then stronger as well."""
    if not {"dense", "dense_frobenius", "frobenius_decay"} <= set(groups):
        return ""
    dense, low_rank = groups["dense_frobenius"], groups["frobenius_decay"]
    return f"""Decay on the kernels passes through the momentum, which makes it ten times as strong as decoupled decay
    of that number; the dense network with it reaches {mean_and_deviation(accuracies(dense))} %, and the difference to
    that is {mean_and_deviation(differences(low_rank, dense), "+")} points."""


def _told_combined(groups):
    """What the changes that help do together, beside dense networks with the same decay and as many epochs."""
    one_length = ("combined", "cp_combined", "spatial_svd_combined")
    pairs = {
        **dict.fromkeys(one_length, "dense_frobenius"),
        "combined_longer": "dense_frobenius_longer",
        "cp_distillation": "dense",
        "cp_distillation_longer": "dense_longer",
    }
    told = [
        f"{RECIPES[name]}: {mean_and_deviation(differences(groups[name], groups[dense]), '+')} points"
        for name, dense in pairs.items()
        if {name, dense} <= set(groups)
    ]
    return f"Together, beside the dense network with that decay and as many epochs: {'; '.join(told)}." if told else ""
