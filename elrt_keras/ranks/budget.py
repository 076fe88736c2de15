"""Grids of ranks, and budgets."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

# Ranks by layer name, or `(format, ranks)` if several formats were possible; `None` for a layer that stays dense.
Chosen: TypeAlias = Mapping[str, Any]

SIMD_MULTIPLE = 8
NEARLY = 0.01  # part of the dense model's total; a budget counts as spent if no more than this is left


def on_grid(rank: float, limit: int, step: int) -> int:
    """Returns the multiple of `step` nearest to `rank`, at least one step. The limit itself is on every grid."""
    if rank >= limit:
        return limit
    return min(limit, max(1, math.floor(rank / step + 0.5)) * step)


def grid(limit: int, step: int) -> list[int]:
    """Lists all ranks of the grid, ascending."""
    return [*range(step, limit, step), limit]


@dataclasses.dataclass(frozen=True)
class Budget:
    """Upper limits of the costs of a model: MACs, parameters, seconds.

    Attributes:
        candidates: the layers whose ranks are chosen.
        totals: `{"macs", "params"}` of the whole dense model, and `"latency"` in seconds if time was measured.
        fractions: `{resource: part of its total that may be spent}`, with the same or fewer keys.
    """

    candidates: list[Any]
    totals: Mapping[str, float]
    fractions: Mapping[str, float]

    @functools.cached_property
    def amounts(self) -> dict[str, float]:
        """`{resource: limit}`, in the units of `totals`."""
        return {resource: part * self.totals[resource] for resource, part in self.fractions.items()}

    def spent(self, chosen: Chosen) -> dict[str, float]:
        """Returns `{resource: total}` of the whole model for ranks (`None`: dense) by layer name."""
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
        """Reports if the model with the chosen ranks is within all limits."""
        return self.allows(self.spent(chosen))

    def nearly_spent(self, spent: Mapping[str, float]) -> bool:
        """Reports if some total is below its limit by at most 1 % of the dense model's total."""
        left = {resource: amount - spent[resource] for resource, amount in self.amounts.items()}
        return any(left[resource] <= NEARLY * self.totals[resource] for resource in left)

    def check_reachable(self, smallest: Chosen, multiple_of: int) -> None:
        """Checks that the smallest choice is within the budget.

        Raises:
            ValueError: if it is not; the message gives the smallest budget that can be met.
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
