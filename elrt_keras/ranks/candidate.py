"""A layer that can be factorised: what it costs at which ranks, and which ranks it may take."""

import dataclasses
import functools
from collections.abc import Sequence

import keras
import numpy as np

from elrt_keras import formats
from elrt_keras.formats.chain import Stage, chain_costs, dense_stage
from elrt_keras.formats.errors import Errors
from elrt_keras.layers.factorized import Execution, FactorizedLayer
from elrt_keras.ranks.budget import grid


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A layer that can be factorised, with what the planner needs to price it.

    `sizes` holds the spatial sizes of the inputs it is called on, with how often each occurs in one example; a dense
    layer has no spatial axes, and counts the positions it is applied at instead. `limits` are the largest ranks it may
    take, the full ones or less; `choices` are the ranks it has to choose from, `None` for all of a grid; `execution` is
    that of the low-rank layer.
    """

    name: str
    format: formats.Format
    kernel_shape: tuple[int, ...]
    limits: tuple[int, ...]
    sizes: tuple[tuple[tuple[int, ...], int], ...]
    strides: tuple[int, ...]
    padding: str
    dilation_rate: tuple[int, ...]
    layer: keras.layers.Layer = dataclasses.field(compare=False, repr=False)
    choices: tuple[tuple[int, ...], ...] | None = None
    execution: Execution = "auto"

    def steps(self, multiple_of: int) -> list[int]:
        """The distance of the values that each rank may take: any, where the largest is no more than the multiple."""
        return [multiple_of if limit > multiple_of else 1 for limit in self.limits]

    def grids(self, multiple_of: int) -> list[list[int]]:
        """The values that each rank may take."""
        return [grid(limit, step) for limit, step in zip(self.limits, self.steps(multiple_of))]

    def usable(self, ranks: tuple[int, ...], multiple_of: int) -> tuple[int, ...]:
        """The ranks without what no kernel can make use of, as far as the rest lies on the grid."""
        usable = self.format.usable_ranks(self.kernel_shape, ranks)
        on_grid = zip(usable, self.limits, self.steps(multiple_of))
        return usable if all(rank == limit or rank % step == 0 for rank, limit, step in on_grid) else ranks

    def stages(self, ranks: tuple[int, ...] | None) -> list[Stage]:
        """The chain at `ranks`; for `None` the dense layer, as a chain of one stage."""
        geometry = self.strides, self.dilation_rate
        if ranks is None:
            return [dense_stage(self.kernel_shape, *geometry, self.format.groups)]
        return self.format.stages(self.kernel_shape, ranks, *geometry)

    def dense_costs(self) -> dict[str, float]:
        """`{"macs", "params"}` of the dense layer (without the bias, which it keeps)."""
        return self._totals(self._dense_by_size)

    def costs(self, ranks: tuple[int, ...] | None) -> dict[str, float]:
        """`{"macs", "params"}` of the low-rank layer at `ranks`, as it executes; of the dense layer for `None`."""
        if ranks is None:
            return self._totals(self._dense_by_size)
        if ranks not in self._known_costs:
            totals = self._totals(self._by_size(self.stages(ranks)))
            if not self.runs_chain(ranks):
                totals["macs"] = self._totals(self._dense_by_size)["macs"]
            self._known_costs[ranks] = totals
        return self._known_costs[ranks]

    @functools.cached_property
    def _known_costs(self):
        return {}  # by ranks; planners ask again and again

    def runs_chain(self, ranks: tuple[int, ...]) -> bool:
        """Whether the low-rank layer at `ranks` runs as a chain; otherwise through its composed kernel."""
        if self.execution != "auto":
            return self.execution == "chain"
        return self.format.prefers_chain(self.kernel_shape, ranks, self.strides)

    @functools.cached_property
    def _dense_by_size(self):
        return self._by_size(self.stages(None))

    def _by_size(self, stages):
        return [chain_costs(stages, size, self.padding) for size, _ in self.sizes]

    def _totals(self, by_size) -> dict[str, float]:
        macs = sum(costs.macs * count for costs, (_, count) in zip(by_size, self.sizes))
        return {"macs": macs, "params": by_size[0].params}

    def kernel(self) -> np.ndarray:
        """The dense kernel as a float64 array.

        Raises:
            ValueError: if it holds NaN or infinity.
        """
        kernel = np.asarray(keras.ops.convert_to_numpy(self.layer.kernel), dtype="float64")
        if not np.all(np.isfinite(kernel)):
            raise ValueError(f"Expected weights of finite numbers. Received: NaN or infinity in layer {self.name!r}")
        return kernel

    @functools.cached_property
    def errors(self) -> Errors:
        """What ranks leave out of the kernel, as it is when first asked for: `Format.errors`."""
        kernel = self.kernel()
        if not isinstance(self.layer, FactorizedLayer):
            return self.format.errors(kernel)
        return self.format.errors_of_factors([keras.ops.convert_to_numpy(factor) for factor in self.layer.factors])

    def is_cheaper(self, ranks: tuple[int, ...], judged_by: Sequence[str]) -> bool:
        """Whether the layer costs no more at `ranks` than dense in all the resources, and less in one."""
        dense, low = self.dense_costs(), self.costs(ranks)
        return all(low[r] <= dense[r] for r in judged_by) and any(low[r] < dense[r] for r in judged_by)
