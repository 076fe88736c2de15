"""Candidates: layers that can be factorised, with their possible ranks, their costs and their losses."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import keras
import numpy as np

from elrt_keras import formats
from elrt_keras.formats.chain import Stage, chain_costs, dense_stage
from elrt_keras.formats.errors import Errors
from elrt_keras.formats.weighting import InputWeighting
from elrt_keras.layers.factorized import Execution, FactorizedLayer
from elrt_keras.ranks.budget import grid
from elrt_keras.ranks.plan import LayerPlan

_LEAST = 1e-9  # smallest part of a kernel that counts as kept, so that its logarithm is finite


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A layer that can be factorised, with all data that the planner needs to compute its costs.

    `sizes` holds the spatial sizes of its inputs, each with the number of calls per example. A dense layer has no
    spatial axes; there the number counts positions. `limits` are the largest possible ranks: the full ranks or less.
    `choices` are the ranks to choose from, `None` for a whole grid. `execution` is that of the low-rank layer. With a
    `weighting`, errors are those of the layer's outputs.
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
    weighting: InputWeighting | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def dense(self) -> "Candidate":
        """The candidate to use for the dense layer: this one."""
        return self

    @property
    def groups(self) -> int:
        """Number of groups of the convolution."""
        return self.format.groups

    def steps(self, multiple_of: int) -> list[int]:
        """Step between the allowed values of each rank. The step is 1 if the limit is at most `multiple_of`."""
        return [multiple_of if limit > multiple_of else 1 for limit in self.limits]

    def grids(self, multiple_of: int) -> list[list[int]]:
        """Lists the allowed values of each rank."""
        return [grid(limit, step) for limit, step in zip(self.limits, self.steps(multiple_of))]

    def usable(self, ranks: tuple[int, ...], multiple_of: int) -> tuple[int, ...]:
        """Cuts ranks to those that a kernel can use (see `Format.usable_ranks`), if the result is on the grid."""
        usable = self.format.usable_ranks(self.kernel_shape, ranks)
        on_grid = zip(usable, self.limits, self.steps(multiple_of))
        return usable if all(rank == limit or rank % step == 0 for rank, limit, step in on_grid) else ranks

    def stages(self, ranks: tuple[int, ...] | None) -> list[Stage]:
        """Lists the stages of the chain at `ranks`; for `None` the dense layer as a single stage."""
        geometry = self.strides, self.dilation_rate
        if ranks is None:
            return [dense_stage(self.kernel_shape, *geometry, self.format.groups)]
        return self.format.stages(self.kernel_shape, ranks, *geometry)

    def dense_costs(self) -> dict[str, float]:
        """Returns `{"macs", "params"}` of the dense layer, without the bias, which stays."""
        return self._totals(self._dense_by_size)

    def costs(self, ranks: tuple[int, ...] | None) -> dict[str, float]:
        """Returns `{"macs", "params"}` of the low-rank layer at `ranks` as it executes; for `None`, the dense layer."""
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
        return {}  # costs by ranks, because planners ask for the same ranks many times

    def runs_chain(self, ranks: tuple[int, ...]) -> bool:
        """Reports if the low-rank layer at `ranks` runs as a chain, and not through its composed kernel."""
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
        """Returns the dense kernel as a float64 array.

        Raises:
            ValueError: if it holds NaN or infinity.
        """
        kernel = np.asarray(keras.ops.convert_to_numpy(self.layer.kernel), dtype="float64")
        if not np.all(np.isfinite(kernel)):
            raise ValueError(f"Expected weights of finite numbers. Received: NaN or infinity in layer {self.name!r}")
        return kernel

    @functools.cached_property
    def errors(self) -> Errors:
        """`Format.errors` of the kernel, read at the first use; with a weighting, the errors of the layer's outputs."""
        kernel = self.kernel()
        if not isinstance(self.layer, FactorizedLayer):
            return self.weighting.errors(self.format, kernel) if self.weighting else self.format.errors(kernel)
        factors = [keras.ops.convert_to_numpy(factor) for factor in self.layer.factors]
        if self.weighting:
            return self.weighting.errors_of_factors(self.format, factors)
        return self.format.errors_of_factors(factors)

    def truncated(self, factors: list[np.ndarray], ranks: tuple[int, ...]) -> tuple[list[np.ndarray], float]:
        """Returns factors at lower ranks, and the lost part of the kernel (with a weighting, of the outputs)."""
        if self.weighting is None:
            lower = self.format.truncate(factors, ranks)
        else:
            lower = self.weighting.truncate(self.format, factors, ranks)
        kernels = [keras.ops.convert_to_numpy(self.format.compose(f)).astype("float64") for f in (factors, lower)]
        if self.weighting is not None:
            return lower, self.weighting.relative_error(*kernels)
        norm = np.sum(kernels[0] ** 2)
        return lower, float(np.sum((kernels[0] - kernels[1]) ** 2) / norm) if norm > 0 else 0.0

    def loss(self, ranks: tuple[int, ...]) -> float:
        """Returns −log of the part of the kernel that a decomposition at `ranks` keeps."""
        usable = self.format.usable_ranks(self.kernel_shape, ranks)
        return -math.log(max(1.0 - self.errors(usable), _LEAST))

    def parts(self) -> "list[Candidate]":
        """Lists the layer in each possible format; here only itself."""
        return [self]

    def weighted(self, weightings: Mapping[int, InputWeighting]) -> "Candidate":
        """Returns the candidate with the weighting of its layer, if `weightings` (by layer id) has one."""
        return dataclasses.replace(self, weighting=weightings.get(id(self.layer)))

    def entry(self, ranks: tuple[int, ...]) -> LayerPlan:
        """Returns the plan's entry for the layer at `ranks`."""
        return LayerPlan(self.format.name, ranks)

    def is_cheaper(self, ranks: tuple[int, ...], judged_by: Sequence[str]) -> bool:
        """Reports if the layer at `ranks` costs less than dense in one resource, and not more in any."""
        dense, low = self.dense_costs(), self.costs(ranks)
        return all(low[r] <= dense[r] for r in judged_by) and any(low[r] < dense[r] for r in judged_by)


