"""Tables of whole training steps: time, time by kind of operation, and memory."""

from functools import partial

from benchmarks.pages import figures
from benchmarks.pages.measured import of_networks, ratios, tuning_of
from benchmarks.pages.tables import cells, label, medians, quartiles, relative, section, table, taken

GOAL = 0.75  # speed-up divided by MACs reduction


def training(name):
    """Makes the table of speed-ups of whole steps against the dense network, on `cpu` or `gpu`."""

    def rows(result):
        faster, middle, macs = ratios(result["seconds"], "dense"), medians(result["seconds"]), result["macs"]
        for variant in [name for name in middle if name.startswith(("low_rank", "thin", "recomputed"))]:
            reduction = macs["dense"] / macs[variant]
            # Forward pass, gradient of the weights and gradient of the inputs: two operations per MAC each.
            operations = 6e-12 * macs[variant] * result["batch_size"] / middle[variant]
            own = f"{_milliseconds(middle[variant])} | {quartiles(faster[variant])}"
            numbers = f"{reduction:.2f}× | {faster[variant][0] / reduction:.2f} | {operations:.2f}"
            first = (result["model"], result["batch_size"], label(variant), _milliseconds(middle["dense"]))
            yield cells(*first, own, numbers)

    results = of_networks("steps", f"{name}_")
    header = "model | batch | variant | dense, ms | variant, ms | speed-up | MACs reduction | ratio | TFLOP/s"
    return section(results, header, rows, goal=GOAL, picture=partial(figures.speedups, results, GOAL))


def _milliseconds(seconds):
    """Writes milliseconds with three digits or more."""
    return f"{1e3 * seconds:,.{0 if seconds > 0.1 else 1}f}"


def kernels():
    """Makes a table for each network: milliseconds of a GPU's kernels in a step, by purpose."""
    results = of_networks("kernels", "gpu_")
    if not results:
        return None
    notes = dict.fromkeys(result["note"] for result in results if "note" in result)
    return {**taken(results), "tables": [_kernel_table(result) for result in results], "notes": list(notes)}


def _kernel_table(result):
    variants, faster = result["milliseconds"], ratios(result["seconds"], "dense")
    kinds = dict.fromkeys(kind for found in variants.values() for kind in found)
    rows = [cells(kind, *(f"{found.get(kind, 0):.2f}" for found in variants.values())) for kind in kinds]
    rows.append(cells("**all**", *(f"**{sum(found.values()):.2f}**" for found in variants.values())))
    rows.append(cells("speed-up of the step, not profiled", *(quartiles(faster[variant]) for variant in variants)))
    return table(cells(f"{result['model']}, batch {result['batch_size']}", *map(label, variants)), rows)


# Files of steps with tuned variants: how their names begin.
_TUNED = ("gpu_tuned_", "gpu_tuned_float32_", "tuned_", "formats_jax_", "formats_torch_")


def tuned():
    """Speed-ups over the dense network of low-rank steps by default and tuned, on every backend."""

    def rows(result):
        seconds, faster = result["seconds"], ratios(result["seconds"], "dense")
        for name in seconds:
            prefer, untuned = tuning_of(name)
            if prefer == "time":
                by_tuning = ratios(seconds, untuned)[name]
                about = (result["model"], result["machine"]["backend"], result["precision"], label(untuned))
                yield cells(*about, *map(quartiles, (faster[untuned], faster[name], by_tuning)))

    results = [result for start in _TUNED for result in of_networks("steps", start)]
    results = [result for result in results if any(tuning_of(name)[0] for name in result["seconds"])]
    header = "model | backend | precision | format, part of the MACs | by default | tuned | tuned over default"
    return section(results, header, rows)


def fused():
    """Makes the table of speed-ups of steps by fused batch-norm."""

    def row(result):
        pairs = (("dense", "unfused_1.0"), ("low_rank_0.4", "unfused_0.4"))
        middle, faster = medians(result["seconds"]), [ratios(result["seconds"], stock)[own] for own, stock in pairs]
        times = [f"{1e3 * middle[stock]:,.0f} | {quartiles(three)}" for (_, stock), three in zip(pairs, faster)]
        return [cells(result["model"], *times)]

    results = [result for result in of_networks("steps", "cpu_") if "unfused_1.0" in result["seconds"]]
    return section(results, "model | dense, stock, ms | fused | low rank 0.4, stock, ms | fused", row)


def operations():
    """Makes the table of milliseconds of a step, by TensorFlow operation."""

    def rows(result):
        for variant, kinds in result["milliseconds"].items():
            others = {kind: time for kind, time in kinds.items() if not kind.startswith(("Conv2D", "MatMul"))}
            total, products = sum(kinds.values()), sum(kinds.values()) - sum(others.values())
            largest = ", ".join(f"{kind} {time:.0f}" for kind, time in list(others.items())[:4])
            numbers = f"{total:,.0f} | {products:,.0f} | {products / total:.0%}"
            yield cells(result["model"], label(variant), numbers, largest)

    header = "model | variant | all operations, ms | convolutions and products, ms | their part | largest others, ms"
    return section(of_networks("operations"), header, rows)


def compiling():
    """Makes the table of speed-ups of steps in `fit` by XLA and by several steps per call."""
    results = of_networks("compiling")
    return relative(results, "network", "as elrt-train", lambda of, row: f"{of['model']}, {label(row['variant'])}")


def close():
    """Makes the table of the costs of the penalty, and of layers against three stock convolutions."""

    def row(result):
        penalty = ratios(result["seconds"], "low_rank_0.4")["without_penalty_0.4"]
        stock = ratios(result["seconds"], "without_penalty_0.4")["stock_layers_0.4"]
        adds = quartiles([100 * (value - 1) for value in penalty], 1, " %")
        return [cells(result["model"], len(result["seconds"]["low_rank_0.4"]), adds, quartiles(stock))]

    header = "model | rounds | the penalty adds | three stock Conv2D are as fast as one layer, times"
    return section(of_networks("steps", "close_"), header, row)


def memory():
    """Makes the table of the peak memory of training, in total and per image."""

    def rows(result):
        small, full = result["batch_sizes"]
        fixed, total = ({name: size / 2**20 for name, size in medians(peaks).items()} for peaks in result["bytes"])
        per_image = {name: (total[name] - fixed[name]) / (full - small) for name in total}
        for name in total:
            of_dense, image_of_dense = total[name] / total["dense"], per_image[name] / per_image["dense"]
            numbers = f"{total[name]:,.0f} | {of_dense:.2f} | {fixed[name]:,.0f}"
            yield cells(result["model"], full, label(name), numbers, f"{per_image[name]:.2f} | {image_of_dense:.2f}")

    header = "model | batch | variant | peak, MiB | of dense | at a batch of 2, MiB | per image, MiB | of dense"
    return section(of_networks("training_memory"), header, rows)
