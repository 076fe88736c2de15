"""Method `energy`: ranks that lose least of the kernels under a budget.

A layer at given ranks keeps the part 1 − ‖W − Ŵ‖² / ‖W‖² of its kernel. Its loss is −log of this part. The sum of the
losses over all layers is minimised under the budget, which maximises the product of the kept parts. This is a
multiple-choice knapsack with one choice of ranks per layer. For small losses the sum is that of the relative squared
errors; for large losses the logarithm prevents that one layer loses too much for the others.

It is solved like its linear relaxation: take the steps of all layers' lower convex hulls in the order of loss saved per
unit of cost. Then the rest of the budget is spent, and a layer steps back if another one gains more from that.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from elrt_keras.ranks.budget import Budget, Chosen
from elrt_keras.ranks.candidate import Candidate, FormatRanks, MixedCandidate
from elrt_keras.ranks.methods import Problem, Solution, method

# Weights of the first of two budgets to try; the second budget gets the rest.
_MIXES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Up to this number of combinations, all ranks of a layer are choices; above it, only those on a path of best steps.
_ALL_COMBINATIONS = 4096
# Number of next cheaper choices that a layer may step back to in an exchange.
_STEPS_BACK = 8
_SMALL = 1e-300  # keeps divisions by a price difference of zero finite


class _Options:
    """Choices of one layer: ranks with costs and losses, cheapest first. Each loses less than all cheaper ones."""

    def __init__(self, candidate, prices, multiple_of, break_even, judged_by, dense):
        ranks = _choices(candidate, prices, multiple_of)
        if break_even:
            ranks = [r for r in ranks if candidate.is_cheaper(r, judged_by)]
        choices = [(_price(candidate, r, prices), candidate.loss(r), r) for r in ranks]
        if dense or not choices:
            choices.append((_price(candidate, None, prices), 0.0, None))
        choices = _pareto(choices)
        self.ranks = [ranks for _, _, ranks in choices]
        self.losses = np.array([loss for _, loss, _ in choices])
        self.prices = np.array([price for price, _, _ in choices])
        costs = [candidate.costs(ranks) for ranks in self.ranks]
        self.costs = np.array([[cost[r] for r in prices] for cost in costs], dtype="float64")

    def hull(self):
        """Indices of the lower convex hull of (price, loss), ordered by price."""
        hull = [0]
        for index in range(1, len(self.ranks)):
            while len(hull) > 1 and self.slope(hull[-2], index) >= self.slope(hull[-2], hull[-1]):
                hull.pop()
            hull.append(index)
        return hull

    def slope(self, a, b):
        """Loss saved per unit of price from one choice to another."""
        return (self.losses[a] - self.losses[b]) / (self.prices[b] - self.prices[a])


def solve(
    candidates: Sequence[Candidate | MixedCandidate],
    budget: Budget,
    multiple_of: int,
    break_even: bool = True,
    judged_by: Sequence[str] = ("macs",),
    dense: bool = True,
) -> Chosen:
    """Chooses the ranks that lose least under the budget. Returns ranks, or `None` for dense, by layer name.

    Args:
        candidates: list of `Candidate`; their kernels are read.
        budget: a `Budget` with one or two limits.
        multiple_of: the step of the rank grid.
        break_even: whether ranks that save nothing are left out.
        judged_by: the resources that decide whether ranks save anything.
        dense: whether a layer may stay dense, without loss.

    Raises:
        ValueError: for a budget that cannot be met (the message gives the smallest one that can), or weights that are
            not finite.
    """
    solutions, refused = [], None
    for prices in _price_mixes(budget):
        settings = (prices, multiple_of, break_even, judged_by, dense)
        options = [_Options(candidate, *settings) for candidate in candidates]
        try:
            chosen = _knapsack(candidates, options, budget, multiple_of)
        except ValueError as error:
            # With one mix of prices the cheapest choices may exceed a budget; with another mix they may not.
            refused = error
            continue
        solutions.append((sum(o.losses[i] for o, i in zip(options, chosen)), options, chosen))
    if not solutions:
        raise refused  # pyright: ignore[reportGeneralTypeIssues]  (without a solution there is an error)
    _, options, chosen = min(solutions, key=lambda solution: solution[0])
    return {c.name: o.ranks[i] for c, o, i in zip(candidates, options, chosen)}


def total_loss(candidates: Sequence[Candidate | MixedCandidate], chosen: Chosen) -> float:
    """Sum of the losses of all layers at the chosen ranks: −log of the kept part of each kernel."""
    return sum(c.loss(chosen[c.name]) for c in candidates if chosen[c.name] is not None)


def rivals(candidate: MixedCandidate, choice: FormatRanks, multiple_of: int, resource: str) -> dict[str, float]:
    """Returns `{name of another format: part of the kernel that it would keep}` at no higher cost of a resource.

    Args:
        candidate: the layer.
        choice: the format and ranks that were chosen.
        multiple_of: the step of the rank grid.
        resource: `"macs"`, `"params"` or `"latency"`.
    """
    spent, kept = candidate.costs(choice)[resource], {}
    for name, one in candidate.by_format.items():
        ranks = [r for r in _choices(one, {resource: 1.0}, multiple_of) if one.costs(r)[resource] <= spent]
        if name != choice[0] and ranks:
            kept[name] = math.exp(-min(map(one.loss, ranks)))
    return kept


def _price_mixes(budget):
    """Yields prices by resource, in parts of its limit. Two budgets are combined in several proportions."""
    names = list(budget.amounts)
    if len(names) == 1:
        yield {names[0]: 1.0 / budget.amounts[names[0]]}
        return
    for mix in _MIXES:
        yield {name: weight / budget.amounts[name] for name, weight in zip(names, (mix, 1 - mix))}


def _pareto(choices):
    """Lists the `(price, loss, …)` tuples that lose less than all cheaper ones, cheapest first."""
    kept = []
    for choice in sorted(choices, key=lambda choice: choice[:2]):
        if not kept or choice[1] < kept[-1][1]:
            kept.append(choice)
    return kept


def _choices(candidate, prices, multiple_of) -> list[Any]:
    if isinstance(candidate, MixedCandidate):
        return [(name, r) for name, one in candidate.by_format.items() for r in _choices(one, prices, multiple_of)]
    if candidate.choices is not None:
        return list(candidate.choices)
    grids = candidate.grids(multiple_of)
    few = math.prod(map(len, grids)) <= _ALL_COMBINATIONS
    choices = itertools.product(*grids) if few else _path(candidate, grids, prices)
    return [ranks for ranks in choices if candidate.usable(ranks, multiple_of) == ranks]


def _path(candidate, grids, prices):
    """Lists ranks from the smallest to the largest. Each step is the one that saves most loss per unit of price."""
    position = [0] * len(grids)
    path = [tuple(g[0] for g in grids)]
    price = _price(candidate, path[0], prices)
    while any(p + 1 < len(g) for p, g in zip(position, grids)):
        steps = []
        for axis, ranks_of_axis in enumerate(grids):
            if position[axis] + 1 < len(ranks_of_axis):
                now = path[-1]
                following = (*now[:axis], ranks_of_axis[position[axis] + 1], *now[axis + 1 :])
                paid = _price(candidate, following, prices)
                saved = candidate.loss(path[-1]) - candidate.loss(following)
                steps.append((saved / max(paid - price, _SMALL), axis, following, paid))
        _, axis, ranks, price = max(steps)
        position[axis] += 1
        path.append(ranks)
    return path


def _price(candidate, ranks, prices):
    costs = candidate.costs(ranks)
    return sum(price * costs[resource] for resource, price in prices.items())


def _knapsack(candidates, options, budget, multiple_of):
    """Solves the knapsack. Returns the index of each layer's choice."""
    chosen = [0] * len(options)
    smallest = {c.name: o.ranks[0] for c, o in zip(candidates, options)}
    budget.check_reachable(smallest, multiple_of)
    state = _State(options, chosen, budget.spent(smallest), budget.amounts)
    steps = []
    for layer, option in enumerate(options):
        hull = option.hull()
        steps += [(option.slope(a, b), layer, a, b) for a, b in zip(hull, hull[1:])]
    for _, layer, a, b in sorted(steps, key=lambda step: -step[0]):
        if state.chosen[layer] == a and state.fits(layer)[b]:
            state.choose(layer, b)
    state.fill()
    while _exchange(state):
        pass
    return state.chosen


