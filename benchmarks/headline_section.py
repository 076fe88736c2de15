"""The section of the page of results that sets ELRT beside the dense networks, on the full and the short schedule."""

import json
import pathlib
import statistics

from benchmarks import figures_of_accuracy
from benchmarks.accuracy_sections import (
    accuracies,
    differences,
    macs_of_epochs,
    mean_and_deviation,
    orthogonality_error,
    runs_of,
    sources,
    strengths,
)
from benchmarks.markdown import section, table
from benchmarks.measure import evidence
from benchmarks.train.driver import expanded

# Grids with runs called `dense` and `elrt`, after the network's name if there are several networks.
FULL, SHORT = ("full",), ("resnet20", "deeper")
# Runs of the full grid beside ELRT's of ResNet-20, most with one change to it, and what they are called.
CHANGES = {
    "resnet20_vbmf": "dense network, compressed by VBMF, 20 more epochs",
    "resnet20_thin": "thin dense network",
    "resnet20_half_width": "dense network of half the width (8, 16, 32 channels), float32",
    "resnet20_any_ranks": "any ranks",
    "resnet20_cp": "CP format, any ranks",
    "resnet20_glorot": "Glorot factors",
    "resnet20_weight_decay": "weight decay 1e-4 instead of 5e-4",
    "resnet20_distillation": "taught by the dense network",
    "resnet20_cp_distillation": "CP format, any ranks, taught by the dense network",
}
_PUBLISHED = pathlib.Path(__file__).parent / "published.json"
_GRIDS = pathlib.Path(__file__).parent / "grids"


def headline_section(images):
    """Dense networks and their ELRT twins; empty without results."""
    full, short = _pairs(FULL), _pairs(SHORT)
    if not full and not short:
        return ""
    results = [run for pair in full + short for runs in pair for run in runs]
    published = [
        [row["model"], row["method"], row["result"], row["reduction"]]
        for row in json.loads(_PUBLISHED.read_text(encoding="utf-8"))
    ]
    return section(
        "ELRT against the dense network",
        f"""Tucker-2 from scratch with double soft orthogonality ({strengths(results)}, uniform ranks), and the dense
        network with the same data, recipe and seeds: mean ± standard deviation (number of seeds) of the test accuracy
        after the last epoch; differences are taken seed by seed. *Factor error* is the mean orthogonality error of the
        factors. Data: {results[0]["data"]}.""",
        *_full_blocks(full, images),
        *_short_blocks(short),
        "Published, on CIFAR-10 itself and on full schedules, none of them ours:",
        table(["network", "method", "top-1, %", "FLOPs less"], published),
        sources(results),
    )


def _pairs(grids):
    """`(dense runs, low-rank runs)` of each network in some grids."""
    found = []
    for grid in grids:
        groups, _ = runs_of(grid)
        for name in [name for name in groups if name.endswith("dense")]:
            twin = name.removesuffix("dense") + "elrt"
            if twin in groups:
                found.append((groups[name], groups[twin]))
    return found


def _full_blocks(pairs, images):
    """The table of the full schedule, its curves and what they say."""
    if not pairs:
        return []
    config = pairs[0][0][0]["config"]
    picture = images / "accuracy_full.png"
    networks = {
        pair[0][0]["config"]["model"]: {
            label: [run["history"] for run in runs] for label, runs in zip(("dense", "ELRT"), pair)
        }
        for pair in pairs
    }
    figures_of_accuracy.twins(networks, picture)
    gaps = {pair[0][0]["config"]["model"]: statistics.mean(differences(*reversed(pair))) for pair in pairs}
    below = ", ".join(f"{model} by {-gap:.2f}" for model, gap in gaps.items() if gap < 0)
    goal = f"ELRT ends below the dense network: {below} points." if below else ""
    text = f"""**Full schedule**: {config["epochs"]} epochs, batches of {config["batch_size"]},
    {config["lr_warmup_epochs"]} epochs of rising and then a cosine of falling learning rate, weight decay
    {config["weight_decay"]:g} ({config["weight_decay_kind"]}), {config["precision"]}. {goal} {_told_fit(pairs)}"""
    return [
        " ".join(text.split()),
        _table(pairs),
        f"![Test accuracy over the epochs: mean and span of the seeds](images/{picture.name})",
        *_changes(),
        *_missing(),
    ]


def _changes():
    """A table of what else reaches how much at about the same MACs on the full schedule."""
    groups, _ = runs_of("full")
    rows = [
        [
            label,
            mean_and_deviation(accuracies(groups[name])),
            mean_and_deviation(differences(groups[name], groups["resnet20_elrt"]), "+"),
            f"−{1 - groups[name][0]['summary']['macs_fraction']:.1%}",
            f"−{1 - groups[name][0]['summary']['params_fraction']:.1%}",
            f"{macs_of_epochs(groups[name][0]) / macs_of_epochs(groups['resnet20_dense'][0]):.2f}",
        ]
        for name, label in CHANGES.items()
        if name in groups
    ]
    header = [
        "beside ELRT of resnet20",
        "test accuracy, %",
        "against ELRT",
        "MACs",
        "parameters",
        "training MACs of dense",
    ]
    return [table(header, rows)] if rows else []


def _missing():
    """Which runs of the full grid there are no results of, as a list of one text."""
    grid = json.loads((_GRIDS / "full.json").read_text(encoding="utf-8"))
    found = evidence.read("full")
    missing = [f"`{name}`" for name in expanded(grid) if name not in found]
    if not missing:
        return []
    again = "`bash benchmarks/gpu.sh TFDS_DIR SECONDS` goes on with them."
    return [f"Not run on the full schedule, which takes a GPU: {', '.join(missing)}. {again}"]


def _told_fit(pairs):
    """How far the networks fit the training images."""
    told = []
    for pair in pairs:
        dense, low_rank = (100 * statistics.mean(run["history"][-1]["accuracy"] for run in runs) for runs in pair)
        told.append(f"{pair[0][0]['config']['model']} {dense:.1f} and {low_rank:.1f} %")
    return f"""On the training images, augmented, dense and ELRT end at {"; ".join(told)}: a low-rank network that is
    far below its twin there lacks capacity, and regularising it more would not help; where both fit these images, what
    sets them apart is how they generalise."""


def _short_blocks(pairs):
    """The table of the short schedule."""
    if not pairs:
        return []
    epochs = sorted({pair[0][0]["config"]["epochs"] for pair in pairs})
    text = f"""**Short schedule: {" and ".join(map(str, epochs))} epochs of one cycle; the literature trains for 200.**
    Nothing has converged; low-rank and dense networks lose different amounts by that, so these differences say how
    fast the networks train and not where they end."""
    return [" ".join(text.split()), _table(pairs)]


def _table(pairs):
    rows = []
    for dense, low_rank in pairs:
        summary = low_rank[0]["summary"]
        rows.append(
            [
                summary["model"],
                summary["epochs"],
                mean_and_deviation(accuracies(dense)),
                mean_and_deviation(accuracies(low_rank)),
                mean_and_deviation(differences(low_rank, dense), "+"),
                f"−{1 - summary['macs_fraction']:.1%}",
                f"−{1 - summary['params_fraction']:.1%}",
                f"{orthogonality_error(low_rank):.3f}",
            ]
        )
    header = ["network", "epochs", "dense, %", "ELRT, %", "difference, points", "MACs", "parameters", "factor error"]
    return table(header, rows)
