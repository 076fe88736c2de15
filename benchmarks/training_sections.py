"""The sections of the page on performance that are about training steps and their parts."""

import statistics

from benchmarks import pictures
from benchmarks.markdown import commands, quartiles, section, table
from benchmarks.measure import evidence
from benchmarks.measure.variants import in_order, ratios

_GOAL = 0.75  # speed-up over MACs reduction


def steps_of(start):
    """Results of `benchmarks.measure steps` whose files begin with a name."""
    found = evidence.read("steps")
    return in_order(
        {name.removeprefix(f"{start}_"): row for name, row in found.items() if name.startswith(f"{start}_")}
    )


def training_section(images, start="cpu", title="Training step"):
    """Speed-ups of forward, backward and update against the dense model."""
    results = steps_of(start)
    if not results:
        return ""
    rows = []
    for result in results:
        speedups = ratios(result["seconds"], "dense")
        for variant in [v for v in result["seconds"] if v.startswith(("low_rank", "thin", "recomputed"))]:
            reduction = result["macs"]["dense"] / result["macs"][variant]
            seconds = statistics.median(result["seconds"][variant])
            rows.append(
                [
                    result["model"],
                    result["batch_size"],
                    variant.replace("_", " "),
                    _milliseconds(statistics.median(result["seconds"]["dense"])),
                    _milliseconds(seconds),
                    quartiles(speedups[variant]),
                    f"{reduction:.2f}×",
                    f"{speedups[variant][0] / reduction:.2f}",
                    # Forward, gradient of the weights and gradient of the inputs, two operations each.
                    f"{6e-12 * result['macs'][variant] * result['batch_size'] / seconds:.2f}",
                ]
            )
    picture = images / f"steps_{start}.png"
    pictures.speedups(results, _GOAL, picture)
    header = ["model", "batch", "variant", "dense, ms", "variant, ms", "speed-up", "MACs reduction", "ratio", "TFLOP/s"]
    return section(
        title,
        f"""Forward, backward and update on random images, {results[0]["precision"]},
        {results[0]["machine"]["backend"]} backend. All variants of a model take turns, in another order each round:
        median of the speed-ups of the rounds (lower to upper quartile). *Low rank* has uniform Tucker-2 ranks at
        that part of the MACs and double soft orthogonality; *thin* is the dense network with fewer channels and as
        many MACs; *recomputed* is low-rank with `recompute=True`. `elrt.fuse_batch_norm` was called for all of
        them; it leaves alone what has channels that are no multiple of 4, as thin networks do. The goal is a ratio
        of {_GOAL} of the speed-up to the MACs reduction.""",
        table(header, rows),
        f"![Speed-up over MACs reduction](images/{picture.name})",
        commands(results),
    )


def _milliseconds(seconds):
    """Three digits or more."""
    return f"{1e3 * seconds:,.{0 if seconds > 0.1 else 1}f}"


def kernels_section():
    """Where a GPU spends the time of a step."""
    results = in_order({result["model"]: result for result in evidence.read("kernels").values()})
    if not results:
        return ""
    blocks = []
    for result in results:
        variants = result["milliseconds"]
        kinds = dict.fromkeys(kind for found in variants.values() for kind in found)
        rows = [[kind, *(f"{found.get(kind, 0):.2f}" for found in variants.values())] for kind in kinds]
        rows.append(["**all**", *(f"**{sum(found.values()):.2f}**" for found in variants.values())])
        speedups = ratios(result["seconds"], "dense")
        rows.append(["speed-up of the step, not profiled", *(quartiles(speedups[variant]) for variant in variants)])
        header = [f"{result['model']}, batch {result['batch_size']}", *(name.replace("_", " ") for name in variants)]
        blocks.append(table(header, rows))
    return section(
        "Where a step spends its time on a GPU",
        """Milliseconds of a step's kernels by what they compute, JAX's profiler, bfloat16. *As products* has the 1×1
        stages as matrix products; XLA runs a 1×1 convolution's gradient of its inputs as a convolution forward. The
        core is a 3×3 convolution of fewer channels. On 8 cuDNN takes as long as on the 16 of the dense network, since
        its tiles are 32 channels wide; in ResNet-18 a quarter of the MACs takes half as long. What that saves the two
        1×1 stages take: they compute little for each byte they read and write, on a chip that computes some hundred
        operations in the time of reading one byte. As matrix products they take as long. Batch-norm and
        activations take as long at every rank; the penalty adds the products in float32, and a little to the rest.""",
        *blocks,
        commands(results),
        *dict.fromkeys(result["note"] for result in results if "note" in result),
    )


def batch_norm_section():
    """What fused batch-norm saves of a step."""
    results = [result for result in steps_of("cpu") if "unfused_1.0" in result["seconds"]]
    if not results:
        return ""
    rows = []
    for result in results:
        cells = [result["model"]]
        for fused, unfused in (("dense", "unfused_1.0"), ("low_rank_0.4", "unfused_0.4")):
            middle = 1e3 * statistics.median(result["seconds"][unfused])
            cells += [f"{middle:,.0f}", quartiles(ratios(result["seconds"], unfused)[fused])]
        rows.append(cells)
    header = ["model", "dense, stock, ms", "fused", "low rank 0.4, stock, ms", "fused"]
    return section(
        "Fused batch-norm",
        """The same training steps with Keras' batch-norm as it is, and how many times faster they are after
        `elrt.fuse_batch_norm(model)`, which `elrt-train` does by itself.""",
        table(header, rows),
        commands(results),
        *_batch_norm_layers(),
    )


