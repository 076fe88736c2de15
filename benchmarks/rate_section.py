"""The section of the page of results about VGG-16's learning rate."""

import statistics

from benchmarks import figures_of_accuracy
from benchmarks.accuracy_sections import accuracies, macs_of_epochs, mean_and_deviation, runs_of, sources
from benchmarks.markdown import section, table

_LABELS = {"dense": "dense", "elrt": "ELRT"}


def rate_section(images):
    """VGG-16, dense and low-rank, at several peak learning rates."""
    found = _vgg16_runs()
    if len(found) < 3:
        return ""
    rows, histories = [], {}
    for (kind, factors, rate, epochs), runs in sorted(found.items()):
        history, errors = runs[0]["history"], list(runs[0]["summary"]["orthogonality_error"].values())
        own = f"{factors:g} times it" if factors != 1 else "the same"
        slowed = f"factors {own}, " if factors != 1 else ""
        histories[f"{_LABELS[kind]}, {rate:g}, {slowed}{epochs} epochs"] = history
        rows.append(
            [
                _LABELS[kind],
                f"{rate:g}",
                own if kind == "elrt" else "",
                epochs,
                mean_and_deviation(accuracies(runs)),
                f"{100 * history[0]['val_accuracy']:.1f}",
                f"{statistics.mean(errors):.3f}" if errors else "",
                f"{sum(row['cpu_seconds'] for row in history) / 60:.0f}",
            ]
        )
    picture = images / "accuracy_vgg16_rates.png"
    figures_of_accuracy.curves(histories, picture)
    header = [
        "network",
        "peak learning rate",
        "of the factors",
        "epochs",
        "test accuracy, %",
        "after the first epoch, %",
        "factor error",
        "processor minutes",
    ]
    return section(
        "The learning rate of VGG-16",
        f"One cycle with other peaks. {_told_best(found)} {_told_factors(found)} {_told_start()} {_told_longer(found)}",
        table(header, rows),
        f"![Test accuracy over the epochs](images/{picture.name})",
        sources([run for runs in found.values() for run in runs]),
    )


def _vgg16_runs():
    """`{(dense or elrt, rate of the factors as a multiple, peak rate, epochs): runs}`."""
    groups, _ = runs_of("deeper")
    found = {}
    for name, runs in groups.items():
        kind = name.removeprefix("vgg16_").partition("_")[0]
        if name.startswith("vgg16_") and kind in _LABELS:
            _, _, factors = name.partition("factor_learning_rate")
            config = runs[0]["config"]
            found[kind, float(factors or 1), config["learning_rate"], config["epochs"]] = runs
    return found


def _told_best(found):
    """The best rate of each kind on the shortest schedule, as a sentence."""
    shortest = min(epochs for *_, epochs in found)
    told = []
    for kind, label in _LABELS.items():
        means = {
            rate: statistics.mean(accuracies(runs))
            for (one, factors, rate, epochs), runs in found.items()
            if (one, factors, epochs) == (kind, 1, shortest)
        }
        if means:
            best = max(means, key=means.get)
            told.append(f"{label} is best at {best:g} with {means[best]:.2f} %")
    return f"Of the rates tried, in {shortest} epochs {' and '.join(told)}."


def _told_factors(found):
    """Whether the rate of the orthonormal factors alone is what matters, as sentences."""
    own = {key: runs for key, runs in found.items() if key[1] != 1}
    told = [
        f"{factors:g} times the rate of {rate:g}: {mean_and_deviation(accuracies(runs))} % instead of "
        f"{mean_and_deviation(accuracies(found[kind, 1, rate, epochs]))} %"
        for (kind, factors, rate, epochs), runs in sorted(own.items())
        if (kind, 1, rate, epochs) in found
    ]
    if not told:
        return ""
    return f"""Orthonormal factors have smaller norms than the kernel they stand for (squared, their rank instead of
    twice the output channels), so one rate turns them further; slowing only them was tried too ({"; ".join(told)})."""


def _told_start():
    """What a rate that rises over the first epochs does for the low-rank network, as a sentence."""
    groups, _ = runs_of("deeper")
    told = {}
    for name, (run, *_) in groups.items():
        if name.startswith("vgg16_start"):
            accuracy, config = 100 * run["summary"]["test_accuracy"], run["config"]
            told.setdefault(config["learning_rate"], {})[config["lr_warmup_epochs"]] = accuracy
    pairs = {rate: found for rate, found in told.items() if len(found) == 2}
    if not pairs:
        return ""
    parts = [
        f"at {rate:g} {found[max(found)]:.1f} % with a rate that rises over them and {found[0]:.1f} % without"
        for rate, found in sorted(pairs.items())
    ]
    return f"It wants a warm-up too: after its first two epochs ELRT has {'; '.join(parts)}."


def _told_longer(found):
    """What the low-rank network reaches in more epochs, beside the dense one with the same rate, as a sentence."""
    shortest, longest = (pick(epochs for *_, epochs in found) for pick in (min, max))
    for (kind, factors, rate, epochs), runs in found.items():
        dense = found.get(("dense", 1, rate, shortest))
        if kind == "elrt" and factors == 1 and epochs == longest > shortest and dense is not None:
            work = macs_of_epochs(runs[0]) / macs_of_epochs(dense[0])
            return f"""In {epochs} epochs, which take {work:.2f} of the MACs of the dense network's {shortest}, ELRT
            reaches {mean_and_deviation(accuracies(runs))} % at {rate:g}, the dense network in {shortest}
            {mean_and_deviation(accuracies(dense))} %."""
    return ""
