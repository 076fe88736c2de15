"""Base class of the low-rank formats: a chain of convolutions, and the maths of one factorisation.

A format replaces one convolution with dense kernel `W` of shape `(*kernel_size, C_in, C_out)` (the Keras layout, N
spatial dimensions) by a chain of smaller convolutions with nothing in between. Layers, costs, the rank planner and the
conversions use formats only through the class `Format`. A new format therefore needs one new file here.
"""

import fractions
import functools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
from keras import ops

from elrt_keras.checks import one_of
from elrt_keras.formats.arrays import (
    MatrixView,
    Tensor,
    channel_product,
    contracted,
    kernel_product,
    squared_singular_values,
)
from elrt_keras.formats.chain import ChainCosts, Shape, Stage, chain_costs, dense_stage, macs_per_position
from elrt_keras.formats.errors import Errors, of_spectra

# Ranks as a user writes them: one number for all ranks or one per rank; a float is a fraction of the full rank.
Ranks: TypeAlias = int | float | Sequence[int | float]

_FORMATS: dict[str, "Format"] = {}


class Format:
    """One way to factorise a convolution kernel. Stateless. Subclasses are registered by `name`.

    All kernels have shape `(*kernel_size, C_in, C_out)`. All factors are convolution kernels themselves. The matrix of
    a dense layer is a kernel without spatial axes.

    Attributes:
        name: str; `get` finds the format by it.
        spatial_dims: tuple of ints, the supported numbers of spatial axes; 0 stands for a dense layer.
        rank_names: tuple of str, one per rank.
        factor_names: tuple of str, one per factor, in the order of the chain.
        core_index: int, index of the factor that carries the scale: initializers scale it to reach the dense variance.
        groups: int, 1 for every format except those that `grouped` returns.

    Example:

    >>> tucker2 = elrt_keras.formats.get("tucker2")
    >>> factors = tucker2.decompose(np.ones((3, 3, 4, 6), dtype="float32"), (1, 1))
    >>> np.allclose(keras.ops.convert_to_numpy(tucker2.compose(factors)), 1, atol=1e-5)
    True
    """

    name: str = None  # pyright: ignore[reportAssignmentType]  (every subclass has one)
    spatial_dims: tuple[int, ...] = ()  # the supported numbers of spatial axes
    rank_names: tuple[str, ...] = ()  # one name per rank, for messages and tables
    factor_names: tuple[str, ...] = ()  # one name per factor, in the order of the chain
    core_index: int = 0  # the factor that carries the scale: initializers scale it to reach the dense variance
    groups: int = 1

    def max_ranks(self, kernel_shape: Shape) -> tuple[int, ...]:
        """The full ranks, one int per rank of the format. At full rank the format composes every kernel exactly."""
        raise NotImplementedError

    def usable_ranks(self, kernel_shape: Shape, ranks: Sequence[int]) -> tuple[int, ...]:
        """The ranks, each cut to the largest value that the other ranks allow. The composed kernel stays the same."""
        return tuple(ranks)

    def factor_shapes(self, kernel_shape: Shape, ranks: Sequence[int]) -> list[tuple[int, ...]]:
        """The shapes of the factors, in the order of the chain."""
        raise NotImplementedError

    def stages(self, kernel_shape: Shape, ranks: Sequence[int], strides: Shape, dilation_rate: Shape) -> list[Stage]:
        """The chain: one `Stage` per factor. Running it equals convolving with `compose(factors)`."""
        raise NotImplementedError

    def decompose(self, kernel: np.ndarray, ranks: Sequence[int]) -> list[np.ndarray]:
        """The factors (NumPy arrays) that approximate the dense `kernel` (a NumPy array) best."""
        raise NotImplementedError

    def orthogonal_factors(self, spatial_dims: int) -> list[MatrixView]:
        """The `MatrixView`s of the factors that orthogonality applies to."""
        raise NotImplementedError

    def unfoldings(self, kernel: np.ndarray) -> list[np.ndarray]:
        """The matrices (NumPy) whose singular values decide the ranks, one per rank of the format."""
        raise NotImplementedError

    def rank_estimates(self, kernel: np.ndarray, estimate: Callable[[np.ndarray], float]) -> list[float]:
        """Values of `estimate` for each of the `unfoldings`, one per rank."""
        return [estimate(matrix) for matrix in self.unfoldings(kernel)]

    def spectra(self, kernel: np.ndarray) -> list[np.ndarray]:
        """Squared singular values of each unfolding, in descending order, one array per rank.

        The length is the full rank. It is smaller if the rank belongs to a channel axis that is longer than all other
        axes together. A rank drops the tail of its spectrum. The sum of the tails bounds the squared error of the
        decomposition: it is the exact error for one rank, and the bound of HOSVD and TT-SVD for several.
        """
        return [squared_singular_values(matrix) for matrix in self.unfoldings(np.asarray(kernel, "float64"))]

    def errors(self, kernel: np.ndarray) -> Errors:
        """Returns the relative squared error of decomposing a kernel `W`, a NumPy array: `ranks ↦ ‖W − Ŵ‖² / ‖W‖²`.

        The error is exact for a format of one rank whose unfolding is the kernel as a matrix. For other formats it is
        an estimate from the spectra. A format overrides this method if it knows a better estimate.

        Example:

        >>> errors = elrt_keras.formats.get("svd").errors(np.diag([2.0, 1.0, 1.0]))
        >>> [round(errors((rank,)), 3) for rank in (1, 2, 3)]
        [0.333, 0.167, 0.0]
        """
        return of_spectra(self.spectra(kernel))

    def errors_of_factors(self, factors: Sequence[np.ndarray]) -> Errors:
        """Returns the relative squared error of `truncate` on factors (NumPy arrays), as a function of the ranks."""
        return self.errors(ops.convert_to_numpy(self.compose(factors)))

    def compose(self, factors: Sequence[Tensor]) -> Tensor:
        """The dense kernel, `(*kernel_size, C_in, C_out)`, of a list of factors.

        At each position of the kernel it is the product of the factors as matrices `in × out`. Along each spatial axis
        only one factor of a chain is longer than 1.
        """
        return functools.reduce(kernel_product, factors)

    def squared_norm(self, factors: Sequence[Tensor]) -> Tensor:
        """‖compose(factors)‖_F², computed from Gram matrices of the size of a rank, without composing the kernel.

        With W = A₁…A_m and G_m = ΣA_mA_mᵀ, G_i = ΣA_iG_{i+1}A_iᵀ (sums over spatial positions):
        ‖W‖_F² = ⟨ΣA₁ᵀA₁, G₂⟩.
        """
        gram = None
        for factor in reversed(factors[1:]):
            weighted = factor if gram is None else channel_product(factor, gram)
            # Σ over positions of (in × out)·(in × out)ᵀ: the sum runs over all axes except that of the inputs.
            summed = [*range(len(factor.shape) - 2), len(factor.shape) - 1]
            gram = contracted(weighted, factor, summed, summed)
        positions = [*range(len(factors[0].shape) - 1)]
        return ops.sum(ops.multiply(contracted(factors[0], factors[0], positions, positions), gram))

    def truncate(self, factors: Sequence[Tensor], ranks: Sequence[int]) -> list[np.ndarray]:
        """The factors (NumPy arrays) at lower `ranks` that approximate the composed kernel of `factors` best."""
        return self.decompose(ops.convert_to_numpy(self.compose(factors)), ranks)

    def validate_ranks(self, ranks: Ranks) -> int | float | tuple[int | float, ...]:
        """Checks the type, length and range of ranks, which needs no kernel. Returns the ranks as plain Python."""
        count = len(self.rank_names)
        entries = "entry" if count == 1 else "entries"
        names = f"({', '.join(self.rank_names)})"
        ranks = ranks.tolist() if isinstance(ranks, np.ndarray) else ranks
        if isinstance(ranks, (tuple, list)):
            if len(ranks) != count:
                raise ValueError(
                    f"Expected {count} {entries} in `ranks` of format '{self.name}', {names}. "
                    f"Received: ranks={tuple(ranks)}"
                )
            return tuple(_validate_rank(rank, ranks) for rank in ranks)
        return _validate_rank(ranks, ranks)

    def resolve_ranks(self, kernel_shape: Shape, ranks: Ranks) -> tuple[int, ...]:
        """The ranks as ints, one per name in `rank_names`, checked against the full ranks.

        Args:
            kernel_shape: `(*kernel_size, C_in, C_out)`.
            ranks: int (for every rank), float in (0, 1] (fraction of the full rank, rounded up), or a tuple
                of these, one per rank.

        Raises:
            ValueError: if a rank is below 1 or above the full rank, or if the tuple has the wrong length.
        """
        ranks = self.validate_ranks(ranks)
        full = self.max_ranks(kernel_shape)
        rank_per_name = ranks if isinstance(ranks, tuple) else (ranks,) * len(full)
        resolved = tuple(
            _rounded_up(rank, limit) if isinstance(rank, float) else rank for rank, limit in zip(rank_per_name, full)
        )
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        for name, rank, limit in zip(self.rank_names, resolved, full):
            if rank > limit:
                raise ValueError(
                    f"Expected {name} of at most the full rank, {limit}, for a kernel of shape {tuple(kernel_shape)}"
                    f"{groups}. Received: ranks={ranks}"
                )
        return resolved

    def costs(
        self,
        kernel_shape: Shape,
        ranks: Sequence[int],
        input_size: Shape,
        strides: Shape,
        padding: str,
        dilation_rate: Shape,
    ) -> ChainCosts:
        """Costs of running the chain on one example, as `ChainCosts`.

        Args:
            kernel_shape: shape of the dense kernel, `(*kernel_size, C_in, C_out)`.
            ranks: resolved ranks, one int per rank name.
            input_size: spatial size of the input, one int per spatial axis.
            strides: one int per spatial axis.
            padding: `"same"`, `"valid"` or `"causal"`.
            dilation_rate: one int per spatial axis.
        """
        return chain_costs(self.stages(kernel_shape, ranks, strides, dilation_rate), input_size, padding)

    def prefers_chain(self, kernel_shape: Shape, ranks: Sequence[int], strides: Shape) -> bool:
        """Reports if the chain takes at most the MACs of the dense kernel, not counting borders.

        If it does, a layer with execution `"auto"` runs the chain. The answer depends only on the arguments, so a
        layer, its plan, its costs and its measured times always agree.

        Args:
            kernel_shape: shape of the dense kernel, `(*kernel_size, C_in, C_out)`.
            ranks: resolved ranks, one int per rank name.
            strides: one int per spatial axis.

        Example:

        >>> tucker2 = elrt_keras.formats.get("tucker2")
        >>> [tucker2.prefers_chain((3, 3, 16, 16), ranks, (1, 1)) for ranks in [(8, 8), (16, 16)]]
        [True, False]
        """
        ones = (1,) * len(strides)
        chain = self.stages(kernel_shape, ranks, strides, ones)
        return macs_per_position(chain) <= dense_stage(kernel_shape, strides, ones, self.groups).weights


