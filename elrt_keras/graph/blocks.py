"""Looking into layers made of other layers: custom ones and separable convolutions, as functional models of these."""

import inspect
import itertools
import weakref
from typing import Any

import keras
import numpy as np

from elrt_keras.graph.separable import is_separable, open_sizes, separable_stages

_OPENED = weakref.WeakKeyDictionary()  # layer → (the input it was opened for, the model or `None`)


def opened(layer: keras.layers.Layer) -> keras.Model | None:
    """A layer made of other layers as a functional model of these, sharing them; `None` if it is no such layer.

    A separable convolution becomes a depthwise and a pointwise one, with its weights. Of a custom layer `call` is run
    on a symbolic input. That works where it takes one tensor and computes with layers and `keras.ops`, as the blocks of
    keras-hub's models do, the same each time and while training. Other layers stay closed, as do those that penalise
    their outputs, take masks, tell a layer in them whether it trains, or that the model calls with further arguments.
    """
    if not (is_separable(layer) or _is_custom(layer)) or not layer.built:
        return None
    signature = _input_signature(layer)
    if signature is None:
        return None
    if is_separable(layer):
        signature += tuple(separable_stages(layer))
    if layer not in _OPENED or _OPENED[layer][0] != signature:
        _OPENED[layer] = signature, _opened(layer, *signature[:2])
    return _OPENED[layer][1]


def _is_custom(layer):
    is_stock = isinstance(layer, keras.Model) or type(layer).__module__.split(".")[0] == "keras"
    return not is_stock and _holds_layers(layer)


def symbolic_calls(layer: keras.layers.Layer) -> list[Any]:
    """The calls of a layer on symbolic tensors: objects with `args` and `kwargs`. Keras lists them privately only."""
    return [node.arguments for node in layer._inbound_nodes]


def _holds_layers(layer):
    return any(isinstance(value, keras.layers.Layer) for value in keras.tree.flatten(list(vars(layer).values())))


def _input_signature(layer):
    """Shape and type of the one tensor that a layer takes; `None` in the place of sizes that differ between calls."""
    calls = symbolic_calls(layer)
    if any(len(call.args) != 1 or not set(call.kwargs) <= {"training", "mask"} for call in calls):
        return None
    shape = (layer.get_build_config() or {}).get("input_shape")
    if not calls and is_separable(layer):  # run by another layer, on sizes that may differ
        shape = open_sizes(layer)
    tensors = [call.args[0] for call in calls]
    shapes = [shape, *(getattr(tensor, "shape", None) for tensor in tensors)]
    if not all(_is_shape(one) and len(one) == len(shapes[0]) for one in shapes):
        return None
    dtypes = {tensor.dtype for tensor in tensors} or {layer.compute_dtype}
    if layer.autocast and all("float" in dtype for dtype in dtypes):
        dtypes = {layer.compute_dtype}  # what it makes of its input
    sizes = [set(one) for one in zip(*shapes)]
    merged = tuple(one.pop() if len(one) == 1 else None for one in sizes)
    return (merged, *dtypes) if len(dtypes) == 1 else None


def _is_shape(shape):
    return isinstance(shape, (tuple, list)) and all(size is None or isinstance(size, int) for size in shape)


def _opened(layer, shape, dtype):
    inputs = keras.Input(batch_shape=shape, dtype=dtype, name="input")
    if is_separable(layer):
        depthwise, pointwise = separable_stages(layer)
        return keras.Model(inputs, pointwise(depthwise(inputs)), name=layer.name)
    accepts = inspect.signature(layer.call).parameters
    if layer.activity_regularizer is not None or "mask" in accepts:
        return None
    # Twice as it is: what differs then is random.
    modes = [{}, {}, *([{"training": True}, {"training": False}] if "training" in accepts else [])]
    try:
        model, *others = [keras.Model(inputs, layer.call(inputs, **mode), name=layer.name) for mode in modes]
        steps = _steps(model)
        if _fixes_training(model) or any(_steps(other) != steps for other in others):
            return None
    except Exception:  # whatever a foreign `call` does with a tensor that has no values
        return None
    # What the graph lacks (weights of the layer itself) would be lost.
    return model if len(model.weights) == len(layer.weights) else None


def _fixes_training(model):
    """Whether some layer is told how to run, as a frozen batch-norm is; a functional model would tell it otherwise."""
    told = []

    def record(operation, *args, **kwargs):
        told.append(kwargs.get("training"))
        return operation(*args, **kwargs)

    keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=record)
    return any(value is not None for value in told)


def _steps(model) -> list[Any]:
    """What a model computes, comparable: its layers and operations in order, and what each of them is called with."""
    steps, names, numbers = [], {}, itertools.count()  # the input is the one tensor without a number

    def record(operation, *args, **kwargs):
        outputs = operation(*args, **kwargs)
        # The opened model passes `training` on itself.
        options = sorted(item for item in kwargs.items() if item[0] != "training")
        called = keras.tree.flatten((args, options))
        steps.append((_identity(operation), [_comparable(value, names) for value in called]))
        names.update((id(tensor), next(numbers)) for tensor in keras.tree.flatten(outputs))
        return outputs

    # `clone_model` walks the graph in order; the clone itself is of no use here, but its tensors have to live.
    clone = keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=record)
    return [*steps, [names.get(id(tensor)) for tensor in clone.outputs]]


def _identity(operation):
    """A layer is itself; an operation is made anew each time, with its options as attributes."""
    if isinstance(operation, keras.layers.Layer):
        return id(operation)
    options = {name: value for name, value in vars(operation).items() if name[0] != "_" and name != "name"}
    return type(operation), repr(sorted(options.items()))


def _comparable(value, names):
    if isinstance(value, keras.KerasTensor):
        return "tensor", names.get(id(value))
    if isinstance(value, keras.Variable):
        return "variable", id(value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        array = np.asarray(keras.ops.convert_to_numpy(value))
        return "array", array.shape, array.tobytes()
    return value
