"""What a low-rank format is: a chain of convolutions, and the maths of one factorisation.

A format replaces one convolution with dense kernel `W` of shape `(*kernel_size, C_in, C_out)` (the Keras
layout, N spatial dimensions) by a chain of smaller convolutions without anything in between. Layers, costs,
the rank planner and the conversions know formats only through the class `Format`, so a further format is one
further file here.
"""

import dataclasses
import fractions
import math
import numbers

from keras import ops

_FORMATS = {}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One convolution of a chain. Its kernel is the factor at the same position."""

    kernel_size: tuple
    in_channels: int
    out_channels: int
    strides: tuple
    dilation_rate: tuple
    depthwise: bool = False


@dataclasses.dataclass(frozen=True)
class MatrixView:
    """How the factor at position `index` is read as a matrix: `rows` and `columns` are axes of the factor.

    Orthogonality is a property of this matrix, whatever the shape the convolution wants the factor in.
    """

    index: int
    rows: tuple
    columns: tuple

    def to_matrix(self, factor):
        """The factor as a tensor of shape `(rows, columns)`."""
        shape = factor.shape
        rows = math.prod(shape[axis] for axis in self.rows)
        columns = math.prod(shape[axis] for axis in self.columns)
        return ops.reshape(ops.transpose(factor, self.rows + self.columns), (rows, columns))

    def from_matrix(self, matrix, shape):
        """The inverse of `to_matrix` for a factor of shape `shape`."""
        axes = self.rows + self.columns
        permuted = ops.reshape(matrix, tuple(shape[axis] for axis in axes))
        return ops.transpose(permuted, tuple(axes.index(axis) for axis in range(len(axes))))


@dataclasses.dataclass(frozen=True)
class ChainCosts:
    """What one example costs: weights, multiply-accumulates, and elements of all stage outputs."""

    params: int
    macs: int
    activations: int


def conv_output_size(size, kernel_size, strides, padding, dilation_rate):
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


def chain_costs(stages, input_size, padding):
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


def dense_stage(kernel_shape, strides, dilation_rate):
    """The dense convolution itself, as a chain of one stage."""
    *kernel_size, in_channels, out_channels = kernel_shape
    return Stage(tuple(kernel_size), in_channels, out_channels, tuple(strides), tuple(dilation_rate))


class Format:
    """One way to factorise a convolution kernel. Stateless; subclasses are registered by `name`.

    All kernels have shape `(*kernel_size, C_in, C_out)`; all factors are convolution kernels themselves.
    """

    name = None
    rank_names = ()  # one name per rank, for messages and tables
    factor_names = ()  # one name per factor, in the order of the chain
    core_index = 0  # the factor that carries the scale: initializers scale it to reach the dense variance

    def max_ranks(self, kernel_shape):
        """The full ranks: one int per rank of the format."""
        raise NotImplementedError

    def factor_shapes(self, kernel_shape, ranks):
        """The shapes of the factors, in the order of the chain."""
        raise NotImplementedError

    def stages(self, kernel_shape, ranks, strides, dilation_rate):
        """The chain: one `Stage` per factor. Running it equals convolving with `compose(factors)`."""
        raise NotImplementedError

    def compose(self, factors):
        """The dense kernel, `(*kernel_size, C_in, C_out)`, of a list of factors."""
        raise NotImplementedError

    def decompose(self, kernel, ranks):
        """The factors (NumPy arrays) that approximate the dense `kernel` (a NumPy array) best."""
        raise NotImplementedError

    def orthogonal_factors(self, spatial_dims):
        """The `MatrixView`s of the factors that orthogonality applies to."""
        raise NotImplementedError

    def squared_norm(self, factors):
        """‖compose(factors)‖_F². Formats override it where that needs no composing."""
        return ops.sum(ops.square(self.compose(factors)))

    def validate_ranks(self, ranks):
        """Checks what can be checked without a kernel: type, length, range. Returns plain Python."""
        count = len(self.rank_names)
        names = f"({', '.join(self.rank_names)})"
        if isinstance(ranks, (tuple, list)):
            if len(ranks) != count:
                raise ValueError(
                    f"`ranks` of format '{self.name}' has {count} entries, {names}. Received: ranks={tuple(ranks)}"
                )
            return tuple(_validate_rank(rank, ranks) for rank in ranks)
        return _validate_rank(ranks, ranks)

    def resolve_ranks(self, kernel_shape, ranks):
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

    def costs(self, kernel_shape, ranks, input_size, strides, padding, dilation_rate):
        """`ChainCosts` of the chain for one example of spatial size `input_size`."""
        return chain_costs(self.stages(kernel_shape, ranks, strides, dilation_rate), input_size, padding)


def _validate_rank(rank, ranks):
    if isinstance(rank, numbers.Integral) and not isinstance(rank, bool) and rank >= 1:
        return int(rank)
    if isinstance(rank, numbers.Real) and not isinstance(rank, (bool, numbers.Integral)) and 0 < rank <= 1:
        return float(rank)
    raise ValueError(
        f"A rank is an int of at least 1, or a float in (0, 1] for a fraction of the full rank. Received: ranks={ranks}"
    )


def _rounded_up(fraction, limit):
    """⌈fraction · limit⌉ for the decimal number that was written: 0.1 of 30 is 3, though 0.1 · 30 > 3 in binary."""
    return math.ceil(fractions.Fraction(repr(fraction)) * limit)


def register(format_class):
    """Class decorator: makes the format known to `get` under its `name`."""
    _FORMATS[format_class.name] = format_class()
    return format_class


def names():
    """The registered format names, sorted."""
    return sorted(_FORMATS)


def get(name):
    """The format called `name`.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    if isinstance(name, Format):
        return name
    if name not in _FORMATS:
        raise ValueError(f"Unknown format. Expected one of {names()}. Received: format={name!r}")
    return _FORMATS[name]
