"""Writes `docs/performance.md` and its pictures from the JSON files under `benchmarks/results/`.

python -m benchmarks.performance
"""

import pathlib
import statistics

import numpy as np

from benchmarks import pictures
from benchmarks.markdown import commands, quartiles, section, spread, table
from benchmarks.measure import evidence
from benchmarks.measure.variants import BUDGETS, in_order, ratios
from benchmarks.training_sections import (
    batch_norm_section,
    close_section,
    compiling_section,
    executions_section,
    kernels_section,
    operations_section,
    relative_table,
    training_section,
)
from elrt_keras.formats import tucker2

_DOCS = pathlib.Path(__file__).parent.parent / "docs"


def memory_section():
    """Peak memory of training."""
    results = in_order(evidence.read("training_memory"))
    if not results:
        return ""
    rows = []
    for result in results:
        small, full = result["batch_sizes"]
        fixed, total = ({v: statistics.median(b) / 2**20 for v, b in taken.items()} for taken in result["bytes"])
        per_image = {v: (total[v] - fixed[v]) / (full - small) for v in total}
        for variant in total:
            rows.append(
                [
                    result["model"],
                    full,
                    variant.replace("_", " "),
                    f"{total[variant]:,.0f}",
                    f"{total[variant] / total['dense']:.2f}",
                    f"{fixed[variant]:,.0f}",
                    f"{per_image[variant]:.2f}",
                    f"{per_image[variant] / per_image['dense']:.2f}",
                ]
            )
    header = [
        "model",
        "batch",
        "variant",
        "peak, MiB",
        "of dense",
        "at a batch of 2, MiB",
        "per image, MiB",
        "of dense",
    ]
    return section(
        "Memory",
        """Peak resident memory of a training process, less what it held before the model was built. The chain keeps two
        more activations for each layer; `recompute=True` keeps none of them and runs the chain a second time for the
        gradient. What is there at a batch of two are weights and, on TensorFlow, the compiled graph, which for small
        networks is most of it.""",
        table(header, rows),
        commands(results),
    )


def peers_section():
    """Single layers on PyTorch beside tensorly-torch."""
    result = evidence.read("peers").get("torch")
    if result is None:
        return ""
    rows = []
    for row in result["rows"]:
        shape = f"{row['batch_size']}×{row['size']}×{row['size']}×{row['channels']}, ranks {row['rank']}"
        rows.append((shape, row["seconds"]))
    return section(
        "Beside tensorly-torch and PyTorch's own layers",
        f"""Forward and backward of one 3×3 convolution, as many channels out as in, PyTorch, {result["threads"]}
        threads: how many times faster than this package's channels-last layer each of them is, below 1 slower.
        tensorly-torch and PyTorch's own layers get channels first.""",
        relative_table("input, ranks", rows, "elrt_keras Tucker2Conv2D"),
        commands([result]),
    )


def inference_section(
    start="",
    title="Inference on LiteRT",
    remark="Uniform ranks; ranks planned for measured time are in [results.md](results.md).",
):
    """Speed-ups on LiteRT, of the results whose files begin with a name."""
    found = evidence.read("inference")
    results = in_order({n.removeprefix(start): row for n, row in found.items() if n == f"{start}{row['model']}"})
    if not results:
        return ""
    rows = []
    for result in results:
        for row in result["rows"]:
            speedups = ratios(row["seconds"], "dense")
            cells = []
            for variant in [v for v in row["seconds"] if v != "dense"]:
                reduction = result["macs"]["dense"] / result["macs"][variant]
                cells.append(
                    f"{speedups[variant][0]:.2f}× of {reduction:.2f}× ({speedups[variant][0] / reduction:.2f})"
                )
            dense = 1e3 * statistics.median(row["seconds"]["dense"])
            rows.append([result["model"], row["quantization"], row["threads"], f"{dense:.2f}", *cells])
    variants = [v.replace("_", " ") for v in results[0]["rows"][0]["seconds"] if v != "dense"]
    return section(
        title,
        f"""One image, all files of a model in turns: speed-up against dense, beside the reduction of the MACs, and
        the ratio of the two.
        {remark}""",
        table(["model", "type", "threads", "dense, ms", *variants], rows),
        commands(results),
    )


