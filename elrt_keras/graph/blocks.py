"""Opening of custom layers that are made of other layers: their `call` becomes a graph of the inner layers."""

import inspect
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from elrt_keras.graph.copies import check_copyable, is_stock
from elrt_keras.graph.nodes import GraphCall, replayed
from elrt_keras.graph.paths import is_container
from elrt_keras.graph.separable import is_separable, open_sizes, separable_stages

# Errors that a custom `call` may raise on a tensor without values.
_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Opening(NamedTuple):
    """A layer as a functional model of its inner layers, or the reason why it stays closed.

    Both are empty if the layer is of another kind.
    """

    graph: keras.Model | None = None
    reason: str = ""


class _Closed(Exception):
    """The reason why a layer stays closed."""


def open_layer(layer: keras.layers.Layer, calls: Sequence[GraphCall]) -> Opening:
    """Opens a layer made of other layers: makes a functional model that shares these layers and their weights.

    A separable convolution becomes a depthwise and a pointwise convolution. For a custom layer, `call` runs on a
    symbolic input. The layer must take one tensor and compute with layers and `keras.ops`. It must compute the same
    each time, also in training. A layer stays closed if the graph would lose something: values of weights that `call`
    reads, penalties of its outputs, masks, further arguments, an inner layer that gets a fixed `training` argument, or
    an inner layer that cannot be copied by itself.

    Args:
        layer: a layer that `is_openable`.
        calls: the calls of the layer in the model.
    """
    try:
        shape, dtype = _input_signature(layer, calls)
        inputs = keras.Input(batch_shape=shape, dtype=dtype, name="input")
        if is_separable(layer):
            depthwise, pointwise = separable_stages(layer)
            return Opening(keras.Model(inputs, pointwise(depthwise(inputs)), name=layer.name))
        return Opening(_graph_of(layer, inputs))
    except _Closed as reason:
        return Opening(reason=str(reason))


def is_openable(layer: Any) -> bool:
    """Reports if a layer is of a kind that can be opened: a separable convolution, or a custom layer with layers."""
    return isinstance(layer, keras.layers.Layer) and layer.built and (is_separable(layer) or _is_custom(layer))


def _is_custom(layer):
    return not isinstance(layer, keras.Model) and not is_stock(layer) and _holds_layers(layer)


def _holds_layers(layer):
    return any(isinstance(value, keras.layers.Layer) for value in keras.tree.flatten(list(vars(layer).values())))


def _input_signature(layer, calls):
    """Shape and type of the one tensor that a layer takes; sizes that differ between calls are `None`."""
    if any(len(call.args) != 1 or not set(call.kwargs) <= {"training", "mask"} for call in calls):
        raise _Closed("it is called with more than one tensor")
    shape = (layer.get_build_config() or {}).get("input_shape")
    if not calls and is_separable(layer):  # another layer runs it, perhaps on several sizes
        shape = open_sizes(layer)
    tensors = [call.args[0] for call in calls]
    shapes = [shape, *(getattr(tensor, "shape", None) for tensor in tensors)]
    if not all(_is_shape(one) and len(one) == len(shapes[0]) for one in shapes):
        raise _Closed("it takes something else than one tensor")
    dtypes = {tensor.dtype for tensor in tensors} or {layer.compute_dtype}
    if layer.autocast and all("float" in dtype for dtype in dtypes):
        dtypes = {layer.compute_dtype}  # the layer casts its input to this type
    if len(dtypes) > 1:
        raise _Closed("it is called on tensors of several types")
    sizes = [set(one) for one in zip(*shapes)]
    return tuple(one.pop() if len(one) == 1 else None for one in sizes), *dtypes


def _is_shape(shape):
    return isinstance(shape, (tuple, list)) and all(size is None or isinstance(size, int) for size in shape)


def _graph_of(layer, inputs):
    accepts = inspect.signature(layer.call).parameters
    if layer.activity_regularizer is not None:
        raise _Closed("it penalises its outputs")
    if "mask" in accepts:
        raise _Closed("it takes masks")
    # Two traces without arguments: a difference between them is random.
    modes = [{}, {}, *([{"training": True}, {"training": False}] if "training" in accepts else [])]
    traces = [_traced(layer, inputs, mode) for mode in modes]
    (model, graph), steps = traces[0], [_steps(graph) for _, graph in traces]
    if any(call.kwargs.get("training") is not None for call in graph.calls):
        # A frozen batch-norm is called this way. A functional model would pass another value of `training`.
        raise _Closed("it tells a layer in it whether it trains")
    if steps[0] != steps[1]:
        raise _Closed("it computes something else each time")
    if any(other != steps[0] for other in steps):
        raise _Closed("it computes something else while training")
    if len(model.weights) != len(layer.weights):
        raise _Closed("it has weights of its own")
    for inner in model.layers:
        if not is_container(inner):
            _require_copyable(inner)
    return model


def _traced(layer, inputs, mode):
    """Traces a layer's `call` to `(model, graph)`. Raises `_Closed` if it needs values of tensors or weights."""
    try:
        with _Reads() as reads:
            outputs = layer.call(inputs, **mode)
        model = keras.Model(inputs, outputs, name=layer.name)
    except _ERRORS as error:
        raise _Closed(f"its `call` cannot run on a symbolic tensor ({type(error).__name__})") from error
    graph = replayed(model)
    used = [value for call in graph.calls for value in keras.tree.flatten((call.args, call.kwargs))]
    read = [*reads.variables, *(value for value in used if isinstance(value, keras.Variable))]
    if read:
        raise _Closed(f"it reads the value of '{read[0].path}'")
    return model, graph


class _Reads(keras.StatelessScope):
    """Records which variables are read, because a graph would hold their values as constants.

    Reads inside the layers that run are not recorded.
    """

    def __init__(self):
        super().__init__()
        self.variables = []

    def get_current_value(self, variable):
        self.variables.append(variable)
        return super().get_current_value(variable)


def _require_copyable(layer):
    try:
        check_copyable(layer)
    except ValueError as error:
        raise _Closed(f"'{layer.name}' in it, a {type(layer).__name__}, cannot be made again by itself") from error


def _steps(graph) -> list[Any]:
    """Lists the layers and operations of a graph, in order and with their arguments, as comparable values."""
    numbers = itertools.count()
    names = {id(tensor): next(numbers) for tensor in graph.inputs}
    steps = []
    for operation, args, kwargs, outputs in graph.calls:
        # The opened model passes `training` on by itself.
        options = sorted(item for item in kwargs.items() if item[0] != "training")
        called = keras.tree.flatten((args, options))
        steps.append((_identity(operation), [_comparable(value, names) for value in called]))
        names.update((id(tensor), next(numbers)) for tensor in keras.tree.flatten(outputs))
    return [*steps, [names.get(id(tensor)) for tensor in graph.outputs]]


def _identity(operation):
    """Comparable value of a layer (its id) or an operation, which is a new object each time (its type and options)."""
    if isinstance(operation, keras.layers.Layer):
        return id(operation)
    options = {name: value for name, value in vars(operation).items() if name[0] != "_" and name != "name"}
    return type(operation), repr(sorted(options.items()))


def _comparable(value, names):
    if isinstance(value, keras.KerasTensor):
        return "tensor", names.get(id(value))
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        array = np.asarray(keras.ops.convert_to_numpy(value))
        return "array", array.shape, array.tobytes()
    return value
