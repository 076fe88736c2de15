"""Choosing ranks under a budget: `plan_ranks` and its `uniform` method."""

import dataclasses
import fnmatch
import math
import numbers

import keras

from elrt_keras import formats
from elrt_keras.costs import count_costs, trace_calls
from elrt_keras.formats.base import chain_costs, dense_stage
from elrt_keras.layers.convolutions import layer_class
from elrt_keras.layers.factorized_conv import dense_arguments
from elrt_keras.ranks.plan import DENSE, LayerPlan, RankPlan
from elrt_keras.traversal import iterate_layers

_CONVOLUTIONS = {keras.layers.Conv1D: 1, keras.layers.Conv2D: 2, keras.layers.Conv3D: 3}
_LIKELY = (
    *(*_CONVOLUTIONS, keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D),
    *(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D, keras.layers.Dense),
    *(keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose),
)
_SIMD_MULTIPLE = 8
_RESOURCES = ("macs", "params")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A convolution that can be factorised, with what the planner needs to price it."""

    name: str
    format: formats.Format
    kernel_shape: tuple
    input_size: tuple
    strides: tuple
    padding: str
    dilation_rate: tuple
    calls: int

    def dense_costs(self):
        """`{"macs", "params"}` of the layer as it is (without the bias, which it keeps)."""
        stage = dense_stage(self.kernel_shape, self.strides, self.dilation_rate)
        return self._total(chain_costs([stage], self.input_size, self.padding))

    def costs(self, ranks):
        """`{"macs", "params"}` of the chain at `ranks`."""
        arguments = (self.input_size, self.strides, self.padding, self.dilation_rate)
        return self._total(self.format.costs(self.kernel_shape, ranks, *arguments))

    def _total(self, costs):
        return {"macs": costs.macs * self.calls, "params": costs.params}

    def ranks_at(self, fraction, multiple_of):
        """The ranks at a fraction of the full ranks, on the grid of multiples."""
        return tuple(_on_grid(fraction, full, multiple_of) for full in self.format.max_ranks(self.kernel_shape))


def _grid_step(full, multiple_of):
    """The distance of the ranks a layer may take: a layer too narrow for the multiple takes any rank."""
    return multiple_of if full > multiple_of else 1


def _on_grid(fraction, full, multiple_of):
    """The grid rank nearest to `fraction · full`, at least one step and at most the full rank."""
    step = _grid_step(full, multiple_of)
    return min(full, max(1, math.floor(fraction * full / step + 0.5)) * step)


def plan_ranks(
    model,
    *,
    format="tucker2",
    fraction=None,
    max_macs=None,
    max_params=None,
    max_latency=None,
    method="uniform",
    multiple_of=None,
    exclude=None,
    break_even=True,
):
    """Chooses a format and ranks for each convolution of a model, under a budget.

    `method="uniform"`: one fraction of the full ranks everywhere, the largest that fits the budget (by bisection).
    Where the rank grid makes many layers step at the same fraction, as many of them take the step, or one rank of it,
    as the budget still allows, from the output of the model to its input.

    Args:
        model: a built Functional or Sequential model, nested models included.
        format: name of the format for all layers.
        fraction: float in (0, 1]: the fraction of the full ranks, instead of a budget.
        max_macs: float in (0, 1): keep at most this part of the dense model's MACs.
        max_params: float in (0, 1): keep at most this part of the dense model's parameters.
        max_latency: not available with `method="uniform"`.
        method: `"uniform"`.
        multiple_of: int ≥ 1: ranks are multiples of it; `None` for 8, which SIMD units like. A layer with fewer
            channels than that takes any rank.
        exclude: a name or shell pattern, or a list of them, of layers that stay dense; `None` for the first convolution
            (the classifier is dense anyway); `[]` for none.
        break_even: whether a layer that would not get cheaper stays dense.

    Returns:
        A `RankPlan` with an entry for every convolution and dense layer.

    Raises:
        ValueError: for a budget that cannot be met (the message says what can), an `exclude` pattern that matches
            nothing, a model without a factorisable convolution, or arguments out of range.

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
    factor_format = formats.get(format)
    budgets = _validated_budgets(fraction, max_macs, max_params, max_latency, method)
    multiple_of = _validated_multiple(multiple_of)
    candidates, reasons = _survey(model, factor_format, exclude)
    if not candidates:
        raise ValueError(
            f"Expected a model with convolutions that can be factorised. Received: model={model.name!r}, {reasons}"
        )
    names = list(budgets) or ["macs"]
    options = {"multiple_of": multiple_of, "break_even": break_even, "judged_by": names}
    if fraction is not None:
        chosen = {c.name: _ranks_or_dense(c, fraction, **options) for c in candidates}
    else:
        totals = dataclasses.asdict(count_costs(model))
        limits = {resource: budgets[resource] * totals[resource] for resource in budgets}
        chosen = _uniform(candidates, totals, limits, options)
    return _to_plan(model, candidates, chosen, reasons)


