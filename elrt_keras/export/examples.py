"""Examples for calibration and checks, from whatever a training pipeline gives."""

import math
import numbers
from collections.abc import Iterator
from typing import Any

import numpy as np

from elrt_keras.formats.chain import Shape

_BATCH = 64


def take_inputs(data: Any, shape: Shape, limit: int) -> np.ndarray:
    """The first inputs as a float32 array `(N, …)`, at most `limit`; arguments and errors are those of `batches`."""
    return np.concatenate([inputs for inputs, _ in batches(data, shape, limit, labelled=False)])


def check_range(input_range: Any) -> None:
    """Refuses a range of inputs that is none.

    Raises:
        ValueError: for anything but two finite numbers, the lower one first.
    """
    ends = list(input_range) if isinstance(input_range, (tuple, list, np.ndarray)) else []
    finite = all(isinstance(end, numbers.Real) and math.isfinite(end) for end in ends)
    if len(ends) != 2 or not finite or not ends[0] < ends[1]:
        raise ValueError(f"Expected input_range as (lowest, highest). Received: input_range={input_range!r}")


def check_batches(
    evaluation_data: Any, shape: Shape, input_range: tuple[float, float], limit: int | None = None, count: int = 16
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Batches of `(inputs, class numbers or None)` for a check: the evaluation data, or `count` random inputs.

    Raises:
        ValueError: at once for a limit below 1; otherwise as `batches`.
    """
    if limit is not None and (not isinstance(limit, numbers.Integral) or limit < 1):
        raise ValueError(f"Expected an int of at least one example. Received: max_examples={limit!r}")
    if evaluation_data is None:
        random = np.random.default_rng(0)
        evaluation_data = random.uniform(*input_range, (count, *shape)).astype("float32")
    return batches(evaluation_data, shape, limit)


def batches(
    data: Any, shape: Shape, limit: int | None = None, labelled: bool = True
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Batches of `(inputs, class numbers or None)`: float32 `(B, …)` and ints `(B,)`.

    Args:
        data: array `(N, …)`, or a tuple `(inputs, labels)` of arrays; or a `tf.data.Dataset`, another iterable, or a
            function that returns one: of batches, or of tuples `(inputs, labels, …)`. A single example counts as a
            batch of one. Labels are class numbers or one-hot.
        shape: shape of one example.
        limit: int, the most examples; `None` for all.
        labelled: whether labels count; otherwise they may be anything, such as masks, and are left out.

    Raises:
        ValueError: for no examples, inputs of another shape, NaN or infinity, or labels that are not one each.
    """
    count = 0
    for inputs, labels in _elements(data() if callable(data) else data, labelled):
        if inputs.shape == tuple(shape):
            inputs, labels = inputs[None], None if labels is None else labels[None]
        if inputs.shape[1:] != tuple(shape):
            raise ValueError(f"Expected examples of shape (N, {_text(shape)}). Received: {inputs.shape}")
        if not len(inputs):
            continue
        keep = len(inputs) if limit is None else min(len(inputs), limit - count)
        inputs, labels = inputs[:keep].astype("float32"), _class_numbers(labels, len(inputs))
        if not np.all(np.isfinite(inputs)):
            raise ValueError("Expected examples of finite numbers. Received: NaN or infinity")
        for start in range(0, keep, _BATCH):
            part = slice(start, min(start + _BATCH, keep))
            yield inputs[part], None if labels is None else labels[part]
        count += keep
        if count == limit:
            break
    if not count:
        raise ValueError(f"Expected examples of shape (N, {_text(shape)}). Received: none")


def _elements(data: Any, labelled: bool) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """`(inputs, labels or None)` as arrays, element by element."""
    if isinstance(data, tuple) or hasattr(data, "__array__"):
        data = [data]
    for element in data:
        parts = element if isinstance(element, (tuple, list)) else (element,)
        labels = parts[1] if labelled and len(parts) > 1 else None
        # An empty tuple raises, as it should.
        yield np.asarray(parts[0]), None if labels is None else np.asarray(labels)  # pyright: ignore


def _class_numbers(labels, count):
    if labels is None:
        return None
    if labels.shape[:1] != (count,) or labels.ndim > 2:
        raise ValueError(
            f"Expected labels of shape ({count},), or one-hot ({count}, classes), for {count} examples. "
            f"Received: {labels.shape}"
        )
    labels = labels.reshape(count, -1)
    return labels[:, 0].astype(int) if labels.shape[1] == 1 else labels.argmax(axis=1)


def _text(shape):
    return ", ".join(map(str, shape))
