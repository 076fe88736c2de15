"""Writes `docs/results.md` and its pictures from the JSON files under `benchmarks/results/`.

python -m benchmarks.report
"""

import json
import pathlib
import statistics

from benchmarks.accuracy_sections import accuracy_sections
from benchmarks.cost_sections import alternatives_section, int8_section, shrink_section
from benchmarks.defaults_section import defaults_section
from benchmarks.first_hour_page import first_hour_page
from benchmarks.formats_section import formats_section
from benchmarks.headline_section import headline_section
from benchmarks.markdown import machine, spread, table
from benchmarks.markdown import section as markdown_section
from benchmarks.measure import evidence
from benchmarks.rate_section import rate_section
from benchmarks.recipe_section import recipe_section

_HERE = pathlib.Path(__file__).parent
_DOCS = _HERE.parent / "docs"


def load(experiment):
    """The evidence of an experiment: a list of dicts, dense runs first, then by name."""
    paths = sorted((_HERE / "results" / experiment).glob("*.json"))
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return sorted(runs, key=lambda run: (run["config"]["format"] != "dense", run["name"]))


def accuracy_table(runs):
    """A Markdown table: accuracy and its difference to the dense twin, costs, orthogonality error."""
    dense = next((run for run in runs if run["config"]["format"] == "dense"), None)
    lines = [
        "| run | test accuracy | against dense | params | MACs | MACs of dense | mean orthogonality error | s/epoch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        summary = run["summary"]
        errors = list(summary["orthogonality_error"].values())
        difference = summary["test_accuracy"] - dense["summary"]["test_accuracy"] if dense else None
        lines.append(
            "| "
            + " | ".join(
                [
                    run["name"],
                    f"{summary['test_accuracy']:.2%}",
                    "" if difference is None or run is dense else f"{100 * difference:+.2f} points",
                    f"{summary['params']:,}",
                    f"{summary['macs'] / 1e6:.2f} M",
                    f"{summary['macs_fraction']:.1%}",
                    f"{sum(errors) / len(errors):.3f}" if errors else "",
                    f"{summary['seconds_per_epoch']:.0f}",
                ]
            )
            + " |"
        )
    return "\n".join(lines)


def plot(runs, path):
    """Test accuracy and orthogonality error over the epochs, one line a run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    accuracy, error = figure.subplots(1, 2)
    for run in runs:
        epochs = [row["epoch"] + 1 for row in run["history"]]
        accuracy.plot(epochs, [100 * row["val_accuracy"] for row in run["history"]], marker=".", label=run["name"])
        if "orthogonality_error_mean" in run["history"][0]:
            values = [row["orthogonality_error_mean"] for row in run["history"]]
            error.plot(epochs, values, marker=".", label=run["name"])
    accuracy.set(xlabel="epoch", ylabel="test accuracy (%)")
    error.set(xlabel="epoch", ylabel="mean orthogonality error of the factors", yscale="log")
    for axis in (accuracy, error):
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def section(title, text, experiment, images):
    """One section of the page: text, table, picture, commands, machine; empty if nothing was measured yet."""
    runs = load(experiment)
    if not runs:
        return ""
    picture = images / f"{experiment}.png"
    plot(runs, picture)
    measured_on = machine(runs[0]["machine"])
    commands = "\n".join(f"{run['command']} --run_dir=runs/{run['name']}" for run in runs)
    return (
        f"## {title}\n\n{text}\n\nData: {runs[0]['data']}.\n\n{accuracy_table(runs)}\n\n"
        f"![Accuracy and orthogonality error over the epochs](images/{picture.name})\n\n"
        f"Commands (with `--data_dir` or `--download` where the data comes through TFDS):\n\n```\n{commands}\n```\n\n"
        f"{measured_on}\n"
    )


def throughput_section():
    """Input pipelines against training steps; empty if nothing was measured yet."""
    rows = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((_HERE / "results" / "throughput").glob("*.json"))
    ]
    if not rows:
        return ""
    lines = [
        "| data | augmentation | pipeline, images/s | training step | step, images/s | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        shape = "×".join(map(str, row["image_shape"][:2]))
        lines.append(
            f"| {row['note']} | {row['augmentation']} | {spread(row['pipeline'])} | {row['model']} {row['format']}, "
            f"{shape}, batch {row['batch_size']} | {spread(row['step'])} | {row['ratio']:.1f}× |"
        )
    measured_on = machine(rows[0]["machine"])
    return (
        "## Input pipelines against training steps\n\nEach pipeline alone and each training step alone, in turns in "
        "one process, on the same cores: median (lowest to highest). A ratio well above 1 means that training does not "
        "wait for data. Measured by `python -m benchmarks.measure throughput`.\n\n"
        + "\n".join(lines)
        + f"\n\n{measured_on}\n"
    )


def _optional(speedups):
    return "" if speedups is None else f"{spread(speedups, 2)}×"


def latency_section():
    """Predicted against measured speed-ups on LiteRT; empty if nothing was measured yet."""
    results = list(evidence.read("latency").values())
    if not results:
        return ""

    def kind(result):
        return result.get("quantization", "float32")  # the first runs were all of this kind

    def place(result):
        return kind(result), result["model"], result["threads"], -result["max_latency"]

    rows = [
        [
            row["model"],
            kind(row),
            row["max_latency"],
            row["threads"],
            spread(row["dense_ms"], 2),
            spread(row["low_rank_ms"], 2),
            f"{row['predicted_speedup']:.2f}×",
            f"{spread(row['measured_speedup'], 2)}×",
            _optional(row.get("uniform_speedup")),
            f"{row['macs_reduction']:.2f}×",
            f"{statistics.median(row['measured_speedup']) / row['macs_reduction']:.2f}",
            f"{row['planning_seconds']:.0f}",
        ]
        for row in sorted(results, key=place)
    ]
    header = ["model", "type", "max_latency", "threads", "dense, ms", "low-rank, ms", "speed-up, predicted", "measured"]
    header += ["uniform ranks", "MACs reduction", "measured / MACs", "planning, s"]
    return markdown_section(
        "Ranks for a latency: predicted and measured on LiteRT",
        """`plan_ranks(max_latency=…)` on models with random weights at their own input size, Tucker-2 (SVD for 1×1
        convolutions and dense layers). Dense and low-rank model take turns; median (lowest to highest) of the rounds.
        *Uniform ranks* is a network with as many MACs and one fraction of the full ranks everywhere. Planning at the
        second budget of a model reads the times of the first. Measured by `python -m benchmarks.measure latency`.""",
        table(header, rows),
        machine(results[0]["machine"]),
    )


def quantization_section(images):
    """Accuracy and latency of every kind of LiteRT file; empty if nothing was measured yet."""
    path = _HERE / "results" / "quantization" / "cifar10.json"
    if not path.exists():
        return ""
    from elrt_keras.launch import latency

    result = json.loads(path.read_text(encoding="utf-8"))
    rows = result["rows"]
    picture = images / "quantization.png"
    latency.plot(rows, picture)
    lines = [
        "| file | test accuracy | median ms (10–90 %) | speed-up | bytes | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in zip(latency.short_names([row["path"] for row in rows]), rows):
        lines.append(
            f"| {name} | {row['accuracy']:.2%} | {row['median_ms']:.3f} ({row['low_ms']:.3f}–{row['high_ms']:.3f}) "
            f"| {rows[0]['median_ms'] / row['median_ms']:.2f}× | {row['size_bytes']:,} "
            f"| {row['peak_memory_bytes'] / 2**20:.1f} MiB |"
        )
    commands = "\n".join(result["commands"])
    measured_on = machine(result["machine"])
    return (
        "## ResNet-20 on CIFAR-10 as LiteRT files\n\nDense and low-rank (Tucker-2, 40 % of the MACs, double soft "
        "orthogonality), one recipe and one seed; `merged` is the low-rank model's dense architecture, "
        f"`quantization_aware` int8 after {result['tuning_epochs']} epochs of fine-tuning, `int8` without any. All "
        "files take turns on one thread. Measured by `python -m benchmarks.measure quantization`.\n\n"
        + "\n".join(lines)
        + f"\n\n![Accuracy over latency](images/{picture.name})\n\n```\n{commands}\n```\n\n{measured_on}\n"
    )


def zoo_page():
    """The page about keras.applications and keras-hub; empty if nothing was measured yet."""
    paths = sorted((_HERE / "results" / "zoo").glob("*.json"))
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    if not rows:
        return ""
    tasks = [row for row in rows if "(" in row["model"]]
    rows = [row for row in rows if row not in tasks]
    measured_on = machine(rows[0]["machine"])
    unstable = ", ".join(
        f"{row['model']} {row['perturbed_difference']:.0e}" for row in rows if row["merged_difference"] > 1e-5
    )
    return (
        "# Which CNNs can be taken low-rank, and how far\n\n"
        "Generated by `python -m benchmarks.report` from `benchmarks/results/zoo/`, which "
        "`python -m benchmarks.measure zoo` measures; not edited by hand.\n\n"
        "Every CNN of `keras.applications` and backbones of keras-hub (`hub/…`), with random weights, Tucker-2 for "
        "convolutions larger than 1×1 and SVD for 1×1 convolutions and dense layers, ranks in multiples of 8, the "
        "first convolution and the classifier dense. *Layers* counts convolutions and dense layers, *low-rank* those "
        "that get cheaper at the smallest ranks; a separable convolution counts as its two stages. *Smallest* is "
        "what is left of the dense model at those ranks: a bound "
        "on budgets, no recommendation. Depthwise convolutions stay as they are, which is why models built "
        "on them cannot get as small. The model at half its MACs (at the smallest ranks where that is more) was run, "
        "saved, reloaded, expanded and merged; the last three columns are the largest difference of an output, "
        "relative to the largest output.\n\n"
        + _zoo_table(rows)
        + "\n\nModels whose merged outputs differ by more than rounding amplify rounding themselves while their "
        f"weights are random. What a change of the pixels by 1e-7 relative does to their outputs: {unstable}."
        + f"\n\n{measured_on} Times with other work on the machine.\n"
        + _zoo_tasks(tasks)
    )


def _zoo_tasks(rows):
    if not rows:
        return ""
    return (
        "\n## Tasks of keras-hub\n\n"
        "They keep their class and what it does beside the graph: preprocessing, boxes out of scores, losses. A "
        "low-rank one is saved and loaded as any other, and a detector or a segmenter can also be built on a low-rank "
        "backbone. The columns are those above.\n\n"
        + _zoo_table(rows)
        + f"\n\n{machine(rows[0]['machine'])} Times with other work on the machine.\n"
    )


def _zoo_table(rows):
    lines = [
        "| model | input | MACs | layers | low-rank | smallest MACs | smallest params | at a budget of 50 % "
        "| plan s (uniform / energy) | reloaded | expanded | merged |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | {'×'.join(map(str, row['input']))} | {row['macs'] / 1e9:.3f} G | {row['layers']} "
            f"| {row['factorized_layers']} | {row['smallest_macs']:.1%} | {row['smallest_params']:.1%} "
            f"| {row['planned_macs']:.1%} | {row['uniform_seconds']:.1f} / {row['energy_seconds']:.1f} "
            + "".join(f"| {row[f'{kind}_difference']:.0e} " for kind in ("reloaded", "expanded", "merged"))
            + "|"
        )
    return "\n".join(lines)


def results_page(images):
    """The page of results as text; its pictures go into the folder `images`."""
    parts = [
        "# Results\n\nGenerated by `python -m benchmarks.report` from `benchmarks/results/`; not edited by hand.\n",
        headline_section(images),
        *accuracy_sections(images),
        formats_section(images),
        recipe_section(images),
        rate_section(images),
        alternatives_section(images),
        shrink_section(images),
        int8_section(),
        defaults_section(),
        section(
            "ResNet-20 at 40 % of the MACs, short schedule",
            "Dense against ELRT (Tucker-2 from scratch at 40 % of the MACs), without and with double soft "
            "orthogonality. One recipe, one seed, a one-cycle schedule of few epochs: it shows that the parts work "
            "together and how far the penalty keeps the factors orthonormal. One seed and a short schedule say little "
            "about differences of a point. Both low-rank runs have the ranks of "
            "`benchmarks/results/plans/resnet20_cifar10_0.4.json` (for `--rank_plan`); the planner of "
            "today, which steps single ranks, gives two of the layers others.",
            "cifar10_short",
            images,
        ),
        section(
            "How strong a penalty keeps the factors orthonormal",
            "ResNet-20 on the embedded digits at several strengths ρ of double soft orthogonality. The default of "
            "`elrt-train`, ρ = 0.01, comes from here.",
            "digits_strength",
            images,
        ),
        throughput_section(),
        latency_section(),
        quantization_section(images),
    ]
    return "\n".join(part for part in parts if part)


def main():
    """Writes the pages."""
    (_DOCS / "models.md").write_text(zoo_page(), encoding="utf-8")
    (_DOCS / "first-hour.md").write_text(first_hour_page(), encoding="utf-8")
    (_DOCS / "results.md").write_text(results_page(_DOCS / "images"), encoding="utf-8")
    print(_DOCS / "results.md")


if __name__ == "__main__":
    main()