def _validated_budgets(fraction, max_macs, max_params, max_latency, method):
    if method != "uniform":
        raise ValueError(f"Expected one of ['uniform']. Received: method={method!r}")
    if max_latency is not None:
        raise ValueError(
            f"`max_latency` needs a method that measures. Received: max_latency={max_latency}, method={method!r}"
        )
    budgets = {"macs": max_macs, "params": max_params}
    for resource, budget in budgets.items():
        if budget is not None and not (_is_number(budget) and 0 < budget <= 1):
            raise ValueError(
                f"`max_{resource}` is a float in (0, 1], the part of the dense model's {resource} to keep. "
                f"Received: max_{resource}={budget!r}"
            )
    budgets = {resource: float(budget) for resource, budget in budgets.items() if budget is not None}
    if fraction is not None and not (_is_number(fraction) and 0 < fraction <= 1):
        raise ValueError(f"`fraction` is a float in (0, 1]. Received: fraction={fraction!r}")
    if (fraction is None) == (not budgets):
        raise ValueError(
            "Pass either `fraction` or a budget (`max_macs`, `max_params`). "
            f"Received: fraction={fraction}, max_macs={max_macs}, max_params={max_params}"
        )
    return budgets


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _validated_multiple(multiple_of):
    if multiple_of is None:
        return _SIMD_MULTIPLE
    if isinstance(multiple_of, bool) or not isinstance(multiple_of, numbers.Integral) or multiple_of < 1:
        raise ValueError(f"`multiple_of` is an int of at least 1. Received: multiple_of={multiple_of!r}")
    return int(multiple_of)


def _survey(model, factor_format, exclude):
    """The candidates of a model, and for every other layer that one could expect here, why it stays dense."""
    if not isinstance(model, keras.Model) or not hasattr(model, "layers"):
        raise ValueError(f"Expected a Keras model. Received: model={model!r}")
    calls = {}
    for layer, input_shape, _ in trace_calls(model):
        calls.setdefault(id(layer), []).append(input_shape)
    likely = [(path, layer) for path, layer in iterate_layers(model) if isinstance(layer, _LIKELY)]
    excluded = _excluded([path for path, _ in likely], likely, exclude)
    candidates, reasons, seen = [], {}, set()
    for path, layer in likely:
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        reason = "excluded" if path in excluded else _why_dense(layer, factor_format)
        if reason:
            reasons[path] = reason
        else:
            candidates.append(_candidate(path, layer, factor_format, calls[id(layer)]))
    return candidates, reasons


def _excluded(paths, likely, exclude):
    if exclude is None:
        convolutions = [path for path, layer in likely if type(layer) in _CONVOLUTIONS]
        return set(convolutions[:1])
    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    excluded = set()
    for pattern in patterns:
        matches = [path for path in paths if fnmatch.fnmatchcase(path, pattern)]
        if not matches:
            raise ValueError(
                f"Nothing matched. Expected a name or pattern among {paths}. Received: exclude={pattern!r}"
            )
        excluded.update(matches)
    return excluded


def _why_dense(layer, factor_format):
    """Why a layer cannot be factorised, or an empty string."""
    if type(layer) not in _CONVOLUTIONS:
        return f"no low-rank {type(layer).__name__}"
    if layer.groups != 1:
        return "grouped: its groups share no factors"
    if math.prod(layer.kernel_size) == 1:
        return f"1×1: nothing for '{factor_format.name}' to save"
    target = layer_class(factor_format.name, _CONVOLUTIONS[type(layer)])
    if target is None:
        return f"no '{factor_format.name}' layer for {_CONVOLUTIONS[type(layer)]}-D"
    try:
        dense_arguments(target, layer)
    except ValueError as error:
        return str(error).split(" Received")[0]
    return ""


def _candidate(path, layer, factor_format, input_shapes):
    # A shared layer is priced at the size of its first call, once per call.
    size = input_shapes[0][1:-1] if layer.data_format == "channels_last" else input_shapes[0][2:]
    return Candidate(
        name=path,
        format=factor_format,
        kernel_shape=tuple(layer.kernel.shape),
        input_size=size,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        calls=len(input_shapes),
    )


