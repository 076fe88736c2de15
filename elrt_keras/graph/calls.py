"""Symbolic traces of a model: its layer calls in order, with their shapes."""

import contextlib
import contextvars
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np

from elrt_keras.graph.paths import own_weights
from elrt_keras.graph.private import held_layers

# Layers that run other layers once per step. Their costs have a rule of their own.
_REPEATING = (keras.layers.TimeDistributed, keras.layers.RNN)


# Shape of one example: of the single input, or `{name: shape}` of several inputs.
InputShape: TypeAlias = Sequence[int] | Mapping[str, Sequence[int]]


class Call(NamedTuple):
    """One call of a layer: the shapes of its first input and first output, with a batch axis of 1."""

    layer: keras.layers.Layer
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


def trace_calls(model: keras.layers.Layer, input_shape: InputShape | None = None) -> list[Call]:
    """Lists the calls of all layers that compute something themselves, for one example, in the order in which they end.

    A layer computes something itself if it calls no other layers, or if it has weights of its own. (A convolution may
    call a layer as its activation.) A `TimeDistributed` is replaced by the calls of its inner layer, for every step.
    Arguments are those of `count_costs`.

    Raises:
        ValueError: if the input shape is not known, or a layer cannot run on it; the message names the layer.
    """
    inputs = _input_specs(model, input_shape)
    recorder = _Recorder()
    with recorder.wrapping(model):
        try:
            _Run(model).compute_output_spec(inputs)
        except Exception as error:
            if not recorder.failed:
                raise
            raise ValueError(recorder.failed) from error
    batch = keras.tree.flatten(inputs)[0].shape[0]
    calls = [(layer, _of_one(batch, shape), _of_one(batch, output)) for layer, shape, output in recorder.calls]
    return [Call(*one) for call in calls for one in _with_steps(*call)]


