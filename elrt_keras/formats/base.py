"""What a low-rank format is: a chain of convolutions, and the maths of one factorisation.

A format replaces one convolution with dense kernel `W` of shape `(*kernel_size, C_in, C_out)` (the Keras
layout, N spatial dimensions) by a chain of smaller convolutions without anything in between. Layers, costs,
the rank planner and the conversions know formats only through the class `Format`, so a further format is one
further file here.
"""

import dataclasses
import fractions
import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from keras import ops

# What `keras.ops` takes and gives: a tensor of the backend, a variable, an array. These have no type in common.
Tensor: TypeAlias = Any
Shape: TypeAlias = Sequence[int]
# As users give them: one number for all ranks or one for each; a float is a fraction of the full rank.
Ranks: TypeAlias = int | float | Sequence[int | float]

_FORMATS: dict[str, "Format"] = {}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One convolution of a chain. Its kernel is the factor at the same position.

    Attributes:
        kernel_size, strides, dilation_rate: tuples of ints, one per spatial axis.
        in_channels, out_channels: ints.
        depthwise: whether each channel is convolved by itself; the factor then has shape `(*kernel_size, C, 1)`,
            otherwise `(*kernel_size, in_channels, out_channels)`.

    Example:

    >>> chain = elrt_keras.formats.get("tucker2").stages((3, 3, 16, 32), (8, 12), (2, 2), (1, 1))
    >>> [(stage.kernel_size, stage.strides, stage.out_channels) for stage in chain]
    [((1, 1), (1, 1), 8), ((3, 3), (2, 2), 12), ((1, 1), (1, 1), 32)]
    """

    kernel_size: tuple[int, ...]
    in_channels: int
    out_channels: int
    strides: tuple[int, ...]
    dilation_rate: tuple[int, ...]
    depthwise: bool = False


@dataclasses.dataclass(frozen=True)
class MatrixView:
    """How the factor at position `index` is read as a matrix: `rows` and `columns` are axes of the factor.

    Orthogonality is a property of this matrix, whatever the shape the convolution wants the factor in.

    Attributes:
        index: int, the factor's position in the chain.
        rows, columns: tuples of ints, all axes of the factor between them.

    Example:

    >>> (view,) = elrt_keras.formats.get("spatial_svd").orthogonal_factors(2)
    >>> view.to_matrix(np.zeros((1, 3, 4, 16))).shape == (4, 48)  # r × k_w·C_out
    True
    """

    index: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def to_matrix(self, factor: Tensor) -> Tensor:
        """The factor as a tensor of shape `(rows, columns)`."""
        shape = factor.shape
        rows = math.prod(shape[axis] for axis in self.rows)
        columns = math.prod(shape[axis] for axis in self.columns)
        return ops.reshape(ops.transpose(factor, self.rows + self.columns), (rows, columns))

    def from_matrix(self, matrix: Tensor, shape: Shape) -> Tensor:
        """The inverse of `to_matrix` for a factor of shape `shape`."""
        axes = self.rows + self.columns
        permuted = ops.reshape(matrix, tuple(shape[axis] for axis in axes))
        return ops.transpose(permuted, tuple(axes.index(axis) for axis in range(len(axes))))


@dataclasses.dataclass(frozen=True)
class ChainCosts:
    """What one example costs in a chain without biases.

    Attributes:
        params: number of weights.
        macs: multiply-accumulates: weights times positions of the output, summed over the stages.
        activations: elements of all stage outputs.

    Example:

    >>> elrt_keras.formats.get("tucker2").costs((3, 3, 16, 32), (8, 12), (8, 8), (1, 1), "same", (1, 1))
    ChainCosts(params=1376, macs=88064, activations=3328)
    """

    params: int
    macs: int
    activations: int


def conv_output_size(
    size: Sequence[int | None], kernel_size: Shape, strides: Shape, padding: str, dilation_rate: Shape
) -> tuple[Any, ...]:
    """Spatial output size of a convolution, axis by axis; `None` stays `None`.

    `same` and `causal`: ceil(size / stride); `valid`: floor((size − dilation·(k − 1) − 1) / stride) + 1.
    """

    def one(size, kernel, stride, dilation):
        if size is None:
            return None
        if padding in ("same", "causal"):
            return -(-size // stride)
        return (size - dilation * (kernel - 1) - 1) // stride + 1

    return tuple(map(one, size, kernel_size, strides, dilation_rate))


def chain_costs(stages: Sequence[Stage], input_size: Shape, padding: str) -> ChainCosts:
    """`ChainCosts` of running `stages` on an input of spatial size `input_size` (no biases)."""
    params = macs = activations = 0
    size = tuple(input_size)
    for stage in stages:
        size = conv_output_size(size, stage.kernel_size, stage.strides, padding, stage.dilation_rate)
        inputs_per_output = 1 if stage.depthwise else stage.in_channels
        weights = math.prod(stage.kernel_size) * inputs_per_output * stage.out_channels
        params += weights
        macs += weights * math.prod(size)
        activations += stage.out_channels * math.prod(size)
    return ChainCosts(params, macs, activations)


def dense_stage(kernel_shape: Shape, strides: Shape, dilation_rate: Shape) -> Stage:
    """The dense convolution itself, as a chain of one stage."""
    *kernel_size, in_channels, out_channels = kernel_shape
    return Stage(tuple(kernel_size), in_channels, out_channels, tuple(strides), tuple(dilation_rate))


class Format:
    """One way to factorise a convolution kernel. Stateless; subclasses are registered by `name`.

    All kernels have shape `(*kernel_size, C_in, C_out)`; all factors are convolution kernels themselves. A dense
    layer's matrix is a kernel without spatial axes.

    Attributes:
        name: str, by which `get` finds the format.
        spatial_dims: tuple of ints, the numbers of spatial axes it is defined for; 0 stands for a dense layer.
        rank_names: tuple of str, one per rank.
        factor_names: tuple of str, one per factor, in the order of the chain.
        core_index: int, the factor that carries the scale: initializers scale it to reach the dense variance.

    Example:

    >>> tucker2 = elrt_keras.formats.get("tucker2")
    >>> factors = tucker2.decompose(np.ones((3, 3, 4, 6), dtype="float32"), (1, 1))
    >>> np.allclose(keras.ops.convert_to_numpy(tucker2.compose(factors)), 1, atol=1e-5)
    True
    """

    name: str = None  # pyright: ignore[reportAssignmentType]  (every subclass has one)
    spatial_dims: tuple[int, ...] = ()  # the numbers of spatial axes it is defined for
    rank_names: tuple[str, ...] = ()  # one name per rank, for messages and tables
    factor_names: tuple[str, ...] = ()  # one name per factor, in the order of the chain
    core_index: int = 0  # the factor that carries the scale: initializers scale it to reach the dense variance

    def max_ranks(self, kernel_shape: Shape) -> tuple[int, ...]:
        """The full ranks: one int per rank of the format. At these every kernel is composed exactly."""
        raise NotImplementedError

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

    def spectra(self, kernel: np.ndarray) -> list[np.ndarray]:
        """Squared singular values by rank, each in descending order, as many as the full rank.

        What a rank leaves out is the tail of its spectrum, and the sum of the tails bounds the squared error of the
        decomposition (exactly the error for one rank; the bound of HOSVD and TT-SVD for several).
        """
        return [squared_singular_values(matrix) for matrix in self.unfoldings(np.asarray(kernel, "float64"))]

    def compose(self, factors: Sequence[Tensor]) -> Tensor:
        """The dense kernel, `(*kernel_size, C_in, C_out)`, of a list of factors.

        The product of the factors as matrices `in × out`, for each position of the kernel. Along each spatial axis only
        one factor of a chain is longer than 1.
        """
        return functools.reduce(_product, factors)

    def squared_norm(self, factors: Sequence[Tensor]) -> Tensor:
        """‖compose(factors)‖_F² by Gram matrices of the size of a rank, without composing.

        With W = A₁…A_m and G_m = ΣA_mA_mᵀ, G_i = ΣA_iG_{i+1}A_iᵀ (sums over spatial positions):
        ‖W‖_F² = ⟨ΣA₁ᵀA₁, G₂⟩.
        """
        gram = None
        for factor in reversed(factors[1:]):
            weighted = factor if gram is None else channel_product(factor, gram)
            # Σ over positions of (in × out)·(in × out)ᵀ: all axes but the one of the inputs are summed.
            summed = [*range(len(factor.shape) - 2), len(factor.shape) - 1]
            gram = ops.tensordot(weighted, factor, axes=(summed, summed))
        first = ops.reshape(factors[0], (-1, factors[0].shape[-1]))
        return ops.sum(ops.multiply(ops.matmul(ops.transpose(first), first), gram))

    def truncate(self, factors: Sequence[Tensor], ranks: Sequence[int]) -> list[np.ndarray]:
        """The factors (NumPy arrays) at lower `ranks` that approximate the composed kernel of `factors` best."""
        return self.decompose(ops.convert_to_numpy(self.compose(factors)), ranks)

    def validate_ranks(self, ranks: Ranks) -> int | float | tuple[int | float, ...]:
        """Checks what can be checked without a kernel: type, length, range. Returns plain Python."""
        count = len(self.rank_names)
        entries = "entry" if count == 1 else "entries"
        names = f"({', '.join(self.rank_names)})"
        ranks = ranks.tolist() if isinstance(ranks, np.ndarray) else ranks
        if isinstance(ranks, (tuple, list)):
            if len(ranks) != count:
                raise ValueError(
                    f"`ranks` of format '{self.name}' has {count} {entries}, {names}. Received: ranks={tuple(ranks)}"
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
            ValueError: if a rank is below 1, above the full rank, or the tuple has another length.
        """
        ranks = self.validate_ranks(ranks)
        full = self.max_ranks(kernel_shape)
        given = ranks if isinstance(ranks, tuple) else (ranks,) * len(full)
        resolved = tuple(
            _rounded_up(rank, limit) if isinstance(rank, float) else rank for rank, limit in zip(given, full)
        )
        for name, rank, limit in zip(self.rank_names, resolved, full):
            if rank > limit:
                raise ValueError(
                    f"{name} is at most the full rank, {limit}, for a kernel of shape {tuple(kernel_shape)}. "
                    f"Received: ranks={ranks}"
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
        """`ChainCosts` of the chain for one example of spatial size `input_size`."""
        return chain_costs(self.stages(kernel_shape, ranks, strides, dilation_rate), input_size, padding)


def _validate_rank(rank, ranks):
    # Typeshed's `numbers` know no comparisons.
    if isinstance(rank, numbers.Integral) and not isinstance(rank, bool) and rank >= 1:  # pyright: ignore
        return int(rank)
    if (
        isinstance(rank, numbers.Real) and not isinstance(rank, (bool, numbers.Integral)) and 0 < rank <= 1  # pyright: ignore
    ):
        return float(rank)
    raise ValueError(
        f"A rank is an int of at least 1, or a float in (0, 1] for a fraction of the full rank. Received: ranks={ranks}"
    )


def _rounded_up(fraction, limit):
    """⌈fraction · limit⌉ for the decimal number that was written: 0.1 of 30 is 3, though 0.1 · 30 > 3 in binary."""
    return math.ceil(fractions.Fraction(repr(fraction)) * limit)


_FormatT = TypeVar("_FormatT", bound=Format)


def register(format_class: type[_FormatT]) -> type[_FormatT]:
    """Class decorator: makes the format known to `get` under its `name`.

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
    """The format called `name`.

    Args:
        name: str, or a `Format`, which is returned as it is.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.

    Example:

    >>> elrt_keras.formats.get("tucker2").max_ranks((3, 3, 16, 32))
    (16, 32)
    """
    if isinstance(name, Format):
        return name
    if name not in _FORMATS:
        raise ValueError(f"Unknown format. Expected one of {names()}. Received: format={name!r}")
    return _FORMATS[name]


def channel_product(factor: Tensor, matrix: Tensor) -> Tensor:
    """A factor `(…, in, out)` times a matrix `(out, columns)`, at each position.

    One plain matrix product: products that broadcast over positions, which `matmul` offers, are computed wrongly by
    TensorFlow 2.21 with oneDNN for some shapes, (1, 1, 8, 3) by (3, 1, 3, 8) for one.
    """
    return ops.tensordot(factor, matrix, axes=([len(factor.shape) - 1], [0]))


def _product(left, right):
    """Two kernels `(*kernel_size, in, out)` as one, where along each spatial axis one of them has length 1."""
    dims = len(left.shape) - 2
    # (*left positions, in, *right positions, out), then the positions of each axis side by side.
    outer = ops.tensordot(left, right, axes=([dims + 1], [dims]))
    order = [axis for pair in zip(range(dims), range(dims + 1, 2 * dims + 1)) for axis in pair]
    sizes = [left.shape[axis] * right.shape[axis] for axis in range(dims)]
    return ops.reshape(ops.transpose(outer, [*order, dims, 2 * dims + 1]), (*sizes, left.shape[-2], right.shape[-1]))


# Above this size of the smaller side, singular vectors come from the Gram matrix: several times faster, and what it
# loses (singular values below 1e-8 of the largest) is beneath the rounding of float32 weights.
_GRAM_SIZE = 1024


def squared_singular_values(matrix: np.ndarray) -> np.ndarray:
    """The squared singular values of a matrix (float64), descending."""
    if min(matrix.shape) <= _GRAM_SIZE:
        return np.linalg.svd(matrix, compute_uv=False) ** 2
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)


def leading_rows(matrix: np.ndarray, rank: int) -> np.ndarray:
    """Orthonormal rows `(rank, columns)` that span the leading right singular vectors of a matrix (float64).

    Rows beyond the rank that a matrix of this shape can have are zero.
    """
    rank_limit = min(rank, *matrix.shape)
    if min(matrix.shape) <= _GRAM_SIZE:
        rows = np.linalg.svd(matrix, full_matrices=False)[2][:rank_limit]
    elif matrix.shape[0] >= matrix.shape[1]:
        rows = np.linalg.eigh(matrix.T @ matrix)[1].T[::-1][:rank_limit]
    else:
        left = np.linalg.eigh(matrix @ matrix.T)[1][:, ::-1][:, :rank_limit]
        rows = np.linalg.qr(matrix.T @ left)[0].T
    return np.pad(rows, [(0, rank - rank_limit), (0, 0)])


def as_factors(arrays: Sequence[np.ndarray], shapes: Sequence[Shape], dtype: Any) -> list[np.ndarray]:
    """Arrays as contiguous factors of the given shapes and dtype."""
    return [np.ascontiguousarray(array.reshape(shape), dtype=dtype) for array, shape in zip(arrays, shapes)]
