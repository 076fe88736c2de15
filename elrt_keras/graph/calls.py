"""Which layers of a model run, in which order and on which shapes, found without data."""

import contextlib
import threading
from collections.abc import Sequence

import keras
import numpy as np

from elrt_keras.graph.paths import own_weights

# Layers that run others once for each step, past their `__call__`, which records calls.
_REPEATING = (keras.layers.TimeDistributed, keras.layers.RNN)
_ONE_AT_A_TIME = threading.RLock()


def trace_calls(
    model: keras.Model, input_shape: Sequence[int] | None = None
) -> list[tuple[keras.layers.Layer, tuple[int, ...], tuple[int, ...]]]:
    """All calls of layers that compute something themselves, for one example: `(layer, input shape, output shape)`.

    They come in the order in which they end. Those are layers that call no others, or have weights beside those of the
    others: a convolution may have a layer as its activation. In the place of a `TimeDistributed` there are the calls of
    what it runs, for every step. The shapes hold a batch axis of 1. Arguments and errors are those of `count_costs`.
    """

    class Trace(keras.layers.Layer):
        def call(self, inputs):
            return model(inputs, training=False)

    inputs = _input_specs(model, input_shape)
    with _recorded_calls() as calls:
        # Keras derives the output of a layer without a shape rule by running its `call` symbolically.
        Trace(name="trace").compute_output_spec(inputs)
    batch = keras.tree.flatten(inputs)[0].shape[0]
    calls = [(layer, _of_one(batch, shape), _of_one(batch, output_shape)) for layer, shape, output_shape in calls]
    return [one for call in calls for one in _with_steps(*call)]


def _with_steps(layer, input_shape, output_shape):
    """A call, or of a `TimeDistributed` the calls of all its steps."""
    if not isinstance(layer, keras.layers.TimeDistributed):
        return [(layer, input_shape, output_shape)]
    examples, steps, *shape = input_shape
    calls = [
        (inner, (first[0] * examples, *first[1:]), (last[0] * examples, *last[1:]))
        for inner, first, last in trace_calls(layer.layer, shape)
    ] * steps
    return [*calls, (layer, input_shape, output_shape)] if own_weights(layer) else calls


def has_own_rule(layer: keras.layers.Layer) -> bool:
    """Whether what a layer runs is its own affair, and the layers that it calls are not recorded."""
    return hasattr(layer, "compute_macs") or isinstance(layer, _REPEATING)


def _input_specs(model, input_shape):
    if input_shape is not None:
        if not isinstance(input_shape, (Sequence, np.ndarray)) or None in tuple(input_shape):
            raise ValueError(f"Expected the shape of one example, all sizes known. Received: input_shape={input_shape}")
        inputs = getattr(model, "inputs", None)
        if inputs and len(inputs) > 1:
            shapes = [tuple(one.shape) for one in inputs]
            raise ValueError(
                f"`input_shape` is for one input. Received: input_shape={input_shape}, model={model.name!r} "
                f"with inputs of shapes {shapes}"
            )
        own = tuple(inputs[0].shape)[1:] if inputs else (None,) * len(input_shape)
        if len(own) != len(input_shape) or any(size not in (None, new) for size, new in zip(own, input_shape)):
            raise ValueError(
                f"Expected the shape of one example of '{model.name}', {own}. Received: input_shape={input_shape}"
            )
        batch, dtype = (inputs[0].shape[0], inputs[0].dtype) if inputs else (None, "float32")
        return keras.KerasTensor((batch or 1, *input_shape), dtype=dtype)
    inputs = getattr(model, "inputs" if isinstance(model, keras.Sequential) else "input", None)
    if inputs is None:
        raise ValueError(
            f"The input shape of '{model.name}' is not known; pass `input_shape`. Received: input_shape=None"
        )
    # A Sequential model lists its one input; other models have their own structure of inputs.
    inputs = inputs[0] if isinstance(model, keras.Sequential) else inputs
    return keras.tree.map_structure(lambda tensor: _with_known_batch(model, tensor), inputs)


def _with_known_batch(model, tensor):
    shape = (tensor.shape[0] or 1, *tensor.shape[1:])  # one example, unless the model was made for a number of them
    if None in shape:
        one = len(keras.tree.flatten(model.inputs)) == 1
        advice = "pass `input_shape` without `None`" if one else "which it cannot with several inputs"
        raise ValueError(
            f"'{model.name}' leaves its input size open; {advice}. Received: input of shape {tuple(tensor.shape)}"
        )
    return keras.KerasTensor(shape, dtype=tensor.dtype)


def _of_one(batch, shape):
    """The shape of one example's part, where the first axis is that of the examples of a batch."""
    return (shape[0] // batch, *shape[1:]) if shape and shape[0] % batch == 0 else shape


@contextlib.contextmanager
def _recorded_calls():
    """Records every call of a layer that calls no layer itself, has weights of its own or a cost rule of its own.

    Keras has no hook around layer calls; the public `Layer.__call__` is wrapped while the model is traced. What other
    threads call meanwhile, such as layers that augment data, passes through.
    """
    calls, callers = [], []
    thread = threading.get_ident()

    def recording(layer, *args, **kwargs):
        if threading.get_ident() != thread:
            return original(layer, *args, **kwargs)
        if callers and has_own_rule(callers[-1]["layer"]):
            return original(layer, *args, **kwargs)
        if callers:
            callers[-1]["leaf"] = False
        frame = {"layer": layer, "leaf": True}
        callers.append(frame)
        try:
            outputs = original(layer, *args, **kwargs)
        finally:
            callers.pop()
        if frame["leaf"] or own_weights(layer):
            inputs = args[0] if args else next(iter(kwargs.values()), None)
            calls.append((layer, _first_shape(inputs), _first_shape(outputs)))
        return outputs

    with _ONE_AT_A_TIME:
        original = keras.layers.Layer.__call__
        keras.layers.Layer.__call__ = recording
        try:
            yield calls
        finally:
            keras.layers.Layer.__call__ = original


def _first_shape(structure):
    tensors = [t for t in keras.tree.flatten(structure) if hasattr(t, "shape")]
    return tuple(tensors[0].shape) if tensors else ()