class _Run(keras.Operation):
    """Operation that runs a model in inference mode. It has no shape rule, so Keras runs `call` symbolically."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, inputs):
        return self.model(inputs, training=False)


def _with_steps(layer, input_shape, output_shape):
    """Lists one call, or for a `TimeDistributed` the calls of all its steps."""
    if not isinstance(layer, keras.layers.TimeDistributed):
        return [(layer, input_shape, output_shape)]
    examples, steps, *shape = input_shape
    calls = [
        (inner, (first[0] * examples, *first[1:]), (last[0] * examples, *last[1:]))
        for inner, first, last in trace_calls(layer.layer, shape)
    ] * steps
    return [*calls, (layer, input_shape, output_shape)] if own_weights(layer) else calls


def has_own_rule(layer: keras.layers.Layer) -> bool:
    """Reports if a layer has a cost rule of its own. If so, the layers that it calls are not recorded."""
    return hasattr(layer, "compute_macs") or isinstance(layer, _REPEATING)


def _input_specs(model, input_shape):
    if isinstance(input_shape, Mapping):
        structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
        shapes = _shapes_by_id(model, input_shape)
        return keras.tree.map_structure(lambda tensor: _with_shape(model, tensor, shapes.get(id(tensor))), structure)
    if input_shape is not None:
        if not isinstance(input_shape, (Sequence, np.ndarray)) or None in tuple(input_shape):
            raise ValueError(f"Expected the shape of one example, all sizes known. Received: input_shape={input_shape}")
        inputs = getattr(model, "inputs", None)
        if inputs and len(inputs) > 1:
            shapes = {one.name: tuple(one.shape) for one in inputs}
            raise ValueError(
                f"Expected {{name: shape}} for a model with several inputs. Received: input_shape={input_shape}, "
                f"model={model.name!r} with inputs of shapes {shapes}"
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
            f"Expected `input_shape`, because the input size of '{model.name}' is not known. Received: input_shape=None"
        )
    # The `inputs` of a Sequential model are a list of its one input. Other models have their own structure of inputs.
    inputs = inputs[0] if isinstance(model, keras.Sequential) else inputs
    return keras.tree.map_structure(lambda tensor: _with_known_batch(model, tensor), inputs)


def _with_known_batch(model, tensor):
    shape = (tensor.shape[0] or 1, *tensor.shape[1:])  # one example, unless the model has a fixed batch size
    if None in shape:
        one = len(keras.tree.flatten(model.inputs)) == 1
        advice = "`input_shape` without `None`" if one else "`input_shape` as {name: shape}"
        raise ValueError(
            f"Expected {advice}, because '{model.name}' leaves its input size open. "
            f"Received: input of shape {tuple(tensor.shape)}"
        )
    return keras.KerasTensor(shape, dtype=tensor.dtype)


def _shapes_by_id(model, shapes):
    """Returns `{id of an input: shape}`.

    Names are those of the inputs. Names of exported files also count: they have `_` for all but letters and digits.
    """
    if len(model.inputs) == len(shapes) == 1:
        return {id(model.inputs[0]): next(iter(shapes.values()))}
    by_name = {re.sub(r"\W", "_", tensor.name): tensor for tensor in model.inputs}
    by_name |= {tensor.name: tensor for tensor in model.inputs}
    unknown = [name for name in shapes if name not in by_name]
    if unknown:
        names = [tensor.name for tensor in model.inputs]
        raise ValueError(f"Expected names of inputs among {names}. Received: input_shape={dict(shapes)}")
    return {id(by_name[name]): shape for name, shape in shapes.items()}


def filled_shape(name: str, own: Sequence[int | None], shape: Any) -> tuple[int, ...]:
    """Checks a given shape of one example of an input, and returns it.

    Raises:
        ValueError: if it is not made of ints that fit the input's own shape.
    """
    known = isinstance(shape, (Sequence, np.ndarray)) and all(isinstance(size, (int, np.integer)) for size in shape)
    if not known or len(shape) != len(own) or any(size not in (None, new) for size, new in zip(own, shape)):
        raise ValueError(f"Expected the shape of one example of {name!r}, {tuple(own)}. Received: input_shape={shape}")
    return tuple(map(int, shape))


def _with_shape(model, tensor, shape):
    if shape is None:
        return _with_known_batch(model, tensor)
    shape = filled_shape(tensor.name, tensor.shape[1:], shape)
    return keras.KerasTensor((tensor.shape[0] or 1, *shape), dtype=tensor.dtype)


def _of_one(batch, shape):
    """Shape for one example, if the first axis counts the examples of a batch."""
    return (shape[0] // batch, *shape[1:]) if shape and shape[0] % batch == 0 else shape


class _Recorder:
    """Records calls of layers that call no other layers, or have weights or a cost rule of their own.

    Keras has no hook around layer calls. So `call` of each layer of a model is wrapped while the model is traced.
    """

    def __init__(self):
        self.calls, self.failed = [], ""
        # Other threads that run the model in the meantime have no list here. Their calls are not recorded.
        self._frames: contextvars.ContextVar[list[Any] | None] = contextvars.ContextVar("frames", default=None)

    @contextlib.contextmanager
    def wrapping(self, model: keras.layers.Layer) -> Iterator[None]:
        """Wraps the model and all layers in it."""
        layers = [model, *held_layers(model)]
        token = self._frames.set([])
        for layer in layers:
            vars(layer)[_method(layer)] = _WrappedCall(self, layer)
        try:
            yield
        finally:
            for layer in layers:
                _unwrap(layer, self)
            self._frames.reset(token)

    def run(self, layer, call, args, kwargs):
        """Runs the call of a layer, recorded."""
        frames = self._frames.get()
        if frames is None or (frames and has_own_rule(frames[-1]["layer"])):
            return call(*args, **kwargs)
        if frames:
            frames[-1]["leaf"] = False
        frames.append({"layer": layer, "leaf": True})
        inputs = _first_shape(args[0] if args else next(iter(kwargs.values()), None))
        try:
            outputs = call(*args, **kwargs)
        except Exception as error:
            # The innermost layer fails first, and the message names it.
            self.failed = self.failed or (
                f"Expected a model that runs on its input shape. Received: layer {layer.name!r}, a "
                f"{type(layer).__name__}, on an input of shape {inputs}: {error}"
            )
            raise
        finally:
            is_leaf = frames.pop()["leaf"]
        if is_leaf or own_weights(layer):
            self.calls.append((layer, inputs, _first_shape(outputs)))
        return outputs


class _WrappedCall:
    """Wrapper that records the `call` of one layer.

    It keeps the attribute that it replaces, which may be the wrapper of another trace.
    """

    def __init__(self, recorder, layer):
        self.recorder, self.layer = recorder, layer
        name = _method(layer)
        self.call, self.before = getattr(layer, name), vars(layer).get(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.recorder.run(self.layer, self.call, args, kwargs)


def _unwrap(layer, recorder):
    """Removes the wrapper of one recorder, also from below the wrappers of others."""
    own, name = vars(layer), _method(layer)
    above, wrapped = None, own[name]
    while wrapped.recorder is not recorder:
        above, wrapped = wrapped, wrapped.call
    if above is not None:
        above.call, above.before = wrapped.call, wrapped.before
    elif wrapped.before is not None:
        own[name] = wrapped.before
    else:
        del own[name]


def _method(layer):
    """The name of the method that runs a layer."""
    return "call" if getattr(layer, "quantization_mode", None) is None else "quantized_call"


def _first_shape(structure):
    tensors = [t for t in keras.tree.flatten(structure) if hasattr(t, "shape")]
    return tuple(tensors[0].shape) if tensors else ()
