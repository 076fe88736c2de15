"""Sections of the results page that compare runs: formats, penalties, initial factors, recipes."""

import statistics
from functools import partial

from benchmarks.pages import figures, numbers
from benchmarks.pages.numbers import LABELS, accuracy, against, labelled, runs_of
from benchmarks.pages.tables import cells

_HEADER = "{} | test accuracy, % | against dense | against {} | MACs | parameters | factor error"


def _comparison(names):
    """Makes a table and a figure of the ResNet-20 runs in `names`; None with fewer than two of them."""
    groups = runs_of("resnet20")
    found = labelled(groups, names)
    if len(found) < 2 or not {"dense", "elrt"} <= set(groups):
        return None
    dense, elrt = groups["dense"], groups["elrt"]
    rows = [_row(label, runs, dense, elrt) for label, runs in found.items()]
    ends = {label: numbers.accuracies(runs) for label, runs in found.items()}
    curves = {label: runs[0]["history"] for label, runs in found.items()}
    picture = partial(figures.comparison, ends, numbers.accuracies(dense), curves)
    return numbers.section(_HEADER.format("run", names["elrt"]), rows, found.values(), dense, picture=picture)


def _row(label, runs, dense, elrt):
    points = against(runs, dense), against(runs, elrt)
    return cells(label, accuracy(runs), *points, numbers.costs(runs), numbers.factor_error(runs))


def formats():
    """Compares formats at the same part of the MACs."""
    return _comparison(LABELS["formats"])


def starts():
    """Compares initial factors."""
    return _comparison(LABELS["starts"])


def penalties():
    """Compares penalties, each at all its measured strengths."""
    groups = runs_of("resnet20")
    tried = {name: label for name, label in LABELS["penalties"].items() if name in groups}
    told = {name: numbers.strengths(groups[name]) for name in tried}
    return _comparison({name: f"{label}, {told[name]}" if told[name] else label for name, label in tried.items()})


def recipe():
    """Compares changes to the training, the largest gain first."""
    groups = runs_of("resnet20")
    found = _comparison({name: LABELS["recipes"][name] for name in ("elrt", *gains(groups))})
    return found and {**found, "gains": clear_gains(groups), "together": together(groups)}


def gains(groups):
    """Returns `{name: mean points over ELRT with the same seeds}` of recipes, the largest first."""
    found = {}
    for name in [name for name in LABELS["recipes"] if name != "elrt" and {name, "elrt"} <= set(groups)]:
        if points := numbers.differences(groups[name], groups["elrt"]):
            found[name] = statistics.mean(points)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def clear_gains(groups):
    """Lists changes with a larger effect than another seed, as texts; None if the effect of seeds is unknown."""
    deviation, gained = numbers.seed_deviation(groups), gains(groups)
    if deviation is None or not gained:
        return None
    clear = {name: gain for name, gain in gained.items() if abs(gain) > numbers.least_difference(deviation)}
    return [f"{LABELS['recipes'][name]} ({gain:+.1f})" for name, gain in clear.items()]


def together(groups):
    """Compares all helpful changes together with dense networks of the same decay and epochs, as texts."""
    pairs = {name: dense for name, dense in LABELS["twins"].items() if {name, dense} <= set(groups)}
    return [f"{LABELS['recipes'][name]}: {against(groups[name], groups[dense])}" for name, dense in pairs.items()]


def deeper_formats():
    """Compares formats on the deeper networks with the dense one; None if fewer than two formats have results."""
    groups = runs_of("deeper")
    rows, of, best, curves = [], [], [], {}
    for network in [name.removesuffix("_dense") for name in groups if name.endswith("_dense")]:
        labels = LABELS["formats"].items()
        found = labelled(groups, {f"{network}_{name}": label for name, label in labels})
        dense, elrt = groups[f"{network}_dense"], groups.get(f"{network}_elrt")
        if len(found) > 1 and elrt:
            model = elrt[0]["summary"]["model"]
            rows += [cells(model, _row(label, runs, dense, elrt)) for label, runs in found.items()]
            of += found.values()
            points = {label: numbers.differences(runs, elrt) for label, runs in found.items() if runs is not elrt}
            gain, first = max((statistics.mean(values), label) for label, values in points.items())
            best.append(f"{first} by {gain:+.2f} points on {model}")
            curves[network] = {label: [runs[0]["history"]] for label, runs in found.items()}
    if not rows:
        return None
    header = _HEADER.format("network | format", LABELS["formats"]["elrt"])
    return numbers.section(header, rows, of, picture=partial(figures.twins, curves), best=best)
