"""Choice of the fastest way to train each low-rank layer, by measurement."""

import collections
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import keras
import numpy as np

from elrt_keras.checks import int_in, one_of
from elrt_keras.distillation import student_of
from elrt_keras.graph.calls import InputShape
from elrt_keras.graph.paths import check_keras_model
from elrt_keras.graph.view import View
from elrt_keras.kept_times import KeptTimes
from elrt_keras.layers import FactorizedLayer, TrainingWay
from elrt_keras.terminal.progress import progress_bar
from elrt_keras.tuning.report import TrainingReport, TunedLayer, low_rank_layers
from elrt_keras.tuning.steps import device_key, has_accelerator, training_pass

_ROUNDS = 9
_FIRST_ROUNDS, _FAR = 3, 1.3  # after the first rounds, ways that take `_FAR` times as long as the fastest drop out
_SECONDS, _MOST_CALLS = 0.02, 50  # in each turn a short pass is repeated for this time
_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_NOISE = 0.02  # part of the default's time that another way must save to replace it


class _Problem(NamedTuple):
    """One call of a layer. Its key holds everything that the time depends on; calls with equal keys are timed once."""

    key: str
    layer: FactorizedLayer
    input_shape: tuple[int, ...]

    def key_of(self, way: TrainingWay) -> str:
        return f"{self.key} {json.dumps(way.to_json())}"


def tune_training(
    model: keras.Model,
    batch_size: int,
    *,
    prefer: Literal["time", "memory"] = "time",
    input_shape: InputShape | None = None,
) -> TrainingReport:
    """Times all ways to train each low-rank layer of a model on this device, and sets the fastest way in each layer.

    A chain of factors `A·G·B` can train in several ways: as it is; with its 1×1 stages as matrix products; with one
    factor folded into its neighbour, `(A·G)·B` or `A·(G·B)`; or through the composed kernel `A·G·B`. The outputs and
    gradients are equal up to rounding. The fastest way depends on the device, the dtype, the batch and the layer. For
    every distinct layer, the forward and backward passes of all ways are timed in turns, on random inputs. A way
    replaces the default if it saves more than 2 %. Times are kept in `$ELRT_CACHE_DIR` or `~/.cache/elrt_keras`, per
    device.

    Only training changes: inference, saved files and exports stay the same. A loaded or cloned model has to be tuned
    again; `TrainingReport.save`, `load` and `apply` do this without timing. Batch-norm also trains fused, see
    `fuse_batch_norm`. Nothing else should run on the device during tuning.

    Args:
        model: the built model to train, compiled or not; for a `Taught` model, its student is tuned.
        batch_size: int, examples of one step on one device.
        prefer: `"time"`; or `"memory"` for the way that needs least memory for the gradient (the fastest, if several
            need the same).
        input_shape: shape of one example, for a model that leaves sizes open; for several inputs `{name: shape}`.

    Returns:
        A `TrainingReport`: the way of each layer, with times and memory; `print()` shows a table.

    Raises:
        ValueError: if `model` is no built Keras model, for sizes that are not known, a batch size below 1 or an unknown
            `prefer`.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((16, 16, 8)),
    ...     elrt_keras.layers.Tucker2Conv2D(16, 3, ranks=(4, 8), name="conv"),
    ... ])
    >>> report = elrt_keras.tune_training(model, batch_size=8)
    >>> sum(report["conv"].way.sizes)  # three factors, folded or not
    3
    """
    check_keras_model(model)
    int_in(batch_size, "[1, inf)", "batch_size")
    one_of(prefer, ("time", "memory"), "prefer")
    jit_compile = _compiles(model)
    problems = _problems(model, batch_size, input_shape)
    device = device_key(jit_compile)
    kept = KeptTimes("training", device)
    for problem in progress_bar(_missing(problems, kept), "timing ways to train"):
        kept.add(_times(problem, jit_compile))
    paths = {id(layer): path for path, layer in low_rank_layers(model)}
    tuned = {paths[id(calls[0].layer)]: _tuned(calls, kept.seconds, prefer) for calls in problems}
    report = TrainingReport(tuned, device, batch_size)
    report.apply(model)
    return report


