"""Tables of single layers, of growth with size, of decompositions, and of imports."""

from functools import partial

import numpy as np

from benchmarks.pages import figures
from benchmarks.pages.measured import BUDGETS, of_networks, one, ratios
from benchmarks.pages.tables import cells, label, medians, quartiles, relative, section, spread, table, taken
from elrt_keras.formats import tucker2


def batch_norm():
    """Makes the table of speed-ups of single batch-norm layers."""
    return relative(one("batch_norm", "cpu"), "input", "stock", lambda _, row: _input(*row["shape"]))


def executions():
    """Makes the table of ways to run one layer."""
    return relative(one("executions", "cpu"), "input, ranks", "matrix products", lambda _, row: _input(*row["shape"]))


def peers():
    """Makes the table of layers of other packages on PyTorch."""
    keys = ("batch_size", "size", "channels", "rank")
    base = "elrt_keras Tucker2Conv2D"
    return relative(one("peers", "torch"), "input, ranks", base, lambda _, row: _input(*(row[key] for key in keys)))


def _input(batch_size, size, channels, rank=None):
    return f"{batch_size}×{size}×{size}×{channels}" + ("" if rank is None else f", ranks {rank}")


def decomposing():
    """Makes the table of seconds and errors of decompositions at several tolerances."""

    def rows(result):
        best = np.array(min(result["errors"].values(), key=sum))
        for tolerance, seconds in result["seconds"].items():
            errors = np.array(result["errors"][tolerance])
            numbers = f"{errors.mean():.4f} | {(errors / best - 1).max():.2%}"
            yield cells(result["model"], result["kernels"], f"{float(tolerance):.0e}", spread(seconds, 1), numbers)

    numbers = {"tolerance": f"{tucker2._TOLERANCE:.0e}", "tolerance_of_large": f"{tucker2._TOLERANCE_OF_LARGE:.0e}"}
    header = "model | kernels | tolerance | seconds | error | above the best"
    return section(of_networks("decomposing"), header, rows, large=f"{tucker2._LARGE:,}", **numbers)


def grouped():
    """Makes tables of grouped convolutions: `table` of training, `inference` of LiteRT."""

    def training(result):
        for groups, times in result["rows"].items():
            stock = spread([1e3 * seconds for seconds in times["training"]["stock"]])
            faster = ratios(times["training"], "stock")
            yield cells(groups, stock, *(quartiles(faster[name]) for name in faster if name != "stock"))

    def inference(result):
        for groups, times in result["rows"].items():
            stock = {kind: 1e3 * medians(times[kind])["stock"] for kind in ("float32", "int8")}
            faster = {kind: quartiles(ratios(times[kind], "stock")["chain"]) for kind in stock}
            yield cells(groups, *(f"{stock[kind]:.3f} | {faster[kind]}" for kind in stock))

    results = one("grouped", "cpu")
    names = [name for result in results for name in next(iter(result["rows"].values()))["training"] if name != "stock"]
    of_litert = section(results, "groups | float32, ms | chain | int8, ms | chain, int8", inference)
    return section(results, cells("groups", "stock, ms", *names), training, inference=of_litert)


def growth():
    """Makes the table of slopes of times over sizes, both logarithmic."""

    def rows(result):
        for name, curve in result["curves"].items():
            for series, points in curve["seconds"].items():
                x, y = np.log([float(size) for size in points]), np.log(list(points.values()))
                if len(x) > 2:
                    slope, last = np.polyfit(x, y, 1)[0], (y[-1] - y[-2]) / (x[-1] - x[-2])
                    yield cells(label(name), curve["axis"], series, f"{slope:.2f} | {last:.2f}")

    results = one("growth", "cpu")
    header = "curve | over | of | slope | slope between the last two points"
    return section(results, header, rows, picture=results and partial(figures.growth, results[0]["curves"]))


def rank_grid():
    """Returns times of one layer over its ranks in `first`, and of networks on two grids of ranks in `networks`."""
    layers, networks = one("rank_grid", "layer"), of_networks("rank_grid")
    if not layers:
        return None
    seconds = layers[0]["seconds"]
    middle = {name: medians({int(rank): values for rank, values in of.items()}) for name, of in seconds.items()}
    ranks = next(iter(middle.values()))
    least = min(ranks)
    rows = [cells(rank, *(f"{of[rank] / of[least]:.2f}" for of in middle.values())) for rank in ranks]
    header = "model | MACs | multiples of 8 | multiples of 16 | 16 against 8"
    more = {"networks": section(networks, header, _grid_rows), "picture": partial(figures.rank_grid, seconds)}
    numbers = {"first": layers[0], "least": least, "table": table(cells("rank", *middle), rows)}
    return {**numbers, **more, **taken([*layers, *networks])}


def _grid_rows(result):
    faster, macs = ratios(result["seconds"], "dense"), result["macs"]
    for budget in BUDGETS:
        names = [f"{step}_{budget}" for step in ("8", "16")]
        told = [f"{faster[name][0]:.2f}× of {macs['dense'] / macs[name]:.2f}×" for name in names]
        yield cells(result["model"], budget, *told, quartiles(ratios(result["seconds"], names[0])[names[1]]))


def imports():
    """Makes the table of seconds of imports, by backend."""

    def rows(result):
        for backend, found in result["backends"].items():
            middle = medians({name: found[name] for name in ("keras", "elrt_keras")})
            more = f"{middle['elrt_keras'] - middle['keras']:+.2f}"
            loaded = "yes" if found["tensorflow_loaded"] else "no"
            yield cells(backend, *(spread(found[name], 2) for name in middle), more, loaded)

    header = "backend | import keras, s | import elrt_keras, s | difference of the medians, s | loads TensorFlow"
    return section(one("imports", "all"), header, rows)