# Choice of a layer with several possible formats: the name of one, and its ranks.
FormatRanks: TypeAlias = tuple[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class MixedCandidate:
    """A layer with several possible formats. It has the methods of a `Candidate`, with `FormatRanks` instead of ranks.

    Attributes:
        by_format: `{name of a format: the layer as a Candidate in this format}`.
    """

    by_format: Mapping[str, Candidate]

    def parts(self) -> list[Candidate]:
        """Lists the layer in each possible format."""
        return list(self.by_format.values())

    def weighted(self, weightings: Mapping[int, InputWeighting]) -> "MixedCandidate":
        """Returns the candidate with the weighting of its layer in each format."""
        return MixedCandidate({name: one.weighted(weightings) for name, one in self.by_format.items()})

    @property
    def dense(self) -> Candidate:
        """The candidate to use for the dense layer: any format will do."""
        return next(iter(self.by_format.values()))

    @property
    def name(self) -> str:
        """Path of the layer."""
        return self.dense.name

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the dense kernel."""
        return self.dense.kernel_shape

    @property
    def groups(self) -> int:
        """Number of groups of the convolution."""
        return self.dense.groups

    def dense_costs(self) -> dict[str, float]:
        """Same as `Candidate.dense_costs`."""
        return self.dense.dense_costs()

    def costs(self, choice: FormatRanks | None) -> dict[str, float]:
        """Same as `Candidate.costs`, for the chosen format."""
        return self.dense.costs(None) if choice is None else self.by_format[choice[0]].costs(choice[1])

    def loss(self, choice: FormatRanks) -> float:
        """Same as `Candidate.loss`, for the chosen format."""
        return self.by_format[choice[0]].loss(choice[1])

    def is_cheaper(self, choice: FormatRanks, judged_by: Sequence[str]) -> bool:
        """Same as `Candidate.is_cheaper`, for the chosen format."""
        return self.by_format[choice[0]].is_cheaper(choice[1], judged_by)

    def entry(self, choice: FormatRanks) -> LayerPlan:
        """Same as `Candidate.entry`, for the chosen format."""
        return LayerPlan(*choice)
