"""Ways to train a layer: different computations of one chain with equal results. The fastest depends on the device."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops

from elrt_keras.formats.arrays import Tensor, channel_product, kernel_product
from elrt_keras.formats.base import Format
from elrt_keras.formats.chain import Stage


@dataclasses.dataclass(frozen=True)
class TrainingWay:
    """A way to compute the outputs of a low-rank layer in training. All ways give equal outputs up to rounding.

    Attributes:
        sizes: tuple of ints that sum to the number of factors. Each int is the number of neighbouring factors that are
            multiplied into the kernel of one convolution. `(1, 1, 1)` is the chain of three, `(3,)` the composed
            kernel, `(2, 1)` the chain whose first factor is folded into the second.
        products: whether 1×1 convolutions run as one matrix product over all pixels.
        shifts: whether depthwise convolutions run as a sum of shifted products.

    Example:

    >>> str(elrt_keras.layers.TrainingWay((2, 1), products=True))
    '2-1, 1×1 as products'
    """

    sizes: tuple[int, ...]
    products: bool = False
    shifts: bool = False

    def __str__(self) -> str:
        kind = {1: "composed", sum(self.sizes): "chain"}.get(len(self.sizes), "-".join(map(str, self.sizes)))
        parts = [kind, "1×1 as products" if self.products else "", "depthwise as shifts" if self.shifts else ""]
        return ", ".join(part for part in parts if part)

    def to_json(self) -> dict[str, Any]:
        """Returns the way as a dict of plain Python."""
        return {**dataclasses.asdict(self), "sizes": list(self.sizes)}

    @classmethod
    def from_json(cls, fields: Any) -> "TrainingWay":
        """Returns the way that `to_json` wrote.

        Raises:
            ValueError: for a value that `to_json` does not write.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) != names:
            raise ValueError(f"Expected a way to train with {sorted(names)}. Received: {fields!r}")
        sizes = fields["sizes"]
        is_valid = isinstance(sizes, list) and sizes and all(type(size) is int and size > 0 for size in sizes)
        if not is_valid or not all(isinstance(fields[name], bool) for name in names - {"sizes"}):
            raise ValueError(f"Expected a way to train: positive ints and two bools. Received: {fields!r}")
        return cls(**{**fields, "sizes": tuple(sizes)})


def foldings(stages: Sequence[Stage]) -> list[tuple[int, ...]]:
    """Lists the `sizes` with which a chain can run; the chain itself first, the composed kernel last.

    Two cases allow only these two: grouped stages, and a depthwise stage next to another stage of several positions.
    """
    count = len(stages)
    inner = [
        sizes
        for sizes in _compositions(count)
        if 1 < len(sizes) < count and all(_can_fold(stages[start:end]) for start, end in _runs(sizes))
    ]
    return [(1,) * count, *inner, (count,)]


def folded_stages(stages: Sequence[Stage], composed: Stage, sizes: Sequence[int]) -> list[Stage]:
    """Returns the stages of a chain after folding; `composed` is the single stage of the composed kernel."""
    if len(sizes) == 1:
        return [composed]
    return [_folded(stages[start:end]) for start, end in _runs(sizes)]


def folded_kernels(form: Format, stages: Sequence[Stage], factors: Sequence[Tensor], sizes: Sequence[int]) -> list:
    """Returns the kernels of `folded_stages`."""
    if len(sizes) == 1:
        return [form.compose(list(factors))]
    return [_product(stages[start:end], factors[start:end]) for start, end in _runs(sizes)]


def mixes_channels(stage: Stage) -> bool:
    """Reports if each output position of a stage depends only on the same input position."""
    is_whole = not stage.depthwise and stage.groups == 1
    return is_whole and set(stage.kernel_size) == {1} and set(stage.strides) == {1}


def mix_channels(inputs: Tensor, kernel: Tensor, stage: Stage) -> Tensor:
    """Runs a stage of one position as one matrix product over all positions; channels are the last axis."""
    matrix = ops.reshape(kernel, (stage.in_channels, stage.out_channels))
    outputs = ops.matmul(ops.reshape(inputs, (-1, stage.in_channels)), matrix)
    return ops.reshape(outputs, (*ops.shape(inputs)[:-1], stage.out_channels))