class _State:
    """A choice for every layer, and the spent resources."""

    def __init__(self, options, chosen, spent, limits):
        self.options, self.chosen = options, list(chosen)
        self.limits = np.array(list(limits.values()))
        self.spent = np.array([spent[resource] for resource in limits], dtype="float64")

    def copy(self):
        """An independent copy."""
        copy = object.__new__(_State)
        copy.options, copy.chosen, copy.limits, copy.spent = self.options, list(self.chosen), self.limits, self.spent
        return copy

    def fits(self, layer):
        """Array of bools: for each choice of a layer, True if the budget allows it with all other layers unchanged."""
        costs = self.options[layer].costs
        return np.all(self.spent + costs - costs[self.chosen[layer]] <= self.limits, axis=1)

    def choose(self, layer, index):
        """Changes the choice of a layer."""
        costs = self.options[layer].costs
        self.spent = self.spent + costs[index] - costs[self.chosen[layer]]
        self.chosen[layer] = index

    def fill(self):
        """Spends the rest of the budget: repeatedly takes the affordable choice with most loss saved per price."""
        while True:
            best = max((self._best_step(layer) for layer in range(len(self.options))), key=lambda step: step[0])
            if best[0] <= 0:
                return
            self.choose(*best[1:])

    def largest_step(self, layer):
        """Finds the affordable choice of a layer that saves most loss: `(saved loss, layer, index)`."""
        option, now = self.options[layer], self.chosen[layer]
        saved = np.where(self.fits(layer), option.losses[now] - option.losses, 0.0)
        index = int(np.argmax(saved))
        return saved[index], layer, index

    def _best_step(self, layer):
        option, now = self.options[layer], self.chosen[layer]
        saved = np.where(self.fits(layer), option.losses[now] - option.losses, 0.0)
        ratio = saved / np.maximum(option.prices - option.prices[now], _SMALL)
        index = int(np.argmax(ratio))
        return ratio[index], layer, index


def _exchange(state):
    """Lets one layer step back and another use the freed budget, if the sum of losses falls. Reports if it did."""
    for layer, now in enumerate(state.chosen):
        losses = state.options[layer].losses
        for index in range(max(0, now - _STEPS_BACK), now):
            trial = state.copy()
            trial.choose(layer, index)
            others = (trial.largest_step(other) for other in range(len(trial.chosen)) if other != layer)
            saved, other, step = max(others, default=(0.0, layer, now))
            if saved > (losses[index] - losses[now]) * (1 + 1e-9):
                trial.choose(other, step)
                trial.fill()
                state.chosen, state.spent = trial.chosen, trial.spent
                return True
    return False


@method("energy", weighs_kernels=True, kept_dense="the budget is better spent on it whole")
def energy(problem: Problem) -> Solution:
    """Chooses the ranks that lose least of the layers' kernels under the budget."""
    settings = problem.multiple_of, problem.break_even, problem.judged_by
    return Solution(solve(problem.candidates, problem.budget, *settings), problem.candidates)
