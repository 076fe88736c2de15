"""The sections of the page of results that set accuracy against cost: alternatives to ELRT, `shrink`, int8."""

import statistics

from benchmarks import figures_of_accuracy
from benchmarks.accuracy_sections import accuracies, beside_dense, macs_of_epochs, mean_and_deviation, runs_of, sources
from benchmarks.headline_section import FULL, SHORT
from benchmarks.markdown import section, table

# The first words of the names of runs, and what they are called.
ALTERNATIVES = {
    "dense": "dense",
    "dense_longer": "dense, more epochs",
    "elrt": "ELRT",
    "longer": "ELRT, more epochs",
    "distillation": "ELRT taught by the dense network",
    "thin": "thin dense network",
    "vbmf": "train, compress by VBMF, fine-tune",
    "si_fd": "SVD, spectral start and Frobenius decay (SI&FD)",
    "pufferfish": "SVD after full-rank warm-up (Pufferfish)",
    "cuttlefish": "SVD, ranks by stable rank after warm-up (Cuttlefish)",
}


def alternatives_section(images):
    """Accuracy beside what the training cost."""
    groups, epochs = runs_of("resnet20")
    found = {label: groups[name] for name, label in ALTERNATIVES.items() if name in groups}
    if len(found) < 3 or "dense" not in groups:
        return ""
    base = macs_of_epochs(groups["dense"][0])
    costs = {label: macs_of_epochs(runs[0]) / base for label, runs in found.items()}
    rows = []
    for label, runs in found.items():
        rows.append(
            [
                *beside_dense(label, runs, groups["dense"]),
                len(runs[0]["history"]),
                f"{costs[label]:.2f}",
                processor_minutes(runs),
            ]
        )
    picture = images / "accuracy_alternatives.png"
    points = {label: (costs[label], accuracies(runs)) for label, runs in found.items()}
    figures_of_accuracy.accuracy_over_cost(points, picture)
    header = [
        "training",
        "test accuracy, %",
        "against dense",
        "MACs",
        "parameters",
        "epochs",
        "training MACs of dense",
        "processor minutes",
    ]
    short = "" if epochs >= 100 else f" Short schedule: {epochs} epochs of one cycle where not told otherwise."
    return section(
        "Against the alternatives, ResNet-20",
        f"""Other ways to a network of about as many MACs. *Training MACs* are those of all epochs, full-rank ones
        included, as a multiple of what training the dense network takes (1.00).{short} Processor minutes are those of
        one core, TensorFlow; they are missing where a run did not keep them.""",
        table(header, rows),
        f"![Test accuracy over the MACs of the training](images/{picture.name})",
        sources([run for runs in found.values() for run in runs]),
    )


def processor_minutes(runs):
    """Processor time of a training, the median of the runs that kept it, as text."""
    kept = [run["summary"]["training_cpu_seconds"] for run in runs if "training_cpu_seconds" in run["summary"]]
    return f"{statistics.median(kept) / 60:.0f}" if kept else ""


def shrink_section(images):
    """One training at half the MACs, shrunk, beside models trained at those budgets."""
    groups, _ = runs_of("resnet20")
    if "elrt_half" not in groups:
        return ""
    run = groups["elrt_half"][0]
    trained = [groups[name][0] for name in ("elrt_half", "elrt_0.4", "elrt") if name in groups]
    own = {each["summary"]["macs_fraction"]: each["summary"]["test_accuracy"] for each in trained}
    rows = []
    for point in run["shrunk"]:
        nearest = min(own, key=lambda fraction: abs(fraction - point["macs_fraction"]))
        close = abs(nearest - point["macs_fraction"]) < 0.02
        rows.append(
            [
                f"{point['macs_fraction']:.1%}",
                f"{100 * point['accuracy']:.2f}",
                f"{100 * own[nearest]:.2f}" if close else "",
            ]
        )
    picture = images / "accuracy_shrink.png"
    figures_of_accuracy.shrink(run["shrunk"], own, picture)
    return section(
        "One training, many models",
        """ResNet-20 trained at half the MACs, its ranks lowered afterwards by `elrt_keras.shrink` without any further
        training, beside networks trained at those budgets from the start, one seed.""",
        table(["MACs", "shrunk, test accuracy, %", "trained there, %"], rows),
        f"![Accuracy over MACs, shrunk and trained](images/{picture.name})",
        sources(trained),
    )


def int8_section():
    """Accuracy of the int8 files of the headline networks."""
    rows, results = [], []
    for grid in FULL + SHORT:
        groups, _ = runs_of(grid)
        for name in [name for name in groups if name.endswith(("dense", "elrt"))]:
            runs = [run for run in groups[name] if run.get("int8_accuracy") is not None]
            if runs:
                before, after = accuracies(runs), [100 * run["int8_accuracy"] for run in runs]
                drops = [b - a for a, b in zip(before, after)]
                label = "dense" if name.endswith("dense") else "ELRT"
                cells = [mean_and_deviation(values) for values in (before, after)]
                summary = runs[0]["summary"]
                rows.append([summary["model"], summary["epochs"], label, *cells, mean_and_deviation(drops, "+")])
                results += runs
    if not rows:
        return ""
    return section(
        "Down to int8",
        """The same networks as fully quantised LiteRT files, calibrated with 500 training images, on all test
        images.""",
        table(["network", "epochs", "training", "as trained, %", "int8, %", "difference, points"], rows),
        sources(results),
    )
