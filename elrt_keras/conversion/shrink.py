"""Lower ranks for a trained low-rank model: `shrink`, and `shrink_curve` for several budgets."""

import collections.abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras

from elrt_keras.conversion.merge import is_low_rank, low_rank_view
from elrt_keras.conversion.recalibrate import Calibration
from elrt_keras.graph.configs import copy_arguments
from elrt_keras.graph.costs import costs_of, count_costs
from elrt_keras.graph.rebuild import rebuild
from elrt_keras.ranks import energy
from elrt_keras.ranks.budget import Budget
from elrt_keras.ranks.planner import validated_budgets, validated_multiple
from elrt_keras.ranks.survey import survey_low_rank
from elrt_keras.terminal.tables import render_table


def shrink(
    model: keras.Model,
    *,
    max_macs: float | None = None,
    max_params: float | None = None,
    multiple_of: int | None = None,
    input_shape: Sequence[int] | None = None,
    calibration_data: Any = None,
) -> keras.Model:
    """Copies a low-rank model at lower ranks, from its present weights. So one training gives models of many sizes.

    Ranks are chosen as by `plan_ranks(method="energy")` from the spectra of the composed kernels. They are at most the
    present ranks. Then the factors are truncated. For Tucker-2, both factor matrices are orthonormalised by QR, their
    remainders go into the core, and the core is decomposed at the lower ranks. This gives the best approximation of the
    whole kernel. If the kernels already have the lower ranks, the outputs stay equal up to rounding.

    Args:
        model: a built Functional or Sequential model with low-rank layers.
        max_macs: float in (0, 1]: keep at most this part of the MACs of the *dense* model, `merge(model)`.
        max_params: the same for parameters. Both budgets may be given.
        multiple_of: int ≥ 1: new ranks are multiples of it, or the present rank; `None` for 8. If the present rank is
            at most `multiple_of`, any lower rank is allowed.
        input_shape: shape of one example, for a model that leaves sizes open.
        calibration_data: some thousand examples of the training data, in the forms that `recalibrate_batch_norm` takes.
            Ranks and factors then minimise the error of each layer's outputs. The batch-norm statistics are also
            computed again from the data. They are kept if they bring the model's outputs on the data closer to those of
            `model`; a line on the standard error reports this. After large steps this saves most of the accuracy.

    Returns:
        A new model with its own weights; names, shared layers and nested models stay. It is not compiled. A model that
        already meets the budget is copied at its present ranks.

    Raises:
        ValueError: if the model has no low-rank layer, or one that `merge` refuses; if no budget is given; if the
            budget cannot be met (the message gives the smallest one that can); or if the calibration data do not fit.

    Example:

    >>> model = keras.Sequential([keras.Input((8, 8, 32)), keras.layers.Conv2D(32, 3, name="conv")])
    >>> low_rank = elrt_keras.factorize(model, {"conv": ("tucker2", (16, 16))})
    >>> elrt_keras.shrink(low_rank, max_macs=0.25).get_layer("conv").ranks
    (8, 16)
    """
    fractions, multiple_of = _validated(max_macs, max_params), validated_multiple(multiple_of)
    calibration = None if calibration_data is None else Calibration(model, calibration_data, input_shape)
    return _shrunk(*_surveyed(model, input_shape, calibration), fractions, multiple_of, calibration)[0]


def shrink_curve(
    model: keras.Model,
    max_macs: Sequence[float],
    *,
    evaluate: Callable[[keras.Model], float] | None = None,
    multiple_of: int | None = None,
    input_shape: Sequence[int] | None = None,
    calibration_data: Any = None,
) -> "ShrinkCurve":
    """Runs `shrink` for a list of MACs budgets.

    Args:
        model: a built Functional or Sequential model with low-rank layers.
        max_macs: list of floats in (0, 1], parts of the dense model's MACs.
        evaluate: function of a (not compiled) model that returns a number, such as its test accuracy; or `None`.
        multiple_of: as in `shrink`.
        input_shape: as in `shrink`.
        calibration_data: as in `shrink`.

    Returns:
        A `ShrinkCurve`; `print()` shows a table. The unchanged model comes first.

    Raises:
        ValueError: as `shrink`; all budgets are checked before the first evaluation.

    Example:

    >>> model = keras.Sequential([keras.Input((8, 8, 32)), keras.layers.Conv2D(32, 3, name="conv")])
    >>> low_rank = elrt_keras.factorize(model, {"conv": ("tucker2", (16, 16))})
    >>> curve = elrt_keras.shrink_curve(low_rank, [0.3, 0.2])
    >>> [point.macs <= 0.3 * curve.dense_macs for point in curve.points[1:]]
    [True, True]
    """
    multiple_of = validated_multiple(multiple_of)
    if not isinstance(max_macs, collections.abc.Iterable):
        raise ValueError(f"Expected a list of budgets. Received: max_macs={max_macs!r}")
    budgets = [_validated(budget, None) for budget in max_macs]
    calibration = None if calibration_data is None else Calibration(model, calibration_data, input_shape)
    view, candidates, dense = _surveyed(model, input_shape, calibration)
    shrunk_models = (_shrunk(view, candidates, dense, budget, multiple_of, calibration) for budget in budgets)
    points = []
    for low_rank, loss, recalibrated in [(model, 0.0, None), *shrunk_models]:
        costs = count_costs(low_rank, input_shape)
        metric = None if evaluate is None else float(evaluate(low_rank))
        points.append(ShrinkPoint(low_rank, costs.macs, costs.params, loss, metric, recalibrated))
    return ShrinkCurve(dense["macs"], dense["params"], points)


