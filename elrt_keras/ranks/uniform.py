"""One scale for the ranks of all layers, the largest that a budget allows."""

import dataclasses
import math

from elrt_keras.ranks.grid import grid_step, on_grid


@dataclasses.dataclass(frozen=True)
class ScaledRanks:
    """Ranks in proportion to `bases` (by layer name, one number per rank): a scale times these, on the rank grid.

    With the full ranks as bases a scale is the fraction of them; with estimated ranks it says how far to deviate.
    """

    candidates: list
    bases: dict
    multiple_of: int
    break_even: bool
    judged_by: list

    def ranks(self, candidate, scale):
        """The ranks of a layer at a scale."""
        return tuple(
            on_grid(scale * base, limit, self.multiple_of)
            for base, limit in zip(self.bases[candidate.name], candidate.limits)
        )

    def worthwhile(self, candidate, ranks):
        """The ranks, or `None` (dense) where they save nothing and the break-even guard is on."""
        return ranks if not self.break_even or candidate.is_cheaper(ranks, self.judged_by) else None

    def at(self, scale):
        """Ranks or `None` by layer name."""
        return {c.name: self.worthwhile(c, self.ranks(c, scale)) for c in self.candidates}

    def scales(self):
        """All scales at which some rank changes, ascending, from the smallest ranks to the full ones."""
        scales = set()
        for candidate in self.candidates:
            for base, limit in zip(self.bases[candidate.name], candidate.limits):
                step = grid_step(limit, self.multiple_of)
                scales.update((count - 0.5) * step / base for count in range(1, -(-limit // step) + 1))
                scales.add(limit / base)
        # Just above each, against rounding in `on_grid`.
        return [scale * (1 + 1e-9) for scale in sorted(scales)]

    def solve(self, budget):
        """Ranks by layer name at the largest scale that fits, and what is left over spent layer by layer.

        Args:
            budget: a `Budget`.

        Raises:
            ValueError: for a budget that cannot be met; the message says what can.
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
        return chosen

    def _spend_the_rest(self, chosen, following, budget):
        spent = budget.spent(chosen)
        for candidate in reversed(self.candidates):
            name = candidate.name
            before = candidate.costs(chosen[name])
            for ranks in self._steps(candidate, chosen[name], following[name]):
                after = candidate.costs(ranks)
                stepped = {resource: spent[resource] + after[resource] - before[resource] for resource in spent}
                if budget.allows(stepped):
                    chosen[name], spent = ranks, stepped
                    break

    def _steps(self, candidate, ranks, following):
        """The ways to spend more on a layer, largest first: all its ranks one step up, or one of them alone."""
        if ranks is None:
            return []
        target = self.ranks(candidate, math.inf) if following is None else following
        single = [(*ranks[:i], target[i], *ranks[i + 1 :]) for i in range(len(ranks))]
        return [following, *(step for step in single if self.worthwhile(candidate, step))]