def _batch_norm_layers():
    """Blocks about single batch-norm layers."""
    result = evidence.read("batch_norm").get("cpu")
    if result is None:
        return []
    rows = []
    for row in result["rows"]:
        batch_size, size, channels = row["shape"]
        rows.append((f"{batch_size}×{size}×{size}×{channels}", row["seconds"]))
    text = """Forward and backward of one layer. At channels that are no multiple of 4 the operation is slower than what
        Keras composes; such layers stay as they are."""
    return [" ".join(text.split()), relative_table("input", rows, "stock"), commands([result])]


def operations_section():
    """What part of a step are convolutions, and what that allows."""
    results = in_order(evidence.read("operations"))
    if not results:
        return ""
    rows = []
    for result in results:
        for variant, kinds in result["milliseconds"].items():
            products = sum(value for kind, value in kinds.items() if kind.startswith(("Conv2D", "MatMul")))
            total = sum(kinds.values())
            largest = [
                f"{kind} {value:.0f}" for kind, value in kinds.items() if not kind.startswith(("Conv2D", "MatMul"))
            ]
            rows.append(
                [
                    result["model"],
                    variant.replace("_", " "),
                    f"{total:,.0f}",
                    f"{products:,.0f}",
                    f"{products / total:.0%}",
                    ", ".join(largest[:4]),
                ]
            )
    header = [
        "model",
        "variant",
        "all operations, ms",
        "convolutions and products, ms",
        "their part",
        "largest others, ms",
    ]
    return section(
        "Where a step spends its time",
        """TensorFlow's profiler, milliseconds of all threads for one step. What is no convolution or matrix
        product, most of it batch-norm and its gradient, costs the same at every rank: it bounds what fewer MACs can
        save. Convolutions of few channels do not get quicker in proportion to their MACs either, as the column of
        their milliseconds shows.""",
        table(header, rows),
        commands(results),
    )


def relative_table(heading, rows, base):
    """A table of how many times faster than `base` each of the others is; `rows` are `(label, seconds)`."""
    others = [name for name in rows[0][1] if name != base]
    cells = []
    for label, seconds in rows:
        times = ratios(seconds, base)
        middle = 1e3 * statistics.median(seconds[base])
        cells.append([label, f"{middle:.1f}", *(quartiles(times[name]) for name in others)])
    return table([heading, f"{base.removeprefix('elrt_keras ')}, ms", *others], cells)


def executions_section():
    """The ways to run one layer."""
    result = evidence.read("executions").get("cpu")
    if result is None:
        return ""
    rows = []
    for row in result["rows"]:
        batch_size, size, channels, rank = row["shape"]
        rows.append((f"{batch_size}×{size}×{size}×{channels}, ranks {rank}", row["seconds"]))
    return section(
        "Ways to run the chain",
        """Forward and backward of one Tucker-2 convolution, 3×3, TensorFlow: how many times faster than the chain with
        its 1×1 stages as matrix products, which is what the layers do while training; below 1 slower.""",
        relative_table("input, ranks", rows, "matrix products"),
        commands([result]),
    )


def compiling_section():
    """XLA, and several steps to a call."""
    results = in_order(evidence.read("compiling"))
    if not results:
        return ""
    rows = [
        (f"{result['model']}, {row['variant'].replace('_', ' ')}", row["seconds"])
        for result in results
        for row in result["rows"]
    ]
    return section(
        "XLA and steps to a call",
        """A step within `fit`, on the CPU: how many times faster than as `elrt-train` compiles models there, without
        XLA and with one step to a call (`steps_per_execution`); below 1 slower.""",
        relative_table("network", rows, "as elrt-train"),
        commands(results),
    )


def close_section():
    """What the penalty costs, and the layer beside three stock convolutions."""
    results = steps_of("close")
    if not results:
        return ""
    rows = []
    for result in results:
        penalty = ratios(result["seconds"], "low_rank_0.4")["without_penalty_0.4"]
        stock = ratios(result["seconds"], "without_penalty_0.4")["stock_layers_0.4"]
        rows.append(
            [
                result["model"],
                len(result["seconds"]["low_rank_0.4"]),
                quartiles([100 * (value - 1) for value in penalty], 1, " %"),
                quartiles(stock),
            ]
        )
    header = ["model", "rounds", "the penalty adds", "three stock Conv2D are as fast as one layer, times"]
    return section(
        "The penalty, and three convolutions written by hand",
        """Low-rank models at 0.4 of the MACs, with and without double soft orthogonality, and as stock layers
        (`elrt.expand`) without it; all take turns. Below 1 in the last column, the stock layers are slower.""",
        table(header, rows),
        commands(results),
    )