def decomposing_section():
    """How long decompositions take at several tolerances, and how close they come."""
    results = in_order(evidence.read("decomposing"))
    if not results:
        return ""
    rows = []
    for result in results:
        best = np.array(min(result["errors"].values(), key=sum))
        for tolerance, seconds in result["seconds"].items():
            errors = np.array(result["errors"][tolerance])
            rows.append(
                [
                    result["model"],
                    result["kernels"],
                    f"{float(tolerance):.0e}",
                    spread(seconds, 1),
                    f"{errors.mean():.4f}",
                    f"{(errors / best - 1).max():.2%}",
                ]
            )
    return section(
        "Decomposing",
        f"""What `factorize(…, factor_initializer="decomposed")` spends most of its time on: the Tucker-2 decomposition
        of all kernels at half the MACs, by the tolerance at which the iteration ends. The package's is
        {tucker2._TOLERANCE_OF_LARGE:.0e} for kernels of more than {tucker2._LARGE:,} elements and
        {tucker2._TOLERANCE:.0e} for others. The error is ‖W − Ŵ‖ / ‖W‖, the mean of the kernels;
        *above the best*, the most of any kernel. The kernels are random; from trained ones, of which some directions
        stand out, the iteration needs fewer steps.""",
        table(["model", "kernels", "tolerance", "seconds", "error", "above the best"], rows),
        commands(results),
    )


def grouped_section():
    """How long grouped convolutions take, stock and low-rank."""
    result = evidence.read("grouped").get("cpu")
    if result is None:
        return ""
    training, inference = [], []
    for groups, times in result["rows"].items():
        faster = ratios(times["training"], "stock")
        others = [quartiles(faster[name]) for name in times["training"] if name != "stock"]
        training.append([groups, spread([1e3 * value for value in times["training"]["stock"]], 0), *others])
        cells = []
        for kind in ("float32", "int8"):
            stock = 1e3 * statistics.median(times[kind]["stock"])
            cells += [f"{stock:.3f}", quartiles(ratios(times[kind], "stock")["chain"])]
        inference.append([groups, *cells])
    names = [name for name in next(iter(result["rows"].values()))["training"] if name != "stock"]
    size, channels = result["size"], result["channels"]
    return section(
        "Grouped convolutions",
        f"""A 3×3 convolution of {channels} channels to as many at {size}×{size} pixels, and Tucker-2 at half the full
        ranks of each group: how many times faster than the stock layer. Forward and backward of {result["batch"]}
        images: on a processor the time of TensorFlow's gradient of grouped convolutions grows with the groups, where
        the work shrinks, so low-rank layers train group by group (*as convolutions*: if they did not). On LiteRT one
        image, one thread: a small chain can take longer in int8 than the stock layer, as without groups.""",
        table(["groups", "stock, ms", *names], training),
        table(["groups", "float32, ms", "chain", "int8, ms", "chain, int8"], inference),
        commands([result]),
    )


def growth_section(images):
    """Log-log plots of times over sizes, with their slopes."""
    result = evidence.read("growth").get("cpu")
    if result is None:
        return ""
    picture = images / "growth.png"
    pictures.growth(result["curves"], picture)
    rows = []
    for name, curve in result["curves"].items():
        for series, points in curve["seconds"].items():
            x, y = np.log([float(size) for size in points]), np.log(list(points.values()))
            if len(x) > 2:
                slope, last = np.polyfit(x, y, 1)[0], (y[-1] - y[-2]) / (x[-1] - x[-2])
                rows.append([name.replace("_", " "), curve["axis"], series, f"{slope:.2f}", f"{last:.2f}"])
    return section(
        "Growth",
        """Forward and backward of a 3×3 convolution at batch 32, of a whole training step, and of planning. Slopes are
        exponents: 2 means that twice the size takes four times as long.""",
        f"![Times over sizes](images/{picture.name})",
        table(["curve", "over", "of", "slope", "slope between the last two points"], rows),
        commands([result]),
    )


