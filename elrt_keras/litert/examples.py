"""Examples for calibration and checks, taken from the data of a training pipeline."""

import itertools
import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import keras
import numpy as np

from elrt_keras.checks import int_in
from elrt_keras.litert.convert import Examples
from elrt_keras.litert.interface import INPUT, Interface

_BATCH = 64
Labels: TypeAlias = np.ndarray | None


def take_inputs(data: Any, ends: Interface, limit: int) -> Examples:
    """Returns the first inputs, at most `limit`, as an array `(N, …)` or `{name: (N, …)}`. Data as in `batches`."""
    _refuse_examples_in_a_tuple(data, ends)
    parts = [inputs if isinstance(inputs, Mapping) else {INPUT: inputs} for inputs, _ in batches(data, ends, limit)]
    taken = {name: np.concatenate([part[name] for part in parts]) for name in ends.inputs}
    return taken if len(taken) > 1 else taken[INPUT]


def check_range(input_range: Any) -> None:
    """Checks a range of inputs.

    Raises:
        ValueError: if it is not two finite numbers, the lower one first.
    """
    ends = list(input_range) if isinstance(input_range, (tuple, list, np.ndarray)) else []
    finite = all(isinstance(end, numbers.Real) and math.isfinite(end) for end in ends)
    if len(ends) != 2 or not finite or not ends[0] < ends[1]:
        raise ValueError(f"Expected input_range as (lowest, highest). Received: input_range={input_range!r}")


def _refuse_examples_in_a_tuple(data, ends):
    """Refuses a tuple of single examples, because all but the first would count as labels.

    Raises:
        ValueError: for such a tuple; the message says how to pass the examples.
    """
    shapes = list(ends.inputs.values())
    if isinstance(data, tuple) and len(data) > 1 and all([np.shape(part)] == shapes for part in data):
        raise ValueError(
            f"Expected examples as an array (N, {_text(shapes[0])}) or a list; a tuple is (inputs, labels). "
            f"Received: a tuple of {len(data)} examples"
        )


def check_batches(
    evaluation_data: Any,
    ends: Interface,
    input_range: tuple[float, float],
    limit: int | None = None,
    count: int = 16,
) -> Iterator[tuple[Examples, Labels]]:
    """Returns batches of `(inputs, class numbers or None)` for a check: evaluation data, or `count` random inputs.

    The other arguments are those of `batches`.

    Raises:
        ValueError: immediately for a limit below 1 or an invalid first batch; later as in `batches`.
    """
    if limit is not None:
        int_in(limit, "[1, inf)", "max_examples")
    if evaluation_data is None:
        evaluation_data = _random_inputs(ends, input_range, count)
    _refuse_examples_in_a_tuple(evaluation_data, ends)
    examples = batches(evaluation_data, ends, limit, labelled=True)
    return itertools.chain([next(examples)], examples)  # checks the first batch before the long work of an export


def _random_inputs(ends, input_range, count):
    random = np.random.default_rng(0)
    low, high = input_range
    inputs = {name: random.uniform(low, high, (count, *shape)) for name, shape in ends.inputs.items()}
    inputs = {name: x if ends.dtypes[name] == "float32" else np.floor(x) for name, x in inputs.items()}
    return inputs if len(inputs) > 1 else inputs[INPUT]


def batches(
    data: Any, ends: Interface, limit: int | None = None, labelled: bool = False, batch_size: int = _BATCH
) -> Iterator[tuple[Examples, Labels]]:
    """Yields batches of `(inputs, class numbers or None)`: arrays `(B, …)` of the model's input types, and ints `(B,)`.

    Args:
        data: array `(N, …)`, or a tuple `(inputs, labels)` of arrays. Or a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, another iterable, or a function that returns one; its elements are batches or
            tuples `(inputs, labels, …)`. A single example counts as a batch of one. For a model with several inputs,
            inputs are dicts `{name: array}`. Labels are class numbers, or rows of probabilities such as one-hot rows.
            For a model with one score they are 0 or 1.
        ends: the inputs and outputs of the model.
        limit: int, maximum number of examples; `None` for all.
        labelled: whether labels are used. If not, they may be of any kind, such as masks.
        batch_size: maximum number of examples of a batch. Larger batches of the data are split.

    Raises:
        ValueError: for endless data without a limit, data without examples, inputs of other names or shapes, NaN or
            infinity, or labels that are no classes.
    """
    count = 0
    data = data() if callable(data) else data
    if limit is None and _is_endless(data):
        raise ValueError(f"Expected data that ends, such as dataset.take(20). Received: {data!r}")
    for inputs, labels in _elements(data, labelled):
        inputs = _by_name(inputs, ends)
        if all(x.shape == ends.inputs[name] for name, x in inputs.items()):
            inputs = {name: x[None] for name, x in inputs.items()}
            labels = None if labels is None else labels[None]
        size = _batch_size(inputs, ends)
        if not size:
            continue
        keep = size if limit is None else min(size, limit - count)
        inputs = {name: _typed(x[:keep], ends.dtypes[name]) for name, x in inputs.items()}
        labels = _class_numbers(labels, size, ends)
        for start in range(0, keep, batch_size):
            part = slice(start, min(start + batch_size, keep))
            taken = {name: x[part] for name, x in inputs.items()}
            yield taken if len(taken) > 1 else taken[INPUT], None if labels is None else labels[part]
        count += keep
        if count == limit:
            break
    if not count:
        raise ValueError(f"Expected examples of shape {_shapes(ends)}. Received: none")