def _compiles(model):
    """Reports if the model's training step is compiled with XLA."""
    if keras.backend.backend() != "tensorflow":
        return keras.backend.backend() == "jax"
    if model.compiled:
        return bool(model.jit_compile)
    return has_accelerator()


def _problems(model, batch_size, input_shape):
    """Lists the calls of each low-rank layer that runs, as one list of `_Problem`s per layer."""
    calls = collections.defaultdict(list)
    for call in View(student_of(model), input_shape).calls:
        if isinstance(call.layer, FactorizedLayer):
            shape = (call.input_shape[0] * batch_size, *call.input_shape[1:])
            calls[id(call.layer)].append(_Problem(_key(call.layer, shape), call.layer, shape))
    return list(calls.values())


def _key(layer, input_shape):
    """Text of everything that the time of a layer's pass depends on, except the way."""
    config = {
        name: getattr(layer, name, None) for name in ("strides", "padding", "dilation_rate", "data_format", "groups")
    }
    about = {"format": layer.format.name, "kernel": layer.kernel_shape, "ranks": layer.ranks, **config}
    return json.dumps({**about, "dtype": layer.compute_dtype, "recompute": layer.recompute, "inputs": input_shape})


def _missing(problems, kept):
    """Lists the distinct problems that lack some times."""
    distinct = {problem.key: problem for calls in problems for problem in calls}
    return [
        problem
        for problem in distinct.values()
        if any(problem.key_of(way) not in kept.seconds for way in problem.layer.training_ways)
    ]


def _times(problem, jit_compile):
    """Times all ways of a problem. Returns the seconds of a pass by key."""
    layer = problem.layer
    passes = {way: training_pass(layer, way, problem.input_shape, jit_compile) for way in layer.training_ways}
    seconds = in_turns(passes, layer.default_way)
    return {problem.key_of(way): value for way, value in seconds.items()}


def in_turns(passes: Mapping[Any, Callable[..., None]], default: Any) -> dict[Any, float]:
    """Times passes in turns. Slow ones drop out after the first rounds.

    Args:
        passes: `{way: function of a number of repetitions}`.
        default: the way that never drops out.

    Returns:
        `{way: lower quartile of the seconds of one pass}`.
    """

    def timed(way, count):
        start = time.perf_counter()
        passes[way](count)
        return (time.perf_counter() - start) / count

    counts = {way: min(max(math.ceil(_SECONDS / timed(way, 1)), 1), _MOST_CALLS) for way in passes}
    seconds = {way: [] for way in passes}
    random, running = np.random.default_rng(0), list(passes)
    for number in range(_ROUNDS):
        for index in random.permutation(len(running)):
            seconds[running[index]].append(timed(running[index], counts[running[index]]))
        if number + 1 == _FIRST_ROUNDS:
            fastest = min(min(times) for times in seconds.values())
            running = [way for way in running if way == default or min(seconds[way]) <= _FAR * fastest]
    return {way: float(np.quantile(times, 0.25)) for way, times in seconds.items()}


def _tuned(problems, seconds, prefer):
    """Makes the `TunedLayer` from the calls of one layer."""
    layer = problems[0].layer
    times = {way: sum(seconds[one.key_of(way)] for one in problems) for way in layer.training_ways}
    kept = {way: sum(_kept_bytes(one, way) for one in problems) for way in times}
    default = layer.default_way
    if prefer == "memory":
        way = min(times, key=lambda way: (kept[way], times[way]))
    else:
        fastest = min(times, key=times.__getitem__)
        way = fastest if times[fastest] < (1 - _NOISE) * times[default] else default
    return TunedLayer(way, default, times[way], times[default], kept[way], kept[default])


def _kept_bytes(problem, way):
    size = _BYTES[problem.layer.compute_dtype]
    for_each, for_all = problem.layer.way_costs(way, (1, *problem.input_shape[1:]))
    return size * (problem.input_shape[0] * for_each + for_all)
