"""The chain of convolutions that replaces one convolution, and its costs."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

Shape: TypeAlias = Sequence[int]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One convolution of a chain. Its kernel is the factor at the same position.

    Attributes:
        kernel_size, strides, dilation_rate: tuples of ints, one per spatial axis.
        in_channels, out_channels: ints.
        depthwise: whether each channel is convolved by itself. If so, the factor has shape `(*kernel_size, C, 1)`,
            otherwise `(*kernel_size, in_channels / groups, out_channels)`.
        groups: int, number of groups of channels; each group is convolved by itself.

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
    groups: int = 1

    @property
    def weights(self) -> int:
        """Number of weights, which is also the number of MACs for one position of the output."""
        inputs_per_output = 1 if self.depthwise else self.in_channels // self.groups
        return math.prod(self.kernel_size) * inputs_per_output * self.out_channels

    def of_one_group(self) -> "Stage":
        """Returns the stage of one group by itself, with `groups=1`."""
        channels = {"in_channels": self.in_channels // self.groups, "out_channels": self.out_channels // self.groups}
        return dataclasses.replace(self, **channels, groups=1)


@dataclasses.dataclass(frozen=True)
class ChainCosts:
    """Costs of one example in a chain without biases.

    Attributes:
        params: number of weights.
        macs: multiply-accumulates: weights times output positions, summed over the stages.
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

    def axis_size(size, kernel, stride, dilation):
        if size is None:
            return None
        if padding in ("same", "causal"):
            return -(-size // stride)
        return (size - dilation * (kernel - 1) - 1) // stride + 1

    return tuple(map(axis_size, size, kernel_size, strides, dilation_rate))


def chain_costs(stages: Sequence[Stage], input_size: Shape, padding: str) -> ChainCosts:
    """`ChainCosts` of running `stages` on an input of spatial size `input_size` (no biases)."""
    params = macs = activations = 0
    size = tuple(input_size)
    for stage in stages:
        size = conv_output_size(size, stage.kernel_size, stage.strides, padding, stage.dilation_rate)
        params += stage.weights
        macs += stage.weights * math.prod(size)
        activations += stage.out_channels * math.prod(size)
    return ChainCosts(params, macs, activations)


def macs_per_position(stages: Sequence[Stage]) -> int:
    """MACs of a chain for one position of its output, not counting borders.

    `Σ_i weights_i · ∏_{j>i} ∏ strides_j`: a stage before a stride runs at more positions than the output has.
    """
    macs, positions = 0, 1
    for stage in reversed(stages):
        macs += stage.weights * positions
        positions *= math.prod(stage.strides)
    return macs


def dense_stage(kernel_shape: Shape, strides: Shape, dilation_rate: Shape, groups: int = 1) -> Stage:
    """The dense convolution itself, as a chain of one stage. `kernel_shape`: `(*kernel_size, C_in / groups, C_out)`."""
    *kernel_size, in_channels, out_channels = kernel_shape
    geometry = tuple(strides), tuple(dilation_rate)
    return Stage(tuple(kernel_size), in_channels * groups, out_channels, *geometry, groups=groups)
