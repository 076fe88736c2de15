"""Times of layers and models over their sizes."""

import functools
import statistics

from benchmarks.measure import evidence
from benchmarks.measure.runner import Flag, measurement
from benchmarks.measure.variants import interleaved

_BATCH = 32
_DEPTHS = (20, 32, 44, 56, 110)
# Curves of layers: label of the axis and {x: (height and width, channels, rank)}.
_LAYERS = {
    "rank": ("rank r, of 256 channels at 14×14", {r: (14, 256, r) for r in (8, 16, 32, 64, 128, 256)}),
    "width": (
        "channels, at 14×14, a quarter of them as ranks",
        {width: (14, width, width // 4) for width in (32, 64, 128, 256, 512)},
    ),
    "resolution": (
        "height and width in pixels, 64 channels, ranks of 16",
        {size: (size, 64, 16) for size in (7, 14, 28, 56, 112)},
    ),
}
# Curves of models and of planning: label of the axis and {x: (builder, width)}.
_MODELS = {
    "depth": ("layers of a CIFAR ResNet, whole step, batch 32", {d: (f"resnet{d}", 1) for d in _DEPTHS}),
    "planner_depth": ("layers of a CIFAR ResNet", {d: (f"resnet{d}", 1) for d in _DEPTHS}),
    "planner_width": ("channels of the first stage of ResNet-20", {16 * w: ("resnet20", w) for w in (1, 2, 4, 8)}),
}
_CURVES = _LAYERS | _MODELS


@measurement(
    "growth",
    rounds=9,
    name="cpu",
    curves=Flag(tuple(_CURVES), "Curves to measure; the results of the others are kept.", choices=tuple(_CURVES)),
)
def growth(settings):
    """Times a layer's step over rank, width and resolution, and a model's step and planning over depth.

    Each point is the median of several rounds, in which all points of a curve take turns. Planning has three rounds.
    """
    curves = evidence.read("growth", settings.results).get(settings.file, {}).get("curves", {})
    for curve in settings.curves:
        rounds = 3 if curve.startswith("planner") else settings.rounds
        medians = {}
        for (line, x), seconds in interleaved(_points(curve), rounds, curve).items():
            medians.setdefault(line, {})[x] = statistics.median(seconds)
        curves[curve] = {"axis": _CURVES[curve][0], "seconds": medians}
    # The file holds all curves, so its command names all.
    kept = {curve: curves[curve] for curve in _CURVES if curve in curves}
    return {"curves": kept, "command": settings.command(curves=tuple(_CURVES))}


def _points(curve):
    """Returns `{(line, x): function to time}` of a curve."""
    import elrt_keras as elrt
    from benchmarks.measure.networks import layer_step, low_rank, training_step

    of = _CURVES[curve][1]
    if curve in _LAYERS:
        low = {("low-rank", x): layer_step(*shape, batch_size=_BATCH) for x, shape in of.items()}
        dense = {256: of[256]} if curve == "rank" else of
        return low | {("dense", x): layer_step(*shape[:2], None, batch_size=_BATCH) for x, shape in dense.items()}
    models = {x: elrt.models.build(name, width=width) for x, (name, width) in of.items()}
    if curve == "depth":
        low = {("low-rank, 0.4 of the MACs", x): training_step(low_rank(m, 0.4), _BATCH) for x, m in models.items()}
        return low | {("dense", x): training_step(model, _BATCH) for x, model in models.items()}
    return {
        (f"plan_ranks, {method}", x): functools.partial(elrt.plan_ranks, model, max_macs=0.4, method=method)
        for method in ("uniform", "energy")
        for x, model in models.items()
    }