def shift_channels(inputs: Tensor, kernel: Tensor, stage: Stage, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Runs a depthwise stage as a sum over the positions of its kernel: shifted inputs times one weight per channel.

    Args:
        inputs: `(batch, *size, channels)`.
        kernel: `(*kernel_size, channels, 1)`.
        stage: the depthwise stage.
        before, after: zeros to pad on both sides of each spatial axis.
    """
    padded = ops.pad(inputs, [(0, 0), *zip(before, after), (0, 0)])
    spans = [dilation * (size - 1) for dilation, size in zip(stage.dilation_rate, stage.kernel_size)]
    sizes = [size - span for size, span in zip(padded.shape[1:-1], spans)]
    outputs = None
    for position in itertools.product(*map(range, stage.kernel_size)):
        starts = [index * dilation for index, dilation in zip(position, stage.dilation_rate)]
        window = tuple(slice(s, s + size, stride) for s, size, stride in zip(starts, sizes, stage.strides))
        product = ops.multiply(padded[(slice(None), *window)], kernel[position][:, 0])
        outputs = product if outputs is None else ops.add(outputs, product)
    return outputs


def same_padding(size: Sequence[int], stage: Stage) -> tuple[list[int], list[int]]:
    """Returns the zeros that padding `"same"` puts before and after each spatial axis.

    `total = max((⌈size / stride⌉ − 1)·stride + dilation·(k − 1) + 1 − size, 0)`, the smaller half before.
    """
    totals = [
        max((-(-length // stride) - 1) * stride + dilation * (kernel - 1) + 1 - length, 0)
        for length, stride, dilation, kernel in zip(size, stage.strides, stage.dilation_rate, stage.kernel_size)
    ]
    return [total // 2 for total in totals], [total - total // 2 for total in totals]


def only_cpus(*backends: str) -> bool:
    """Reports if the current backend is in `backends` and has no accelerator."""
    if keras.backend.backend() not in backends:
        return False
    return all(device.startswith("cpu") for device in keras.distribution.list_devices())


def _compositions(count: int) -> Iterator[tuple[int, ...]]:
    """Yields all tuples of positive ints that sum to `count`."""
    if not count:
        yield ()
    for first in range(1, count + 1):
        for rest in _compositions(count - first):
            yield first, *rest


def _runs(sizes):
    """The start and end of each run of factors."""
    ends = list(itertools.accumulate(sizes))
    return list(zip([0, *ends], ends))


def _can_fold(stages):
    if len(stages) == 1:
        return True
    wide = [stage for stage in stages if math.prod(stage.kernel_size) > 1]
    depthwise = [stage for stage in stages if stage.depthwise]
    alone = not depthwise or (len(depthwise) == 1 and all(stage.depthwise for stage in wide))
    return alone and all(stage.groups == 1 for stage in stages)


def _folded(stages):
    """Folds consecutive stages into one. Along each spatial axis only one stage of a chain is longer than 1."""
    first, *rest = stages
    for stage in rest:
        pairs = {
            name: tuple(a * b for a, b in zip(getattr(first, name), getattr(stage, name)))
            for name in ("kernel_size", "strides", "dilation_rate")
        }
        first = dataclasses.replace(first, **pairs, out_channels=stage.out_channels, depthwise=False)
    return first


def _product(stages, factors):
    """Multiplies consecutive factors into one kernel."""
    kernel, is_depthwise = factors[0], stages[0].depthwise
    for stage, factor in zip(stages[1:], factors[1:]):
        if stage.depthwise:
            kernel = ops.multiply(kernel, ops.swapaxes(factor, -1, -2))
        elif is_depthwise:
            kernel = ops.multiply(kernel, factor)
        elif math.prod(stage.kernel_size) == 1:
            kernel = channel_product(kernel, ops.reshape(factor, factor.shape[-2:]))
        else:
            kernel = kernel_product(kernel, factor)
        is_depthwise = False
    return kernel
