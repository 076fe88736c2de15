"""The section of the page of results on whether formats keep their order on networks other than ResNet-20."""

import statistics

from benchmarks import figures_of_accuracy
from benchmarks.accuracy_sections import (
    FORMATS,
    beside_dense,
    differences,
    mean_and_deviation,
    noise,
    orthogonality_error,
    runs_of,
    sources,
)
from benchmarks.markdown import section, table


def formats_section(images):
    """Formats on the deeper networks, beside the dense one; empty while fewer than two formats have results."""
    groups, epochs = runs_of("deeper")
    networks = {}
    for name in groups:
        network, _, format_name = name.partition("_")
        if format_name in FORMATS and f"{network}_dense" in groups:
            networks.setdefault(network, {})[format_name] = groups[name]
    networks = {
        network: {name: found[name] for name in FORMATS if name in found}
        for network, found in networks.items()
        if len(found) > 1 and "elrt" in found
    }
    if not networks:
        return ""
    rows = [
        _row(FORMATS[name], runs, found["elrt"], groups[f"{network}_dense"])
        for network, found in networks.items()
        for name, runs in found.items()
    ]
    picture = images / "accuracy_deeper_formats.png"
    figures_of_accuracy.twins(
        {
            network: {FORMATS[name]: [run["history"] for run in runs[:1]] for name, runs in found.items()}
            for network, found in networks.items()
        },
        picture,
    )
    header = ["network", "format", "test accuracy, %", "against dense", "against Tucker-2"]
    return section(
        "Formats, deeper networks",
        f"""The formats that did best on ResNet-20, each at the same part of the MACs, with DSO, at the learning rate of
        Tucker-2. {_told(networks)} Short schedule: {epochs} epochs of one cycle. {noise(groups)}
        The curves are those of seed 0.""",
        table([*header, "MACs", "parameters", "factor error"], rows),
        f"![Test accuracy over the epochs](images/{picture.name})",
        sources([run for found in networks.values() for runs in found.values() for run in runs]),
    )


def _row(label, runs, tucker2, dense):
    summary, gained = runs[0]["summary"], differences(runs, tucker2) if runs is not tucker2 else []
    first, *cells = beside_dense(label, runs, dense)
    return [
        summary["model"],
        first,
        *cells[:2],
        mean_and_deviation(gained, "+") if gained else "",
        *cells[2:],
        f"{orthogonality_error(runs):.3f}",
    ]


def _told(networks):
    """By how much which format is ahead of Tucker-2 on each network, as a sentence."""
    told = []
    for found in networks.values():
        gains = {
            name: statistics.mean(differences(runs, found["elrt"])) for name, runs in found.items() if name != "elrt"
        }
        best = max(gains, key=gains.get)
        model = found["elrt"][0]["summary"]["model"]
        told.append(f"{FORMATS[best]} by {gains[best]:+.2f} points on {model}")
    return f"The best of them beside Tucker-2: {', '.join(told)}."
