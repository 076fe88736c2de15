"""Examples for calibration and checks, from whatever a training pipeline gives."""

import itertools
import math
import numbers
from collections.abc import Iterator
from typing import Any

import numpy as np

from elrt_keras.formats.chain import Shape

_BATCH = 64


def take_inputs(data: Any, shape: Shape, limit: int, dtype: str = "float32") -> np.ndarray:
    """The first inputs as an array `(N, …)`, at most `limit`; arguments and errors are those of `batches`."""
    _refuse_examples_in_a_tuple(data, shape)
    return np.concatenate([inputs for inputs, _ in batches(data, shape, limit, dtype=dtype)])


def check_range(input_range: Any) -> None:
    """Refuses a range of inputs that is none.

    Raises:
        ValueError: for anything but two finite numbers, the lower one first.
    """
    ends = list(input_range) if isinstance(input_range, (tuple, list, np.ndarray)) else []
    finite = all(isinstance(end, numbers.Real) and math.isfinite(end) for end in ends)
    if len(ends) != 2 or not finite or not ends[0] < ends[1]:
        raise ValueError(f"Expected input_range as (lowest, highest). Received: input_range={input_range!r}")


def _refuse_examples_in_a_tuple(data, shape):
    """Refuses a tuple of single examples, of which all but the first would count as labels.

    Raises:
        ValueError: with what to give instead.
    """
    if isinstance(data, tuple) and len(data) > 1 and all(np.shape(part) == tuple(shape) for part in data):
        raise ValueError(
            f"Expected examples as an array (N, {_text(shape)}) or a list; a tuple is (inputs, labels). "
            f"Received: a tuple of {len(data)} examples"
        )


def check_batches(
    evaluation_data: Any,
    shape: Shape,
    outputs: Shape,
    input_range: tuple[float, float],
    limit: int | None = None,
    dtype: str = "float32",
    count: int = 16,
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Batches of `(inputs, class numbers or None)` for a check: the evaluation data, or `count` random inputs.

    `outputs` is the shape of one output, which the labels have to fit; the other arguments are those of `batches`.

    Raises:
        ValueError: at once for a limit below 1 and a first batch that is refused; otherwise as `batches`.
    """
    if limit is not None and (not isinstance(limit, numbers.Integral) or limit < 1):
        raise ValueError(f"Expected an int of at least one example. Received: max_examples={limit!r}")
    if evaluation_data is None:
        random = np.random.default_rng(0)
        evaluation_data = random.uniform(*input_range, (count, *shape))
        evaluation_data = evaluation_data if dtype == "float32" else np.floor(evaluation_data)
    _refuse_examples_in_a_tuple(evaluation_data, shape)
    examples = batches(evaluation_data, shape, limit, outputs, dtype)
    return itertools.chain([next(examples)], examples)  # bad ones are refused before the long work of an export


def batches(
    data: Any, shape: Shape, limit: int | None = None, outputs: Shape | None = None, dtype: str = "float32"
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Batches of `(inputs, class numbers or None)`: `(B, …)` of type `dtype` and ints `(B,)`.

    Args:
        data: array `(N, …)`, or a tuple `(inputs, labels)` of arrays; or a `tf.data.Dataset`, another iterable, or a
            function that returns one: of batches, or of tuples `(inputs, labels, …)`. A single example counts as a
            batch of one. Labels are class numbers, or rows of probabilities such as one-hot ones; of a model with one
            output they are 0 or 1.
        shape: shape of one example.
        limit: int, the most examples; `None` for all.
        outputs: shape of one output, for labels that count; otherwise they may be anything, such as masks.
        dtype: type of the inputs, float32 or one of whole numbers.

    Raises:
        ValueError: for no examples, inputs of another shape, NaN or infinity, or labels that are no classes.
    """
    count = 0
    for inputs, labels in _elements(data() if callable(data) else data, outputs is not None):
        if inputs.shape == tuple(shape):
            inputs, labels = inputs[None], None if labels is None else labels[None]
        if inputs.shape[1:] != tuple(shape):
            raise ValueError(f"Expected examples of shape (N, {_text(shape)}). Received: {inputs.shape}")
        if not len(inputs):
            continue
        keep = len(inputs) if limit is None else min(len(inputs), limit - count)
        inputs, labels = _typed(inputs[:keep], dtype), _class_numbers(labels, len(inputs), outputs)
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


def _typed(inputs, dtype):
    """Inputs as an array of a type; refuses NaN, infinity and numbers that the type does not have."""
    if inputs.dtype.kind not in "biuf":  # half floats of TensorFlow are of no kind that NumPy knows
        inputs = inputs.astype("float32")
    if not np.all(np.isfinite(inputs)):
        raise ValueError("Expected examples of finite numbers. Received: NaN or infinity")
    with np.errstate(invalid="ignore"):
        typed = inputs.astype(dtype)
    if dtype != "float32" and not np.array_equal(typed, inputs):
        other = inputs[typed != inputs].flat[0]
        raise ValueError(f"Expected examples of the model's input type, {dtype}. Received: {other:g} among them")
    return typed


def _class_numbers(labels, count, outputs):
    """Labels as class numbers `(N,)`; refuses targets of another kind, by which nothing could be judged."""
    if labels is None:
        return None
    classes = outputs[0] if len(outputs) == 1 else None
    if classes is None:
        raise _no_labels("a model with one vector of scores, to be judged by labels", f"outputs of shape {outputs}")
    if labels.shape not in ((count,), (count, 1), (count, classes)):
        one_hot = f", or one-hot ({count}, {classes})" if classes > 1 else ""
        raise _no_labels(f"labels of shape ({count},){one_hot}, for {count} examples", labels.shape)
    if labels.dtype.kind not in "biuf":
        raise _no_labels("class numbers as labels", f"{labels.dtype}, such as {labels[0]!r}")
    labels = labels.astype("float64")
    if labels.ndim == 2 and labels.shape[1] > 1:
        if not (labels.min() >= 0 and np.allclose(labels.sum(axis=1), 1, atol=1e-3)):
            raise _no_labels("rows of labels that are one-hot, or probabilities with the sum 1", labels[0])
        return labels.argmax(axis=1)
    labels, highest = labels.reshape(count), max(classes, 2) - 1
    if not (0 <= labels.min() and labels.max() <= highest):
        raise _no_labels(f"labels from 0 to {highest}", f"labels from {labels.min():g} to {labels.max():g}")
    if not np.array_equal(labels, np.rint(labels)):
        raise _no_labels("class numbers as labels", labels[:4])
    return labels.astype(int)


def _no_labels(expected, received):
    received = getattr(received, "shape", received) if np.size(received) > 8 else received
    return ValueError(f"Expected {expected}; without labels, outputs alone are compared. Received: {received}")


def _text(shape):
    return ", ".join(map(str, shape))
