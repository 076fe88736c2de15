"""What a Keras model costs: parameters, multiply-accumulates (MACs), bytes of activations.

A MAC is one multiplication with its addition; papers often call the same number FLOPs. Counted are convolutions and
products with weights of the built-in layers and of this package's; batch-norm, pooling, activations and additions count
as zero, as the literature does, and so do an attention layer's products of its inputs with one another.
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence

import keras

from elrt_keras.tables import render_table
from elrt_keras.traversal import own_weights

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
# Layers that run others once for each position or step, which one symbolic call does not show.
_REPEATING = (keras.layers.TimeDistributed, keras.layers.RNN)


@dataclasses.dataclass(frozen=True)
class LayerCosts:
    """One layer's costs for one example.

    Attributes:
        name, type: of the layer.
        params: number of its trained parameters.
        macs: multiply-accumulates of all its calls.
        activation_bytes: bytes of the outputs of all its calls.
        calls: how often it runs: more than once for a shared layer.
        input_shape, output_shape: those of the first call, with a batch size of 1.

    Example:

    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv", use_bias=False)])
    >>> row = elrt_keras.count_costs(model).layers[-1]
    >>> row.name, row.macs, row.output_shape
    ('conv', 3888, (1, 6, 6, 4))
    """

    name: str
    type: str
    params: int
    macs: int
    activation_bytes: int
    calls: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ModelCosts:
    """A model's costs for one example; `print()` gives a table.

    Attributes:
        params: number of trained parameters: all weights but the statistics of normalisation layers.
        macs: multiply-accumulates.
        activation_bytes: bytes of the outputs of all layers, chain stages included.
        layers: list of `LayerCosts`, in the order of execution.

    Example:

    >>> costs = elrt_keras.count_costs(keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, use_bias=False)]))
    >>> costs.params, costs.macs, costs.activation_bytes
    (32, 32, 16)
    """

    params: int
    macs: int
    activation_bytes: int
    layers: list[LayerCosts]

    def __str__(self) -> str:
        rows = [
            (row.name, row.type, _shape(row.output_shape), f"{row.params:,}", f"{row.macs:,}")
            for row in self.layers
            if row.params or row.macs
        ]
        total = ("total", "", f"activations {self.activation_bytes:,} B", f"{self.params:,}", f"{self.macs:,}")
        return render_table(["layer", "type", "output", "params", "MACs"], [*rows, total], last_is_total=True)


def count_costs(model: keras.Model, input_shape: Sequence[int] | None = None) -> ModelCosts:
    """Counts parameters, MACs and activation bytes of a built Keras model, for one example.

    The model is traced symbolically once, so nested models, shared layers and subclassed models are counted as they
    run; no data flows.

    Args:
        model: a built `keras.Model` with one or more inputs.
        input_shape: shape of one example, without the batch axis. Needed where the model leaves spatial sizes open or
            is subclassed.

    Returns:
        A `ModelCosts`.

    Raises:
        ValueError: if the input shape is not known, or `model` is no Keras model.

    Example:

    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, padding="same", use_bias=False)])
    >>> costs = elrt_keras.count_costs(model)
    >>> costs.params, costs.macs
    (108, 6912)
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"Expected a Keras model. Received: model={model!r}")
    calls = trace_calls(model, input_shape)
    rows = {}
    counted = set()
    for layer, in_shape, out_shape in calls:
        weights = layer.weights if _has_own_rule(layer) else own_weights(layer)
        params = sum(math.prod(w.shape) for w in _trained(layer, weights) if id(w) not in counted)
        counted.update(id(w) for w in weights)
        macs, activations = _macs(layer, in_shape, out_shape), _activation_bytes(layer, in_shape, out_shape)
        row = rows.get(id(layer))
        rows[id(layer)] = (
            LayerCosts(layer.name, type(layer).__name__, params, macs, activations, 1, in_shape, out_shape)
            if row is None
            else dataclasses.replace(
                row, macs=row.macs + macs, activation_bytes=row.activation_bytes + activations, calls=row.calls + 1
            )
        )
    layers = list(rows.values())
    return ModelCosts(
        params=sum(row.params for row in layers),
        macs=sum(row.macs for row in layers),
        activation_bytes=sum(row.activation_bytes for row in layers),
        layers=layers,
    )


def _input_specs(model, input_shape):
    if input_shape is not None:
        if None in tuple(input_shape):
            raise ValueError(f"Expected the shape of one example, all sizes known. Received: input_shape={input_shape}")
        inputs = getattr(model, "inputs", None)
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
        raise ValueError(
            f"'{model.name}' leaves its input size open; pass `input_shape` without `None`. "
            f"Received: input of shape {tuple(tensor.shape)}"
        )
    return keras.KerasTensor(shape, dtype=tensor.dtype)


