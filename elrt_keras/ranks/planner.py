"""Planner of formats and ranks for a model under a budget: `plan_ranks`."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from elrt_keras.atomic import Path
from elrt_keras.checks import int_in, number_in, one_of
from elrt_keras.graph.costs import costs_of
from elrt_keras.graph.view import View
from elrt_keras.layers import FactorizedLayer
from elrt_keras.litert.convert import QUANTIZATIONS, Quantization
from elrt_keras.litert.timers import Timer
from elrt_keras.ranks import energy, latency, methods
from elrt_keras.ranks.budget import SIMD_MULTIPLE, Budget
from elrt_keras.ranks.candidate import MixedCandidate
from elrt_keras.ranks.moments import input_weightings
from elrt_keras.ranks.plan import DENSE, RankPlan
from elrt_keras.ranks.survey import AUTO, survey
from elrt_keras.ranks.times import write_set


def plan_ranks(
    model: keras.Model,
    *,
    format: str | Mapping[str, str] = "tucker2",
    fraction: float | None = None,
    max_macs: float | None = None,
    max_params: float | None = None,
    max_latency: float | None = None,
    method: str | None = None,
    multiple_of: int | None = None,
    exclude: str | Sequence[str] | None = None,
    break_even: bool = True,
    input_shape: Sequence[int] | None = None,
    threads: int = 1,
    quantization: Quantization | None = None,
    calibration_data: Any = None,
    timer: Timer | None = None,
    times: Path | None = None,
) -> RankPlan:
    """Chooses a format and ranks for each convolution and dense layer of a model, under a budget.

    Methods:

    - `"uniform"`, the default: one fraction of the full ranks for all layers, the largest that fits the budget (by
      bisection). On the rank grid many layers may step at the same fraction. Then as many layers as the budget allows
      take the step, or a step of one rank, from the output of the model to its input.
    - `"energy"`, for trained or random weights: the ranks that keep most of the kernels under the budget. A layer keeps
      1 − ‖W − Ŵ‖²/‖W‖² of its kernel `W`, where `Ŵ` is the decomposition at its ranks. The product over the layers is
      maximised (a knapsack of the logarithms: greedy in gain per unit of cost, over the layers' convex hulls). Layers
      may stay dense.
    - `"vbmf"`, for trained weights: the ranks above the noise in the kernel's unfoldings by analytic variational Bayes
      (Nakajima et al. 2013; for Tucker-2: Kim et al., arXiv 1511.06530). It needs no budget. With a budget, all ranks
      are scaled by one number to meet it.
    - `"stable_rank"`, for trained weights: the same with the stable rank ‖A‖_F²/‖A‖₂² of each unfolding A (Cuttlefish,
      MLSys 2023).
    - `"latency"`, only for `max_latency` and its default: like `"energy"`, with measured time instead of MACs. Each
      distinct layer is timed on LiteRT (on this processor), dense and at a grid of ranks. The times are kept in
      `$ELRT_CACHE_DIR` or `~/.cache/elrt_keras`. The predicted time of the model is the dense time, minus its dense
      layers, plus the chains that replace them. Ranks at which a layer is not faster than dense are never taken. The
      method needs the TensorFlow backend and the `litert` extra.

    Kernels with one position (1×1 convolutions, dense layers) are matrices and always get the format `svd`. In a
    grouped convolution each group has the format, at the same ranks. `plan.reasons` lists the layers that stay dense,
    such as depthwise convolutions, with the reasons.

    Args:
        model: a built Functional or Sequential model, nested models included.
        format: name of the format for all layers. With `"auto"`, method `"energy"` or `"latency"` chooses the format of
            each layer together with its ranks: the one that keeps most of the kernel under the budget. Or a mapping
            from layer names or shell patterns to such names or `"dense"`: the first match counts, and layers without a
            match stay dense.
        fraction: float in (0, 1]: the fraction of the full ranks, instead of a budget, for `method="uniform"`.
        max_macs: float in (0, 1]: keep at most this part of the dense model's MACs.
        max_params: float in (0, 1]: keep at most this part of the dense model's parameters. Both budgets may be given.
        max_latency: float in (0, 1]: take at most this part of the dense model's measured time; for models with one
            input and one output. At most two of the three budgets may be given.
        method: one of the names above, or of a method registered with `ranks.methods.method`; `None` for the default.
        multiple_of: int ≥ 1: ranks are multiples of it (or the full rank); `None` for 8, which suits SIMD units. If the
            full rank is at most `multiple_of`, any rank is allowed.
        exclude: a name or shell pattern, or a list of them, of layers that stay dense; `None` for the first convolution
            and the classifier (the last layer before an output, if it has one vector per example); `[]` for none.
        break_even: whether a layer that would not get cheaper stays dense. If False, such a layer counts as it
            executes: through its composed kernel, with the MACs of the dense one.
        input_shape: shape of one example, for a model that leaves sizes open, such as `(224, 224, 3)`.
        threads: int, CPU threads for measured times.
        quantization: type of the timed files, as for `export.to_litert`: `None` for float32, `"int8"`, `"float16"` or
            `"dynamic_int8"`.
        calibration_data: some hundred examples of the training data, for trained weights and method `"energy"` or
            `"latency"`. The method then compares the kept parts of the layers' *outputs*, with decompositions that fit
            the second moments of the inputs, as in `factorize(…, calibration_data=)`. An array `(N, …)`, a tuple
            `(inputs, labels)`, a `tf.data.Dataset`, a `keras.utils.PyDataset` or an iterable of batches.
        timer: the timer for `max_latency`: a `litert.CommandTimer` runs the files on another device; `None` for the
            LiteRT interpreter of this process. Each device has its own times.
        times: path of times that were measured before, instead of a timer: a file that `elrt-plan --save_times` wrote,
            or a folder of `export_timing_set` with its results.

    Returns:
        A `RankPlan` with an entry for every convolution and dense layer.

    Raises:
        ValueError: for a budget that cannot be met (the message gives the smallest one that can), an `exclude` or
            `format` pattern that matches nothing, a model without a factorisable layer, weights that are not finite,
            arguments out of range, or calibration data that do not fit the model or the method.
        ImportError: for `max_latency` without the `litert` extra.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((16, 16, 3)),
    ...     keras.layers.Conv2D(32, 3, padding="same", name="stem"),
    ...     keras.layers.Conv2D(64, 3, padding="same", name="body"),
    ... ])
    >>> plan = elrt_keras.plan_ranks(model, fraction=0.5)
    >>> plan["body"]
    LayerPlan(format='tucker2', ranks=(16, 32))
    >>> plan.reasons["stem"]
    'excluded'
    """
    mixes = AUTO in (format.values() if isinstance(format, Mapping) else [format])
    solver = methods.get(methods.chosen_name(method, max_latency, mixes))
    if not solver.measures_time and (timer is not None or times is not None):
        raise ValueError(f"Expected max_latency with times. Received: timer={timer!r}, times={times!r} without it")
    if calibration_data is not None and not solver.weighs_kernels:
        raise ValueError(
            "Expected method='energy', or a budget of time, with calibration data. "
            f"Received: method={solver.name!r} with calibration_data"
        )
    fractions = _validated_fractions(fraction, max_macs, max_params, max_latency, solver)
    if quantization is not None and not solver.measures_time:
        raise ValueError(
            "Expected `max_latency` with `quantization`, which is the type of the timed files. "
            f"Received: quantization={quantization!r}, method={solver.name!r}"
        )
    multiple_of = validated_multiple(multiple_of)
    view = View(model, input_shape)
    candidates, reasons = survey(view, format, exclude)
    low_rank = [path for path, layer in view.layers if isinstance(layer, FactorizedLayer)]
    if not candidates and low_rank:
        raise ValueError(
            f"Expected a dense model; `shrink` lowers the ranks of a low-rank model, and `merge` makes it dense. "
            f"Received: model={model.name!r} with low-rank layers {low_rank}"
        )
    if not candidates:
        raise ValueError(
            f"Expected a model with layers that can be factorised. Received: model={model.name!r}, {reasons}"
        )
    if calibration_data is not None:
        weightings = input_weightings(view, [candidate.dense.layer for candidate in candidates], calibration_data)
        candidates = [candidate.weighted(weightings) for candidate in candidates]
    totals = dataclasses.asdict(costs_of(view))
    counted = {resource: part for resource, part in fractions.items() if resource != "latency"}
    budget = Budget(candidates, totals, counted)
    grid = multiple_of, break_even
    solution = solver.solve(
        methods.Problem(
            *(model, candidates, budget, fractions, fraction, *grid),
            *(input_shape, threads, quantization, timer, times),
        )
    )
    plan = _to_plan(view, solution, reasons, solver, multiple_of, [*fractions, "macs"][0])
    plan.latency = solution.latency
    return plan


def export_timing_set(
    model: keras.Model,
    folder: Path,
    *,
    format: str | Mapping[str, str] = "tucker2",
    multiple_of: int | None = None,
    exclude: str | Sequence[str] | None = None,
    input_shape: Sequence[int] | None = None,
    threads: int = 1,
    quantization: Quantization | None = None,
) -> list[str]:
    """Writes the LiteRT files whose times `plan_ranks(max_latency=…)` needs, for timing on any device.

    The files are the dense model and every distinct layer, dense and at a grid of ranks. `manifest.json` in the folder
    describes each file. Time the files on the device. Write the output of `benchmark_model`, or lines
    `{"model": NAME, "seconds": [SECONDS, …]}`, to `times.txt` in the folder. Then plan with `times=FOLDER`.

    Args:
        model, format, multiple_of, exclude, input_shape, quantization: as for `plan_ranks`.
        folder: a new or empty folder.
        threads: CPU threads to time the files with.

    Returns:
        Paths of the files.

    Raises:
        ValueError: as in `plan_ranks`; for a folder that is not empty or cannot be written.
        ImportError: without the `litert` extra.

    Example:

    >>> # elrt_keras.export_timing_set(model, "for_the_phone", quantization="int8")
    >>> # plan = elrt_keras.plan_ranks(model, max_latency=0.5, quantization="int8", times="for_the_phone")
    """
    one_of(quantization, QUANTIZATIONS, "quantization")
    view, multiple_of = View(model, input_shape), validated_multiple(multiple_of)
    candidates, reasons = survey(view, format, exclude)
    if not candidates:
        raise ValueError(
            f"Expected a model with layers that can be factorised. Received: model={model.name!r}, {reasons}"
        )
    files = latency.timing_set(view, candidates, multiple_of, quantization)
    return write_set(folder, files, quantization, int_in(threads, "[1, inf)", "threads"))


def _validated_fractions(fraction, max_macs, max_params, max_latency, solver):
    fractions = validated_budgets(max_macs, max_params, max_latency)
    if len(fractions) > 2:
        raise ValueError(f"Expected at most two budgets. Received: {fractions}")
    if fraction is not None:
        number_in(fraction, "(0, 1]", "fraction")
    if fraction is not None and (fractions or not solver.takes_fraction):
        raise ValueError(
            "Expected either `fraction` or a budget, and `fraction` only with method='uniform'. "
            f"Received: fraction={fraction}, {_told(fractions)}, method={solver.name!r}"
        )
    if fraction is None and not fractions and solver.needs_budget:
        raise ValueError(
            "Expected either `fraction` or a budget (`max_macs`, `max_params`, `max_latency`). Received: none of them"
        )
    return fractions


def _told(fractions):
    return ", ".join(f"max_{resource}={part:g}" for resource, part in fractions.items()) or "no budget"


def validated_budgets(
    max_macs: float | None, max_params: float | None, max_latency: float | None = None
) -> dict[str, float]:
    """Checks the given budgets. Returns those of `{"macs", "params", "latency"}` that are not `None`, as floats.

    Raises:
        ValueError: for a budget that is no number in (0, 1].
    """
    budgets = {"macs": max_macs, "params": max_params, "latency": max_latency}
    part_by_resource = {resource: part for resource, part in budgets.items() if part is not None}
    return {resource: number_in(part, "(0, 1]", f"max_{resource}") for resource, part in part_by_resource.items()}


def validated_multiple(multiple_of: Any) -> int:
    """Checks the step of the rank grid. Returns it as an int; `None` gives 8, which suits SIMD units.

    Raises:
        ValueError: if it is no int of at least 1.
    """
    return SIMD_MULTIPLE if multiple_of is None else int_in(multiple_of, "[1, inf)", "multiple_of")


def _to_plan(view, solution, reasons, solver, multiple_of, resource):
    by_name = {c.name: c for c in solution.candidates}
    entries, costs, reasons = {}, {}, dict(reasons)
    for path, _ in view.layers:
        if path in by_name:
            candidate, ranks = by_name[path], solution.chosen[path]
            entries[path] = DENSE if ranks is None else candidate.entry(ranks)
            if ranks is None:
                reasons[path] = solver.kept_dense
            dense, planned = candidate.dense_costs(), candidate.costs(ranks)
            costs[path] = {
                "kernel_shape": list(candidate.kernel_shape),
                **({"groups": candidate.groups} if candidate.groups > 1 else {}),
                **dense,
                **{f"planned_{name}": planned[name] for name in dense},
            }
            if ranks is not None and solver.weighs_kernels:
                costs[path]["kept"] = math.exp(-candidate.loss(ranks))
            if path in solution.beside:
                costs[path]["beside"] = solution.beside[path]
            if ranks is not None and isinstance(candidate, MixedCandidate):
                costs[path]["rivals"] = energy.rivals(candidate, ranks, multiple_of, resource)
        elif path in reasons:
            entries[path] = DENSE
    return RankPlan(entries, reasons, costs)
