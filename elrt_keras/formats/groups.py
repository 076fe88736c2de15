"""A format for grouped convolutions: it applies another format to every group.

The kernel of a convolution with G groups, `(*kernel_size, C_in / G, C_out)`, holds G kernels side by side along its
last axis. Each of them is factorised by itself, all at the same ranks. Their factors are stacked in the same way, so
the chain consists of grouped convolutions.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from keras import ops

from elrt_keras.checks import int_in
from elrt_keras.formats.arrays import MatrixView, Tensor, joined, split
from elrt_keras.formats.base import Format, get
from elrt_keras.formats.chain import Shape, Stage
from elrt_keras.formats.errors import Errors, weighted


class Grouped(Format):
    """A format applied to each of several groups; ranks are those of one group. Made by `grouped`.

    Kernels have shape `(*kernel_size, C_in / groups, C_out)`. Factors are stacked along their last axis, the outputs.
    Factors of a depthwise stage are stacked along their channels.
    """

    def __init__(self, one: Format, groups: int):
        self._one, self.groups = one, groups
        self.name, self.spatial_dims, self.rank_names = one.name, one.spatial_dims, one.rank_names
        self.factor_names, self.core_index = one.factor_names, one.core_index
        ones = (1,) * one.spatial_dims[0]
        chain = one.stages((*ones, 1, 1), (1,) * len(one.rank_names), ones, ones)  # to see which are depthwise
        self._axes = [-2 if stage.depthwise else -1 for stage in chain]

    def max_ranks(self, kernel_shape: Shape) -> tuple[int, ...]:
        return self._one.max_ranks(self._shape(kernel_shape))

    def usable_ranks(self, kernel_shape: Shape, ranks: Sequence[int]) -> tuple[int, ...]:
        return self._one.usable_ranks(self._shape(kernel_shape), ranks)

    def factor_shapes(self, kernel_shape: Shape, ranks: Sequence[int]) -> list[tuple[int, ...]]:
        shapes = [list(shape) for shape in self._one.factor_shapes(self._shape(kernel_shape), ranks)]
        for shape, axis in zip(shapes, self._axes):
            shape[axis] *= self.groups
        return [tuple(shape) for shape in shapes]

    def stages(self, kernel_shape: Shape, ranks: Sequence[int], strides: Shape, dilation_rate: Shape) -> list[Stage]:
        def widened(stage):
            channels = stage.in_channels * self.groups, stage.out_channels * self.groups
            groups = 1 if stage.depthwise else self.groups
            return Stage(stage.kernel_size, *channels, stage.strides, stage.dilation_rate, stage.depthwise, groups)

        return [widened(s) for s in self._one.stages(self._shape(kernel_shape), ranks, strides, dilation_rate)]

    def decompose(self, kernel: np.ndarray, ranks: Sequence[int]) -> list[np.ndarray]:
        return self._stacked([self._one.decompose(part, ranks) for part in self._kernels(kernel)])

    def compose(self, factors: Sequence[Tensor]) -> Tensor:
        return joined([self._one.compose(group_factors) for group_factors in self._by_group(factors)], -1)

    def squared_norm(self, factors: Sequence[Tensor]) -> Tensor:
        return sum(self._one.squared_norm(group_factors) for group_factors in self._by_group(factors))

    def truncate(self, factors: Sequence[Tensor], ranks: Sequence[int]) -> list[np.ndarray]:
        return self._stacked([self._one.truncate(group_factors, ranks) for group_factors in self._by_group(factors)])

    def orthogonal_factors(self, spatial_dims: int) -> list[MatrixView]:
        """One view per factor, with a matrix for each group."""
        return [
            MatrixView(view.index, view.rows, view.columns, self.groups, self._axes[view.index])
            for view in self._one.orthogonal_factors(spatial_dims)
        ]

    def unfoldings(self, kernel: np.ndarray) -> list[np.ndarray]:
        """The unfoldings of all groups as blocks on a diagonal, which keeps all their singular values."""
        by_rank = zip(*(self._one.unfoldings(part) for part in self._kernels(kernel)))
        return [_block_diagonal(matrices) for matrices in by_rank]

    def rank_estimates(self, kernel: np.ndarray, estimate: Callable[[np.ndarray], float]) -> list[float]:
        """The means of the estimates over the groups."""
        by_group = [self._one.rank_estimates(part, estimate) for part in self._kernels(kernel)]
        return [float(mean) for mean in np.mean(by_group, axis=0)]

    def spectra(self, kernel: np.ndarray) -> list[np.ndarray]:
        """The sums of the spectra over the groups: a rank drops the same tail of each."""
        return _summed([self._one.spectra(part) for part in self._kernels(kernel)])

    def errors(self, kernel: np.ndarray) -> Errors:
        """Errors of all groups together, at the same ranks in each group."""
        return weighted([(float(np.sum(part**2)), self._one.errors(part)) for part in self._kernels(kernel)])

    def errors_of_factors(self, factors: Sequence[np.ndarray]) -> Errors:
        by_group = list(self._by_group(factors))
        norms = [float(ops.convert_to_numpy(self._one.squared_norm(group_factors))) for group_factors in by_group]
        return weighted([(norm, self._one.errors_of_factors(group)) for norm, group in zip(norms, by_group)])

    def _shape(self, kernel_shape):
        """The kernel shape of one group."""
        if kernel_shape[-1] % self.groups:
            raise ValueError(f"Expected C_out a multiple of groups={self.groups}. Received: {tuple(kernel_shape)}")
        return (*kernel_shape[:-1], kernel_shape[-1] // self.groups)

    def _kernels(self, kernel):
        return np.split(np.asarray(kernel), self.groups, axis=-1)

    def _by_group(self, factors):
        """The factors of each group."""
        parts = [split(factor, self.groups, axis) for factor, axis in zip(factors, self._axes)]
        return [list(group_factors) for group_factors in zip(*parts)]

    def _stacked(self, by_group):
        """Stacks the NumPy factors of the groups."""
        return [np.concatenate(parts, axis=axis) for parts, axis in zip(zip(*by_group), self._axes)]


def grouped(one: str | Format, groups: int) -> Format:
    """Returns a format for convolutions with `groups` groups; for one group, the format itself.

    The chain of the format must have one stage per factor, and the last axis of a factor must be its outputs.

    Args:
        one: the format of each group, or its name.
        groups: int ≥ 1.

    Raises:
        ValueError: for an unknown format, or if `groups` is no int ≥ 1.

    Example:

    >>> tucker2 = elrt_keras.formats.grouped("tucker2", 4)
    >>> tucker2.factor_shapes((3, 3, 8, 64), (4, 6))  # 32 channels to 64 in groups of 8 to 16
    [(1, 1, 8, 16), (3, 3, 4, 24), (1, 1, 6, 64)]
    """
    groups = int_in(groups, "[1, inf)", "groups")  # checked before the cache, which takes True and 1.0 for 1
    return get(one) if groups == 1 else _grouped(get(one), groups)


@functools.cache
def _grouped(one, groups):
    return Grouped(one, groups)


def _summed(by_group):
    return [np.sum(spectra, axis=0) for spectra in zip(*by_group)]


def _block_diagonal(matrices):
    rows, columns = matrices[0].shape
    blocks = np.zeros((len(matrices), rows, len(matrices), columns), matrices[0].dtype)
    for index, matrix in enumerate(matrices):
        blocks[index, :, index] = matrix
    return blocks.reshape(len(matrices) * rows, -1)
