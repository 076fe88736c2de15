"""The ranks a layer may take, and what a budget is."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

# Ranks of each layer by its name, with a format before them where it could take several; `None` where it stays dense.
Chosen: TypeAlias = Mapping[str, Any]

SIMD_MULTIPLE = 8
NEARLY = 0.01  # of the dense model's total: what may be left of a budget


def on_grid(rank: float, limit: int, step: int) -> int:
    """The multiple of `step` nearest to `rank`, at least one step; the limit itself is on every grid."""
    if rank >= limit:
        return limit
    return min(limit, max(1, math.floor(rank / step + 0.5)) * step)


def grid(limit: int, step: int) -> list[int]:
    """All ranks of the grid, ascending."""
    return [*range(step, limit, step), limit]


@dataclasses.dataclass(frozen=True)
class Budget:
    """Upper limits of what a model may cost: MACs, parameters, seconds.

    Attributes:
        candidates: the layers whose ranks are to be chosen.
        totals: `{"macs", "params"}` of the whole dense model, and `"latency"` in seconds where time was measured.
        fractions: `{resource: part of its total that may be spent}`, the same or fewer keys.
    """

    candidates: list[Any]
    totals: Mapping[str, float]
    fractions: Mapping[str, float]

    @functools.cached_property
    def amounts(self) -> dict[str, float]:
        """`{resource: what may be spent}`, in the units of `totals`."""
        return {resource: part * self.totals[resource] for resource, part in self.fractions.items()}

    def spent(self, chosen: Chosen) -> dict[str, float]:
        """`{resource: total}` of the whole model under a choice of ranks (`None`: dense) by layer name."""
        spent = {resource: self.totals[resource] for resource in self.amounts}
        for candidate in self.candidates:
            if chosen[candidate.name] is not None:
                dense, low = candidate.dense_costs(), candidate.costs(chosen[candidate.name])
                for resource in spent:
                    spent[resource] += low[resource] - dense[resource]
        return spent

    def allows(self, spent: Mapping[str, float]) -> bool:
        """Reports if these totals are within all limits."""
        return all(spent[resource] <= amount for resource, amount in self.amounts.items())

    def fits(self, chosen: Chosen) -> bool:
        """Reports if the model under a choice of ranks is within all limits."""
        return self.allows(self.spent(chosen))

    def nearly_spent(self, spent: Mapping[str, float]) -> bool:
        """Reports if some total is within 1 % of the dense model's below its limit."""
        left = {resource: amount - spent[resource] for resource, amount in self.amounts.items()}
        return any(left[resource] <= NEARLY * self.totals[resource] for resource in left)

    def check_reachable(self, smallest: Chosen, multiple_of: int) -> None:
        """Refuses a budget that even the smallest choice exceeds.

        Raises:
            ValueError: with what can be reached.
        """
        spent = self.spent(smallest)
        if self.allows(spent):
            return
        names = sorted({part.format.name for candidate in self.candidates for part in candidate.parts()})
        reachable = ", ".join(f"max_{r} ≥ {math.ceil(spent[r] / self.totals[r] * 1e4) / 1e4:.4f}" for r in self.amounts)
        asked = ", ".join(f"max_{resource}={part:.4g}" for resource, part in self.fractions.items())
        finer = " (a smaller `multiple_of` may reach less)" if multiple_of > 1 else ""
        raise ValueError(
            f"The budget cannot be met with format {', '.join(map(repr, names))} and ranks in multiples of "
            f"{multiple_of}{finer}. Expected {reachable}. Received: {asked}"
        )
