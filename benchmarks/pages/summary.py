"""The page of one screen: accuracy over MACs, speed, gains of recipes, defaults that are not the best measured."""

from functools import partial

from benchmarks.pages import comparisons, figures, networks, numbers
from benchmarks.pages.measured import of_networks, ratios
from benchmarks.pages.numbers import LABELS, labelled, runs_of
from benchmarks.pages.tables import cells, table

_NETWORKS = {"resnet20": "ResNet-20", "resnet56": "ResNet-56", "vgg16": "VGG-16"}
_LOW_RANK, _THIN = "low_rank_0.4", "thin_0.4"


def accuracy():
    """Accuracies of the full schedule beside the dense networks and over MACs; None without results."""
    groups, points, twins = runs_of("full"), {}, networks.headline()
    if not twins or not twins["full"]:
        return None
    full = twins["full"]
    for start, network in _NETWORKS.items():
        found = {"dense": groups.get(f"{start}_dense"), "ELRT": groups.get(f"{start}_elrt")}
        changes = {label: runs for label, runs in labelled(groups, LABELS["changes"]).items() if start == "resnet20"}
        changes |= labelled(groups, {f"{start}_cp_seed0": "CP format", f"{start}_cp": "CP format"})
        for label, runs in (found | changes).items():
            if runs:
                points.setdefault(network, {})[label] = runs[0]["summary"]["macs"] / 1e6, numbers.accuracies(runs)
    picture = partial(figures.accuracy_over_macs, points)
    return {"table": full["table"], "epochs": full["config"]["epochs"], "picture": picture}


def speeds():
    """Speed-ups over the dense network at 40 % of the MACs, of low-rank and of thin networks; empty without results."""
    places = (("steps", "cpu_"), ("steps", "gpu_"))
    steps = [{result["model"]: result for result in of_networks(*place)} for place in places]
    found, rows = of_networks("inference"), []
    for inference in found:
        by_kind = {row["quantization"]: row for row in reversed(inference["rows"])}  # those of one thread stand first
        seconds = [by_kind[kind]["seconds"] for kind in ("float32", "int8")]
        trained = [of[inference["model"]]["seconds"] if inference["model"] in of else {} for of in steps]
        rows.append(cells(inference["model"], *map(_pair, [*seconds, *trained])))
    header = "network | LiteRT float32, low rank (thin) | LiteRT int8 | training step, CPU | training step, GPU"
    return table(header, rows) if rows else ""


def _pair(seconds):
    """`2.10× (1.85×)`: the low-rank network, and the thin one of as many MACs."""
    if _LOW_RANK not in seconds:
        return ""
    faster = ratios(seconds, "dense")
    thin = f" ({faster[_THIN][0]:.2f}×)" if _THIN in faster else ""
    return f"{faster[_LOW_RANK][0]:.2f}×{thin}"


def part_of_macs():
    """Part of the dense MACs of ELRT's ResNet-20 in the comparisons, as text."""
    groups = runs_of("resnet20")
    return f"{groups['elrt'][0]['summary']['macs_fraction']:.0%}" if "elrt" in groups else ""


def gains():
    """Changes to the recipe of ResNet-20 that help more than another seed would, the largest first, as texts."""
    groups = runs_of("resnet20")
    deviation = numbers.seed_deviation(groups)
    if deviation is None:
        return []
    least = numbers.least_difference(deviation)
    found = comparisons.gains(groups)
    return [f"{LABELS['recipes'][name]}: {gain:+.1f} points" for name, gain in found.items() if gain > least]


def defaults():
    """Defaults below the best that was measured by more than another seed would do, as texts with the reason."""
    groups = runs_of("resnet20")
    deviation = numbers.seed_deviation(groups)
    if deviation is None or "elrt" not in groups:
        return []
    texts = []
    for field, names in LABELS["defaults"].items():
        tried = labelled(groups, names)
        best = max(tried, key=lambda label: numbers.mean(tried[label]), default=None)
        gap = numbers.mean(tried[best]) - numbers.mean(groups["elrt"]) if best else 0.0
        if gap > numbers.least_difference(deviation) and field in LABELS["reasons"]:
            texts.append(f"`--{field}`: {best} is {gap:.1f} points better. {LABELS['reasons'][field]}")
    return texts


def headline():
    """A row for each network: its MACs, accuracies on the full schedule, and speed-ups on LiteRT at that budget."""
    groups, rows = runs_of("full"), []
    measured = {result["model"]: result for result in of_networks("inference", "formats_")}
    for start, network in _NETWORKS.items():
        dense, elrt = groups.get(f"{start}_dense"), groups.get(f"{start}_elrt")
        if not dense or not elrt:
            continue
        inference, speeds = measured.get(elrt[0]["summary"]["model"]), ["", ""]
        if inference:
            variant = next(name for name in inference["macs"] if name.startswith("tucker2"))
            by_kind = {row["quantization"]: row["seconds"] for row in inference["rows"]}
            speeds = [f"{ratios(by_kind[kind], 'dense')[variant][0]:.1f}×" for kind in ("float32", "int8")]
        ends = numbers.accuracy(dense), numbers.accuracy(elrt)
        rows.append(cells(network, f"{elrt[0]['summary']['macs_fraction']:.0%}", *ends, *speeds))
    header = (
        f"CIFAR-10, {numbers.epochs(groups)} epochs | MACs of dense | dense, % | ELRT, % | LiteRT float32 | LiteRT int8"
    )
    return table(header, rows) if rows else ""