@dataclasses.dataclass(frozen=True)
class ShrinkPoint:
    """One model of a curve.

    Attributes:
        model: the model.
        macs, params: its costs.
        loss: the part of a layer's squared norm (with calibration data, of its outputs) that truncation dropped, on
            average over the low-rank layers.
        metric: result of `evaluate`, or `None`.
        recalibrated: whether the batch-norm statistics come from the calibration data; `None` without batch-norm or
            data.

    Example: see `ShrinkCurve`.
    """

    model: keras.Model = dataclasses.field(repr=False)
    macs: int
    params: int
    loss: float
    metric: float | None
    recalibrated: bool | None = None


@dataclasses.dataclass(frozen=True)
class ShrinkCurve:
    """Models of falling cost from one training; `print()` shows a table.

    Attributes:
        dense_macs, dense_params: costs of the dense model.
        points: list of `ShrinkPoint`; the first one is the trained model.

    Example:

    >>> layer = elrt_keras.layers.Tucker2Conv2D(32, 3, ranks=(16, 16), name="conv")
    >>> curve = elrt_keras.shrink_curve(keras.Sequential([keras.Input((8, 8, 32)), layer]), [0.2])
    >>> [point.model.get_layer("conv").ranks[0] for point in curve.points]
    [16, 8]
    """

    dense_macs: int
    dense_params: int
    points: list[ShrinkPoint]

    def __str__(self) -> str:
        rows = [
            (
                f"{p.macs:,}",
                f"{p.macs / self.dense_macs:.1%}",
                f"{p.params:,}",
                f"{p.params / self.dense_params:.1%}",
                f"{p.loss:.4f}",
                "" if p.metric is None else f"{p.metric:.4f}",
                {None: "", True: "of the data", False: "as they were"}[p.recalibrated],
            )
            for p in self.points
        ]
        names = ["MACs", "of dense", "params", "of dense", "norm lost", "metric", "batch-norm"]
        if not any(row[-1] for row in rows):
            names, rows = names[:-1], [row[:-1] for row in rows]
        return render_table(names, rows)


def _validated(max_macs, max_params):
    fractions = validated_budgets(max_macs, max_params)
    if not fractions:
        raise ValueError("Expected a budget. Received: max_macs=None, max_params=None")
    return fractions


def _surveyed(model, input_shape, calibration):
    """Returns `(view, low-rank layers as candidates, totals of the dense architecture)` of a model."""
    view = low_rank_view(model, "shrink", input_shape)
    candidates = survey_low_rank(view)
    if calibration:
        weightings = calibration.weightings(view, [candidate.layer for candidate in candidates])
        candidates = [candidate.weighted(weightings) for candidate in candidates]
    return view, candidates, _dense_totals(view, candidates)


def _shrunk(view, candidates, totals, fractions, multiple_of, calibration):
    """Returns the shrunk model, the mean loss of its layers, and whether its batch-norm statistics are new."""
    budget = Budget(candidates, totals, fractions)
    present = {c.name: c.limits for c in candidates}
    chosen = present
    if not budget.fits(present):
        chosen = energy.solve(candidates, budget, multiple_of, break_even=False, dense=False)
    ranks = {id(c.layer): chosen[c.name] for c in candidates}
    by_layer = {id(c.layer): c for c in candidates}
    losses = dict.fromkeys(ranks, 0.0)

    def truncated(layer):
        arguments = {**copy_arguments(layer), "ranks": ranks[id(layer)]}
        factors = [keras.ops.convert_to_numpy(factor) for factor in layer.factors]
        if ranks[id(layer)] != layer.ranks:
            factors, losses[id(layer)] = by_layer[id(layer)].truncated(factors, ranks[id(layer)])
        return [(type(layer).from_config(arguments), [*factors, *layer.end_weights()])]

    shrunk_model = rebuild(view, is_low_rank, truncated)
    is_new = calibration.settle_batch_norm(shrunk_model) if calibration and chosen != present else None
    return shrunk_model, sum(losses.values()) / len(losses), is_new


def _dense_totals(view, candidates):
    """`{"macs", "params"}` of the dense architecture of a low-rank model."""
    costs = costs_of(view)
    totals = {"macs": costs.macs, "params": costs.params}
    for candidate in candidates:
        low, dense = candidate.costs(candidate.limits), candidate.dense_costs()
        for resource in totals:
            totals[resource] += dense[resource] - low[resource]
    return totals