def _ranks_or_dense(candidate, fraction, multiple_of, break_even, judged_by):
    """The ranks of a layer at a fraction, or `None` where that saves nothing and the guard is on."""
    ranks = candidate.ranks_at(fraction, multiple_of)
    return ranks if not break_even or _is_cheaper(candidate, ranks, judged_by) else None


def _is_cheaper(candidate, ranks, judged_by):
    dense, low = candidate.dense_costs(), candidate.costs(ranks)
    return all(low[r] <= dense[r] for r in judged_by) and any(low[r] < dense[r] for r in judged_by)


def _steps(candidate, ranks, following, options):
    """The ways to spend more on a layer, largest first: all its ranks one step up, or one of them alone."""
    steps = [following]
    if ranks is not None:
        target = candidate.ranks_at(1.0, options["multiple_of"]) if following is None else following
        single = [(*ranks[:i], target[i], *ranks[i + 1 :]) for i in range(len(ranks))]
        steps += [s for s in single if not options["break_even"] or _is_cheaper(candidate, s, options["judged_by"])]
    return steps


def _uniform(candidates, totals, limits, options):
    """Ranks by layer name at the largest uniform fraction whose total meets all limits."""

    def chosen_at(fraction):
        return {c.name: _ranks_or_dense(c, fraction, **options) for c in candidates}

    def total(chosen):
        return {resource: totals[resource] + _saving(candidates, chosen, resource) for resource in limits}

    def fits(chosen):
        spent = total(chosen)
        return all(spent[resource] <= limits[resource] for resource in limits)

    # Ranks change only where fraction · full crosses half a multiple, so these fractions are all there are.
    fractions = _breakpoints(candidates, options["multiple_of"])
    smallest = chosen_at(fractions[0])
    if not fits(smallest):
        spent = total(smallest)
        reachable = ", ".join(f"max_{r} ≥ {math.ceil(spent[r] / totals[r] * 1e4) / 1e4:.4f}" for r in limits)
        asked = ", ".join(f"max_{r}={limits[r] / totals[r]:.4g}" for r in limits)
        raise ValueError(
            f"The budget cannot be met with format '{candidates[0].format.name}' and ranks in multiples of "
            f"{options['multiple_of']}. Expected {reachable}. Received: {asked}"
        )
    low, high = 0, len(fractions)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(chosen_at(fractions[middle])) else (low, middle)
    chosen = chosen_at(fractions[low])
    if high < len(fractions):
        following = chosen_at(fractions[high])
        for candidate in reversed(candidates):
            for ranks in _steps(candidate, chosen[candidate.name], following[candidate.name], options):
                stepped = {**chosen, candidate.name: ranks}
                if fits(stepped):
                    chosen = stepped
                    break
    return chosen


def _saving(candidates, chosen, resource):
    """The change of a resource by a choice of ranks: negative when it saves."""
    return sum(
        c.costs(chosen[c.name])[resource] - c.dense_costs()[resource] for c in candidates if chosen[c.name] is not None
    )


def _breakpoints(candidates, multiple_of):
    """All fractions at which some rank changes, ascending, from the smallest ranks to the full ones."""
    fractions = {1.0}
    for full in {full for c in candidates for full in c.format.max_ranks(c.kernel_shape)}:
        step = _grid_step(full, multiple_of)
        fractions.update(min(1.0, (count - 0.5) * step / full) for count in range(1, full // step + 2))
    # Just above each breakpoint, against rounding in `_on_grid`.
    return [min(1.0, fraction * (1 + 1e-9)) for fraction in sorted(fractions)]


def _to_plan(model, candidates, chosen, reasons):
    by_name = {c.name: c for c in candidates}
    entries, costs, reasons = {}, {}, dict(reasons)
    for path, _ in iterate_layers(model):
        if path in by_name:
            candidate, ranks = by_name[path], chosen[path]
            entries[path] = DENSE if ranks is None else LayerPlan(candidate.format.name, ranks)
            if ranks is None:
                reasons[path] = "would not get cheaper"
            dense = candidate.dense_costs()
            planned = dense if ranks is None else candidate.costs(ranks)
            costs[path] = {
                "kernel_shape": list(candidate.kernel_shape),
                **dense,
                **{f"planned_{resource}": planned[resource] for resource in _RESOURCES},
            }
        elif path in reasons:
            entries[path] = DENSE
    return RankPlan(entries, reasons, costs)
