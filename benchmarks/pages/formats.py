"""Table of formats at equal MACs: accuracy, time of inference and of training, memory, size of the file."""

import statistics
from functools import partial

from benchmarks.pages import figures, numbers
from benchmarks.pages.measured import of_networks, ratios
from benchmarks.pages.tables import cells, table, taken

# Format → name of its runs in the grids of accuracies.
_RUNS = {"tucker2": "elrt"}
# Network → grid and prefix of its runs' names.
_GRIDS = {"resnet20": ("resnet20", ""), "resnet56": ("deeper", "resnet56_"), "vgg16_cifar": ("deeper", "vgg16_")}
_BACKENDS = {"tensorflow": "", "jax": "jax_", "torch": "torch_"}
_NAMES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
_HEADER = "format | MACs | accuracy, % | against Tucker-2 | LiteRT float32 | LiteRT int8"
_HEADER += " | step TensorFlow | JAX | PyTorch | training memory | file float32, KB | int8, KB"


def networks():
    """Makes a section with name and table for each measured network, and the commands and machines of all."""
    results_of_litert, sections = of_networks("inference", "formats_"), []
    for inference in results_of_litert:
        name = inference["model"]
        others = _others(name)
        sections.append({"model": name, "epochs": _epochs(name), "table": _table(inference, others)})
    others = [result for inference in results_of_litert for result in _others(inference["model"]).values()]
    picture = partial(figures.formats, _points(results_of_litert))
    results = [*results_of_litert, *others]
    return {"sections": sections, "picture": picture, **taken(results)} if results else None


def auto_below(share=0.02):
    """Cells in which `auto` is slower, by more than a share, or less accurate than Tucker-2, as texts."""
    texts = []
    for inference in of_networks("inference", "formats_"):
        model, others = inference["model"], _others(inference["model"])
        columns = {f"LiteRT {row['quantization']}": row["seconds"] for row in inference["rows"]}
        columns |= {f"step on {names}": others[key]["seconds"] for key, names in _NAMES.items() if key in others}
        for column, seconds in columns.items():
            variants = {name.rpartition("_")[0]: name for name in seconds}
            if {"auto", "tucker2"} <= set(variants):
                faster = ratios(seconds, variants["tucker2"])[variants["auto"]][0]
                texts += [f"{model}, {column}: {faster:.2f}× of Tucker-2's speed"] if faster < 1 - share else []
        runs = _runs(model)
        if {"auto", "tucker2"} <= set(runs):
            points = numbers.differences(runs["auto"], runs["tucker2"])
            if points and statistics.mean(points) < 0:
                texts.append(f"{model}, accuracy: {statistics.mean(points):+.2f} points")
    return texts


def _others(name):
    """Returns the available results on training of a network, by kind of measurement."""
    kinds = {backend: ("steps", f"formats_{start}") for backend, start in _BACKENDS.items()}
    kinds["memory"] = ("training_memory", "formats_")
    return {kind: result for kind, place in kinds.items() for result in of_networks(*place) if result["model"] == name}


def _table(inference, others):
    macs, rows = inference["macs"], []
    of_litert = {row["quantization"]: row for row in inference["rows"]}
    for variant in macs:
        name = variant.rpartition("_")[0] or "dense"
        speeds = [_faster(row["seconds"], variant) for row in of_litert.values()]
        steps = [_faster(others[backend]["seconds"], variant) if backend in others else "" for backend in _BACKENDS]
        sizes = [f"{row['bytes'][variant] / 1024:,.0f}" for row in of_litert.values()]
        part = "" if variant == "dense" else f"{macs[variant] / macs['dense']:.1%}"
        memory = _memory(others["memory"], variant) if "memory" in others else ""
        rows.append(cells(f"`{name}`", part, *_accuracies(inference["model"], name), *speeds, *steps, memory, *sizes))
    return table(_HEADER, rows)


def _faster(seconds, variant):
    return "1×" if variant == "dense" else f"{ratios(seconds, 'dense')[variant][0]:.2f}×"


def _memory(result, variant):
    full = result["bytes"][-1]
    return f"{statistics.median(full[variant]) / statistics.median(full['dense']):.2f}×"


def _runs(model):
    """Returns the runs of a network by format, with `dense`."""
    grid, start = _GRIDS.get(model, (None, ""))
    groups = numbers.runs_of(grid) if grid else {}
    names = ["dense", "tucker2", "spatial_svd", "cp", "svd", "tensor_train", "auto"]
    found = {name: f"{start}{_RUNS.get(name, name)}" for name in names}
    return {name: groups[run] for name, run in found.items() if run in groups}


def _epochs(model):
    return numbers.epochs(_runs(model))


def _accuracies(model, name):
    """Returns cells with the accuracy of a format and its difference from Tucker-2 at the same seeds."""
    runs = _runs(model)
    if name not in runs:
        return "", ""
    return numbers.accuracy(runs[name]), numbers.against(runs[name], runs["tucker2"]) if "tucker2" in runs else ""


def _points(found):
    """Returns `{model: {format: (LiteRT speed-up in float32, in int8, mean accuracy)}}` of formats with accuracies."""
    points = {}
    for inference in found:
        runs, rows = _runs(inference["model"]), {row["quantization"]: row for row in inference["rows"]}
        for variant in inference["macs"]:
            name = variant.rpartition("_")[0] or "dense"
            if name in runs:
                speeds = [ratios(rows[kind]["seconds"], "dense")[variant][0] for kind in ("float32", "int8")]
                points.setdefault(inference["model"], {})[name] = (*speeds, numbers.mean(runs[name]))
    return points