def _is_endless(data: Any) -> bool:
    """Reports if a dataset declares itself endless."""
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches is None
    # `tf.data.INFINITE_CARDINALITY` is -1. Other iterables do not declare it.
    return hasattr(data, "cardinality") and int(data.cardinality()) == -1


def _elements(data: Any, labelled: bool) -> Iterator[tuple[Any, Labels]]:
    """Yields `(inputs, labels or None)` of each element."""
    if isinstance(data, (tuple, Mapping)) or hasattr(data, "__array__"):
        data = [data]
    elif isinstance(data, keras.utils.PyDataset):
        data = map(data.__getitem__, range(data.num_batches))
    for element in data:
        parts = list(element) if isinstance(element, (tuple, list)) else [element]
        labels = parts[1] if labelled and len(parts) > 1 else None
        yield parts[0], None if labels is None else np.asarray(labels)


def _by_name(inputs, ends):
    """Inputs as `{name: array}`."""
    names = list(ends.inputs)
    if names == [INPUT] and not isinstance(inputs, Mapping):
        return {INPUT: np.asarray(inputs)}
    if names == [INPUT]:
        raise ValueError(f"Expected batches as arrays, or (inputs, labels). Received: a dict of {list(inputs)}")
    if not isinstance(inputs, Mapping) or set(inputs) != set(names):
        received = f"a dict of {list(inputs)}" if isinstance(inputs, Mapping) else f"a {type(inputs).__name__}"
        raise ValueError(f"Expected inputs as {{name: array}} of {names}. Received: {received}")
    return {name: np.asarray(inputs[name]) for name in names}


def _batch_size(inputs, ends):
    shapes = {name: x.shape for name, x in inputs.items()}
    sizes = {shape[0] for shape in shapes.values() if shape}
    if len(sizes) != 1 or any(shape[1:] != ends.inputs[name] for name, shape in shapes.items()):
        received = shapes if len(shapes) > 1 else shapes[INPUT]
        raise ValueError(f"Expected examples of shape {_shapes(ends)}. Received: {received}")
    return sizes.pop()


def _shapes(ends):
    shapes = {name: f"(N, {_text(shape)})" for name, shape in ends.inputs.items()}
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items()) if len(shapes) > 1 else shapes[INPUT]


def _typed(inputs, dtype):
    """Casts inputs to a type. Refuses NaN, infinity and numbers that the type cannot represent."""
    if inputs.dtype.kind not in "biuf":  # NumPy does not know TensorFlow's bfloat16
        inputs = inputs.astype("float32")
    if not np.all(np.isfinite(inputs)):
        raise ValueError("Expected examples of finite numbers. Received: NaN or infinity")
    with np.errstate(invalid="ignore"):
        typed = inputs.astype(dtype)
    if dtype != "float32" and not np.array_equal(typed, inputs):
        other = inputs[typed != inputs].flat[0]
        raise ValueError(f"Expected examples of the model's input type, {dtype}. Received: {other:g} among them")
    return typed


def _class_numbers(labels, count, ends):
    """Converts labels to class numbers `(N,)`. Refuses other targets, from which no accuracy can be computed."""
    if labels is None:
        return None
    outputs = list(ends.outputs.values())
    if len(outputs) > 1 or len(outputs[0]) != 1:
        shapes = outputs if len(outputs) > 1 else outputs[0]
        raise _no_labels("a model with one vector of scores, to use labels", f"outputs of shape {shapes}")
    classes = outputs[0][0]
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
    return ValueError(f"Expected {expected}; without labels, only outputs are compared. Received: {received}")


def _text(shape):
    return ", ".join(map(str, shape))
