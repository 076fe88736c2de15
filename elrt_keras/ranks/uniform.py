"""One scale for the ranks of all layers, the largest that a budget allows."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from elrt_keras.ranks.grid import Budget, Chosen, grid_step, on_grid
from elrt_keras.ranks.survey import Candidate


@dataclasses.dataclass(frozen=True)
class ScaledRanks:
    """Ranks in proportion to `bases` (by layer name, one number per rank): a scale times these, on the rank grid.

    With the full ranks as bases a scale is the fraction of them; with estimated ranks it says how far to deviate.
    """

    candidates: list[Candidate]
    bases: Mapping[str, Sequence[float]]
    multiple_of: int
    break_even: bool
    judged_by: list[str]

    def ranks(self, candidate: Candidate, scale: float) -> tuple[int, ...]:
        """The ranks of a layer at a scale."""
        return tuple(
            on_grid(scale * base, limit, self.multiple_of)
            for base, limit in zip(self.bases[candidate.name], candidate.limits)
        )

    def worthwhile(self, candidate: Candidate, ranks: tuple[int, ...]) -> tuple[int, ...] | None:
        """The ranks, or `None` (dense) where they save nothing and the break-even guard is on."""
        return ranks if not self.break_even or candidate.is_cheaper(ranks, self.judged_by) else None

    def at(self, scale: float) -> Chosen:
        """Ranks or `None` by layer name."""
        return {c.name: self.worthwhile(c, self.ranks(c, scale)) for c in self.candidates}

    def scales(self) -> list[float]:
        """All scales at which some rank changes, ascending, from the smallest ranks to the full ones."""
        scales = set()
        for candidate in self.candidates:
            for base, limit in zip(self.bases[candidate.name], candidate.limits):
                step = grid_step(limit, self.multiple_of)
                scales.update((count - 0.5) * step / base for count in range(1, -(-limit // step) + 1))
                scales.add(limit / base)
        # Just above each, against rounding in `on_grid`.
        return [scale * (1 + 1e-9) for scale in sorted(scales)]

    def solve(self, budget: Budget) -> Chosen:
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
        """First towards the next scale; where that leaves much, one grid step per layer, round after round."""
        spent, _ = self._spend(chosen, budget.spent(chosen), budget, lambda c: self._towards(c, chosen, following))
        stepped = True
        while stepped and not budget.nearly_spent(spent):
            spent, stepped = self._spend(chosen, spent, budget, lambda c: self._one_step_up(c, chosen[c.name]))

    def _spend(self, chosen, spent, budget, steps):
        """Takes the first affordable of the `steps` of each layer; returns what is spent, and whether any was taken."""
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
        """The ways to spend more on a layer, largest first: its ranks at the next scale, or one of them alone."""
        ranks, target = chosen[candidate.name], following[candidate.name]
        if ranks is None:
            return []
        ends = self.ranks(candidate, math.inf) if target is None else target
        return [target, *self._single(candidate, ranks, ends)]

    def _one_step_up(self, candidate, ranks):
        """All ranks a grid step higher, or one of them alone; dense where none of these saves anything any more."""
        if ranks is None:
            return []
        steps = [grid_step(limit, self.multiple_of) for limit in candidate.limits]
        higher = tuple(min(limit, (r // s + 1) * s) for r, s, limit in zip(ranks, steps, candidate.limits))
        found = [step for step in (higher, *self._single(candidate, ranks, higher)) if self.worthwhile(candidate, step)]
        found = [step for step in found if step != ranks]
        return found or ([None] if self.break_even else [])

    def _single(self, candidate, ranks, target):
        single = [(*ranks[:i], target[i], *ranks[i + 1 :]) for i in range(len(ranks))]
        return [step for step in single if self.worthwhile(candidate, step)]
