"""How times grow: of a layer's step over rank, width and resolution, of a model's step and of planning over depth.

  python -m benchmarks.growth

Each point is the median of rounds in which all points of a curve take turns. File `benchmarks/results/growth/cpu.json`.
"""

import functools
import statistics
import time

from absl import app, flags

from benchmarks.measure import evidence

_ROUNDS = flags.DEFINE_integer("rounds", 9, "Steps of each point.")
_NAMES = ("rank", "width", "resolution", "depth", "planner_depth", "planner_width")
_CURVES = flags.DEFINE_list("curves", list(_NAMES), "Which curves; the others stay as they were measured.")
_BATCH = 32
_DEPTHS = (20, 32, 44, 56, 110)


def curves():
    """`{curve: (label of the axis, {series: {x: function to time}})}` of those that are timed in turns."""
    from benchmarks.measure import variants
    from benchmarks.measure.variants import built, low_rank, training_step

    layer_step = functools.partial(variants.layer_step, batch_size=_BATCH)

    def model_step(depth, is_low_rank):
        dense = built(f"resnet{depth}")
        return training_step(low_rank(dense, 0.4) if is_low_rank else dense, _BATCH)

    return {
        "rank": (
            "rank r, of 256 channels at 14×14",
            lambda: {
                "low-rank": {rank: layer_step(14, 256, rank) for rank in (8, 16, 32, 64, 128, 256)},
                "dense": {256: layer_step(14, 256, None, dense=True)},
            },
        ),
        "width": (
            "channels, at 14×14, a quarter of them as ranks",
            lambda: {
                "low-rank": {width: layer_step(14, width, width // 4) for width in (32, 64, 128, 256, 512)},
                "dense": {width: layer_step(14, width, None, dense=True) for width in (32, 64, 128, 256, 512)},
            },
        ),
        "resolution": (
            "height and width in pixels, 64 channels, ranks of 16",
            lambda: {
                "low-rank": {size: layer_step(size, 64, 16) for size in (7, 14, 28, 56, 112)},
                "dense": {size: layer_step(size, 64, None, dense=True) for size in (7, 14, 28, 56, 112)},
            },
        ),
        "depth": (
            "layers of a CIFAR ResNet, whole step, batch 32",
            lambda: {
                "low-rank, 0.4 of the MACs": {depth: model_step(depth, True) for depth in _DEPTHS},
                "dense": {depth: model_step(depth, False) for depth in _DEPTHS},
            },
        ),
        "planner_depth": ("layers of a CIFAR ResNet", lambda: _planning({d: (f"resnet{d}", 1) for d in _DEPTHS})),
        "planner_width": (
            "channels of the first stage of ResNet-20",
            lambda: _planning({16 * w: ("resnet20", w) for w in (1, 2, 4, 8)}),
        ),
    }


def _planning(builders):
    import elrt_keras as elrt

    models = {x: elrt.models.build(name, width=width) for x, (name, width) in builders.items()}
    return {
        f"plan_ranks, {method}": {
            x: lambda model=model, method=method: elrt.plan_ranks(model, max_macs=0.4, method=method)
            for x, model in models.items()
        }
        for method in ("uniform", "energy")
    }


def measure(series, rounds):
    """`{series: {x: median seconds}}`; all points take turns."""
    seconds = {name: {x: [] for x in points} for name, points in series.items()}
    for _ in range(rounds):
        for name, points in series.items():
            for x, function in points.items():
                start = time.perf_counter()
                function()
                seconds[name][x].append(time.perf_counter() - start)
    return {name: {x: statistics.median(values) for x, values in points.items()} for name, points in seconds.items()}


def main(argv):
    """Measures the curves asked for and writes the file."""
    del argv
    found = evidence.read("growth").get("cpu", {}).get("curves", {})
    for name, (axis, make) in curves().items():
        if name in _CURVES.value:
            rounds = 3 if name.startswith("planner") else _ROUNDS.value
            found[name] = {"axis": axis, "seconds": measure(make(), rounds)}
            print(name, found[name]["seconds"], flush=True)
    evidence.write("growth", "cpu", {"curves": found}, f"python -m benchmarks.growth --rounds={_ROUNDS.value}")


if __name__ == "__main__":
    app.run(main)