def rank_grid_section(images):
    """Times at neighbouring ranks, and of networks on the finer and the coarser grid."""
    results = evidence.read("rank_grid")
    layer = results.get("layer")
    if layer is None:
        return ""
    picture = images / "rank_grid.png"
    pictures.rank_grid(layer["seconds"], picture)
    medians = {
        name: {int(rank): statistics.median(values) for rank, values in of_rank.items()}
        for name, of_rank in layer["seconds"].items()
    }
    least = min(next(iter(medians.values())))
    rows = [[rank, *(f"{of[rank] / of[least]:.2f}" for of in medians.values())] for rank in medians["LiteRT float32"]]
    networks = in_order(results)
    steps, cells = ("8", "16"), []
    for result in networks:
        speedups, macs = ratios(result["seconds"], "dense"), result["macs"]
        for budget in BUDGETS:
            told = [
                f"{speedups[f'{step}_{budget}'][0]:.2f}× of {macs['dense'] / macs[f'{step}_{budget}']:.2f}×"
                for step in steps
            ]
            between = ratios(result["seconds"], f"8_{budget}")[f"16_{budget}"]
            cells.append([result["model"], budget, *told, quartiles(between)])
    return section(
        "Neighbouring ranks",
        f"""A 3×3 Tucker-2 convolution of {layer["channels"]} channels at {layer["size"]}×{layer["size"]}, both ranks
        equal: median times as multiples of that at rank {least}. All ranks take turns. Just above a multiple of 16 time
        jumps: this processor has vectors of 16 floats.""",
        table(["rank", *medians], rows),
        f"![Times over ranks](images/{picture.name})",
        "Training steps of networks with ranks in multiples of 8, the default, and of 16 (`multiple_of=16`): speed-up "
        "against dense, beside the reduction of the MACs, and 16 against 8. The default fits the smaller vectors of "
        "most phones (4 floats) and leaves narrow layers more than one choice of ranks.",
        table(["model", "MACs", *(f"multiples of {step}" for step in steps), "16 against 8"], cells),
        commands([layer, *networks]),
    )


def imports_section():
    """How long the import takes."""
    result = evidence.read("imports").get("all")
    if result is None:
        return ""
    rows = [
        [
            backend,
            spread(found["keras"], 2),
            spread(found["elrt_keras"], 2),
            f"{statistics.median(found['elrt_keras']) - statistics.median(found['keras']):+.2f}",
            "yes" if found["tensorflow_loaded"] else "no",
        ]
        for backend, found in result["backends"].items()
    ]
    header = ["backend", "import keras, s", "import elrt_keras, s", "difference of the medians, s", "loads TensorFlow"]
    return section("Import", "Fresh processes, in turns.", table(header, rows), commands([result]))


def page(images):
    """The whole page as text; its pictures go into the folder `images`."""
    parts = [
        "# Performance\n\nGenerated by `python -m benchmarks.performance` from `benchmarks/results/`; not edited by "
        "hand. Every ratio is taken within one run, in turns.\n",
        training_section(images),
        training_section(images, "gpu", "Training step on a GPU"),
        kernels_section(),
        batch_norm_section(),
        operations_section(),
        executions_section(),
        compiling_section(),
        close_section(),
        memory_section(),
        peers_section(),
        inference_section(),
        inference_section(
            "amx_",
            "Inference where the processor multiplies int8 matrices",
            """The same on a processor with AMX, which takes most of the time out of large int8 convolutions. Plans for
            `max_latency` with `quantization="int8"` see that, and budgets that no ranks meet there are refused.""",
        ),
        decomposing_section(),
        grouped_section(),
        growth_section(images),
        rank_grid_section(images),
        imports_section(),
    ]
    return "\n".join(part for part in parts if part)


def main():
    """Writes the page."""
    (_DOCS / "performance.md").write_text(page(_DOCS / "images"), encoding="utf-8")
    print(_DOCS / "performance.md")


if __name__ == "__main__":
    main()