def trace_calls(
    model: keras.Model, input_shape: Sequence[int] | None = None
) -> list[tuple[keras.layers.Layer, tuple[int, ...], tuple[int, ...]]]:
    """All calls of layers that compute something themselves, for one example: `(layer, input shape, output shape)`.

    They come in the order in which they end. Those are layers that call no others, or have weights beside those of the
    others: a convolution may have a layer as its activation. The shapes hold a batch axis of 1. Arguments and errors
    are those of `count_costs`.
    """

    class Trace(keras.layers.Layer):
        def call(self, inputs):
            return model(inputs, training=False)

    inputs = _input_specs(model, input_shape)
    with _recorded_calls() as calls:
        # Keras derives the output of a layer without a shape rule by running its `call` symbolically.
        Trace(name="trace").compute_output_spec(inputs)
    batch = keras.tree.flatten(inputs)[0].shape[0]
    return [(layer, _of_one(batch, shape), _of_one(batch, output_shape)) for layer, shape, output_shape in calls]


def _of_one(batch, shape):
    """The shape of one example's part, where the first axis is that of the examples of a batch."""
    return (shape[0] // batch, *shape[1:]) if shape and shape[0] % batch == 0 else shape


@contextlib.contextmanager
def _recorded_calls():
    """Records every call of a layer that calls no layer itself, has weights of its own or a cost rule of its own.

    Keras has no hook around layer calls; the public `Layer.__call__` is wrapped while the model is traced.
    """
    original = keras.layers.Layer.__call__
    calls, callers = [], []

    def recording(layer, *args, **kwargs):
        if callers and _has_own_rule(callers[-1]["layer"]):
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

    keras.layers.Layer.__call__ = recording
    try:
        yield calls
    finally:
        keras.layers.Layer.__call__ = original


def _has_own_rule(layer):
    return hasattr(layer, "compute_macs") or isinstance(layer, _REPEATING)


def _first_shape(structure):
    tensors = [t for t in keras.tree.flatten(structure) if hasattr(t, "shape")]
    return tuple(tensors[0].shape) if tensors else ()


def _trained(layer, weights):
    """Those of the weights of a layer that training changes: no statistics."""
    if isinstance(layer, keras.layers.Normalization):
        return []
    if isinstance(layer, keras.layers.BatchNormalization):
        return [w for w in weights if w.name not in ("moving_mean", "moving_variance")]
    return weights


def _macs(layer, input_shape, output_shape):
    if hasattr(layer, "compute_macs"):
        return layer.compute_macs(input_shape)
    if isinstance(layer, keras.layers.TimeDistributed):
        one = input_shape[2:]
        return input_shape[1] * sum(_macs(*call) for call in trace_calls(layer.layer, one))
    if isinstance(layer, keras.layers.RNN):
        cells = getattr(layer.cell, "cells", [layer.cell])
        return input_shape[1] * sum(_cell_macs(cell, output_shape) for cell in cells)
    if isinstance(layer, _CONVOLUTIONS):
        return math.prod(_spatial(layer, output_shape)) * math.prod(layer.kernel.shape)
    if isinstance(layer, _TRANSPOSED):
        return math.prod(_spatial(layer, input_shape)) * math.prod(layer.kernel.shape)
    if isinstance(layer, _DEPTHWISE):
        return math.prod(_spatial(layer, output_shape)) * math.prod(layer.kernel.shape)
    if isinstance(layer, _SEPARABLE):
        weights = math.prod(layer.depthwise_kernel.shape) + math.prod(layer.pointwise_kernel.shape)
        return math.prod(_spatial(layer, output_shape)) * weights
    if isinstance(layer, keras.layers.Dense):
        return math.prod(output_shape[:-1]) * math.prod(layer.kernel.shape)
    if isinstance(layer, keras.layers.EinsumDense):
        return math.prod(input_shape) * math.prod(layer.kernel.shape) // _einsum_shared(layer, input_shape)
    return 0


def _cell_macs(cell, output_shape):
    """One step of a stock cell: the products with its input and with its state; 0 for another kind of cell."""
    if not (hasattr(cell, "kernel") and hasattr(cell, "recurrent_kernel")):
        return 0
    dims = len(cell.kernel.shape) - 2  # of a convolutional cell's images
    last = getattr(cell, "data_format", None) != "channels_first"
    spatial = output_shape[-1 - dims : -1] if last else output_shape[len(output_shape) - dims :]
    return math.prod(spatial) * (math.prod(cell.kernel.shape) + math.prod(cell.recurrent_kernel.shape))


def _einsum_shared(layer, input_shape):
    """Product of the input axes that the kernel shares, which a product of both sizes would count twice."""
    inputs, rest = layer.equation.replace(" ", "").split(",")
    kernel = rest.split("->")[0]
    before, _, after = inputs.partition("...")
    sizes = dict(zip(before, input_shape)) | dict(zip(reversed(after), reversed(input_shape)))
    return math.prod(sizes[letter] for letter in before + after if letter in kernel)


def _activation_bytes(layer, input_shape, output_shape):
    if isinstance(layer, keras.layers.InputLayer):
        return 0
    own = hasattr(layer, "compute_activations")
    elements = layer.compute_activations(input_shape) if own else math.prod(output_shape)
    return elements * _bytes_per_element(layer.compute_dtype)


def _bytes_per_element(dtype):
    return max(1, int("".join(c for c in keras.backend.standardize_dtype(dtype or "float32") if c.isdigit()) or 8) // 8)


def _spatial(layer, shape):
    return shape[1:-1] if layer.data_format == "channels_last" else shape[2:]


def _shape(shape):
    return "×".join(str(size) for size in shape[1:])