def _validate_rank(rank, ranks):
    # The types of `numbers` in typeshed have no comparisons.
    if isinstance(rank, numbers.Integral) and not isinstance(rank, bool) and rank >= 1:  # pyright: ignore
        return int(rank)
    if (
        isinstance(rank, numbers.Real) and not isinstance(rank, (bool, numbers.Integral)) and 0 < rank <= 1  # pyright: ignore
    ):
        return float(rank)
    raise ValueError(
        f"Expected a rank as an int of at least 1, or a float in (0, 1], a fraction of the full rank. "
        f"Received: ranks={ranks}"
    )


def _rounded_up(fraction, limit):
    """⌈fraction · limit⌉ of the decimal number as written: 0.1 of 30 is 3, although 0.1 · 30 > 3 in binary."""
    return math.ceil(fractions.Fraction(repr(fraction)) * limit)


_FormatT = TypeVar("_FormatT", bound=Format)


def register(format_class: type[_FormatT]) -> type[_FormatT]:
    """Class decorator: registers the format, so that `get` finds it by its `name`.

    Args:
        format_class: a subclass of `Format`; it is instantiated once, without arguments.

    Example:

    >>> elrt_keras.formats.register(type(elrt_keras.formats.get("svd"))).name
    'svd'
    """
    _FORMATS[format_class.name] = format_class()
    return format_class


def names() -> list[str]:
    """The registered format names, sorted.

    Example:

    >>> set(elrt_keras.formats.names()) >= {"cp", "spatial_svd", "svd", "tensor_train", "tucker2"}
    True
    """
    return sorted(_FORMATS)


def get(name: str | Format) -> Format:
    """Returns the format called `name`.

    Args:
        name: str, or a `Format`, which is returned unchanged.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.

    Example:

    >>> elrt_keras.formats.get("tucker2").max_ranks((3, 3, 16, 32))
    (16, 32)
    """
    if isinstance(name, Format):
        return name
    return _FORMATS[one_of(name, names(), "format")]
