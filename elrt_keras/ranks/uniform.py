"""Method `uniform`: one scale for the ranks of all layers, the largest that the budget allows."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elrt_keras.ranks.budget import NEARLY, Budget, Chosen, on_grid
from elrt_keras.ranks.candidate import Candidate
from elrt_keras.ranks.methods import Problem, Solution, method

_SMALL = 1e-9  # part of a total; a smaller gain does not count
_ALL_RANKS = 2048  # up to this number of rank combinations, over all layers, an exchange tries all of them in pairs


@dataclasses.dataclass(frozen=True)
class ScaledRanks:
    """Ranks in proportion to `bases` (by layer name, one number per rank): a scale times the bases, on the rank grid.

    If the bases are the full ranks, the scale is the fraction of them. If they are estimates, it is the deviation.
    """

    candidates: list[Candidate]
    bases: Mapping[str, Sequence[float]]
    multiple_of: int
    break_even: bool
    judged_by: list[str]
    exact: bool = False  # whether ranks stay in proportion even if the kernel cannot use them

    def ranks(self, candidate: Candidate, scale: float) -> tuple[int, ...]:
        """Returns the ranks of a layer at a scale."""
        ranks = tuple(
            on_grid(scale * base, limit, step)
            for base, limit, step in zip(
                self.bases[candidate.name], candidate.limits, candidate.steps(self.multiple_of)
            )
        )
        return ranks if self.exact else candidate.usable(ranks, self.multiple_of)

    def worthwhile(self, candidate: Candidate, ranks: tuple[int, ...]) -> tuple[int, ...] | None:
        """Returns the ranks, or `None` (dense) if the kernel cannot use them or (`break_even`) they save nothing."""
        if not self.exact and candidate.usable(ranks, self.multiple_of) != ranks:
            return None
        return ranks if not self.break_even or candidate.is_cheaper(ranks, self.judged_by) else None

    def at(self, scale: float) -> Chosen:
        """Returns ranks at a scale, or `None` for dense, by layer name."""
        return {c.name: self.worthwhile(c, self.ranks(c, scale)) for c in self.candidates}

    def scales(self) -> list[float]:
        """Lists all scales at which some rank changes, ascending, from the smallest ranks to the full ones."""
        scales = set()
        for candidate in self.candidates:
            steps = candidate.steps(self.multiple_of)
            for base, limit, step in zip(self.bases[candidate.name], candidate.limits, steps):
                scales.update((count - 0.5) * step / base for count in range(1, -(-limit // step) + 1))
                scales.add(limit / base)
        # A little above each scale, because of rounding in `on_grid`.
        return [scale * (1 + 1e-9) for scale in sorted(scales)]

    def solve(self, budget: Budget) -> Chosen:
        """Returns ranks by layer name at the largest scale that fits. The rest of the budget is spent layer by layer.

        Args:
            budget: a `Budget`.

        Raises:
            ValueError: for a budget that cannot be met; the message gives the smallest one that can.
        """
        scales = self.scales()
        budget.check_reachable(self.at(scales[0]), self.multiple_of)
        low, high = 0, len(scales)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if budget.fits(self.at(scales[middle])) else (low, middle)
        chosen = self.at(scales[low])
        if high < len(scales):
            self._spend_the_rest(chosen, self.at(scales[high]), budget)
            self._exchange(chosen, budget)
        return chosen

    def _spend_the_rest(self, chosen, following, budget):
        """Steps towards the next scale. If much budget is left, it repeats rounds of one grid step per layer."""
        spent, _ = self._spend(chosen, budget.spent(chosen), budget, lambda c: self._towards(c, chosen, following))
        stepped = True
        while stepped and not budget.nearly_spent(spent):
            spent, stepped = self._spend(chosen, spent, budget, lambda c: self._one_step_up(c, chosen[c.name]))

    def _spend(self, chosen, spent, budget, steps):
        """Takes the first affordable of the `steps` of each layer. Returns the spent totals and if it took any."""
        taken = False
        for candidate in reversed(self.candidates):
            before = candidate.costs(chosen[candidate.name])
            for ranks in steps(candidate):
                after = candidate.costs(ranks)
                stepped = {resource: spent[resource] + after[resource] - before[resource] for resource in spent}
                if budget.allows(stepped):
                    chosen[candidate.name], spent, taken = ranks, stepped, True
                    break
        return spent, taken

    def _towards(self, candidate, chosen, following):
        """Lists higher ranks for a layer, largest first: those at the next scale, or only one of them raised."""
        ranks, target = chosen[candidate.name], following[candidate.name]
        if ranks is None:
            return []
        ends = self.ranks(candidate, math.inf) if target is None else target
        return [target, *self._single(candidate, ranks, ends)]

    def _one_step_up(self, candidate, ranks):
        """Lists ranks one grid step higher: all, or only one of them. Dense, if none of these saves anything."""
        if ranks is None:
            return []
        steps = candidate.steps(self.multiple_of)
        higher = tuple(min(limit, (r // s + 1) * s) for r, s, limit in zip(ranks, steps, candidate.limits))
        raised = [r for r in (higher, *self._single(candidate, ranks, higher)) if self.worthwhile(candidate, r)]
        raised = [r for r in raised if r != ranks]
        return raised or ([None] if self.break_even else [])

    def _exchange(self, chosen, budget):
        """Changes the ranks of one or two layers at once, as long as much budget is left.

        It takes changes that leave little budget and are small, so that all ranks stay near one scale.
        """
        limits, totals = budget.amounts, budget.totals
        while not budget.nearly_spent(spent := budget.spent(chosen)):
            left = np.array([(limit - spent[resource]) / totals[resource] for resource, limit in limits.items()])
            # The first step changes nothing, so that pairs include single steps.
            steps: list[Any] = [(None, None, 0.0, np.zeros_like(left))]
            for candidate in self.candidates:
                now = chosen[candidate.name]
                before = candidate.costs(now)
                for ranks in self._neighbours(candidate, now):
                    after = candidate.costs(ranks)
                    more = np.array([(after[resource] - before[resource]) / totals[resource] for resource in limits])
                    steps.append((candidate.name, ranks, _distance(candidate, now, ranks), more))
            names, _, moved, more = zip(*steps)
            pair = _best_pair(np.array(more), np.array(moved), names, left)
            if not pair:
                return
            chosen.update({name: ranks for name, ranks, *_ in (steps[index] for index in pair) if name is not None})

    def _neighbours(self, candidate, ranks):
        """Lists other ranks for a layer: its whole grid if it is small, else a step of all ranks or of one of them."""
        grids = candidate.grids(self.multiple_of)
        if math.prod(map(len, grids)) * len(self.candidates) <= _ALL_RANKS:
            others = [step for step in itertools.product(*grids) if self.worthwhile(candidate, step)]
            return [step for step in [*others, *([None] if self.break_even else [])] if step != ranks]
        if ranks is None:
            path = (self.ranks(candidate, scale) for scale in reversed(self.scales()))
            largest = next((step for step in path if self.worthwhile(candidate, step)), None)
            return [] if largest is None else [largest]
        steps = candidate.steps(self.multiple_of)
        lower = tuple(max(min(r, s), (-(-r // s) - 1) * s) for r, s in zip(ranks, steps))
        below = [lower] if self.exact or candidate.usable(lower, self.multiple_of) == lower else []
        others = [*self._one_step_up(candidate, ranks), *below, *self._single(candidate, ranks, lower)]
        dense = [None] if self.break_even else []
        return [step for step in others + dense if step != ranks]

    def _single(self, candidate, ranks, target):
        single = [(*ranks[:i], target[i], *ranks[i + 1 :]) for i in range(len(ranks))]
        return [step for step in single if self.worthwhile(candidate, step)]


def _distance(candidate, ranks, others):
    """Distance of two choices of a layer: the sum of the absolute logarithms of the ratios of their ranks."""
    pairs = zip(ranks or candidate.limits, others or candidate.limits)
    return sum(abs(math.log(other / rank)) for rank, other in pairs)


def _best_pair(more, moved, names, left):
    """Returns the best two steps of two different layers, or an empty tuple if no pair gains anything.

    Args:
        more: cost of each step, `(steps, resources)`, in parts of the dense model's totals.
        moved: distance of each step (see `_distance`), `(steps,)`.
        names: the layer of each step.
        left: rest of each budget, in the same parts.
    """
    layers = np.unique([str(name) for name in names], return_inverse=True)[1]
    left_by = left - more[:, None] - more[None]
    least = np.where(np.all(left_by >= 0, axis=-1), np.min(left_by, axis=-1), np.inf)
    least[layers[:, None] == layers[None]] = np.inf
    # A rest below `NEARLY` needs no change of ranks. Above it, a factor e of a rank costs as much as `NEARLY`.
    score = np.maximum(least, NEARLY) + NEARLY * (moved[:, None] + moved[None])
    best = np.unravel_index(np.argmin(score), score.shape)
    return best if least[best] < np.min(left) - _SMALL else ()


def scaled(problem: Problem, bases: Mapping[str, Sequence[float]]) -> Solution:
    """Returns ranks in proportion to `bases`: scaled to the budget, at the requested fraction, or unscaled."""
    settings = problem.multiple_of, problem.break_even, problem.judged_by
    ranks = ScaledRanks(list(problem.candidates), bases, *settings, exact=problem.fraction is not None)
    if problem.fractions:
        return Solution(ranks.solve(problem.budget), problem.candidates)
    return Solution(ranks.at(1.0 if problem.fraction is None else problem.fraction), problem.candidates)


@method("uniform", takes_fraction=True)
def uniform(problem: Problem) -> Solution:
    """Chooses one fraction of the full ranks for all layers, the largest that fits the budget."""
    return scaled(problem, {candidate.name: candidate.limits for candidate in problem.candidates})
