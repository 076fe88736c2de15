"""Costs of a Keras model: parameters, multiply-accumulates (MACs), bytes of activations.

A MAC is one multiplication with its addition; papers often call the same number FLOPs. The count includes convolutions
and products with weights, in the layers of Keras and of this package. As in the literature, batch-norm, pooling,
activations and additions count as zero. Products of an attention layer's inputs with each other also count as zero.
"""

import dataclasses
import math

import keras

from elrt_keras.graph.calls import InputShape, has_own_rule
from elrt_keras.graph.paths import check_keras_model, own_weights
from elrt_keras.graph.private import held_layers
from elrt_keras.graph.view import View
from elrt_keras.terminal.tables import render_table

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)


@dataclasses.dataclass(frozen=True)
class LayerCosts:
    """Costs of one layer for one example.

    Attributes:
        name, type: of the layer.
        params: number of its trained parameters.
        macs: multiply-accumulates of all its calls.
        activation_bytes: bytes of the outputs of all its calls.
        calls: number of calls. It is above 1 for a shared layer, and for a layer that a `TimeDistributed` runs at every
            step.
        input_shape, output_shape: shapes of the first call, with a batch size of 1.

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
    """Costs of a model for one example; `print()` shows a table.

    Attributes:
        params: number of trained parameters: all weights except the statistics of normalisation layers.
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


def count_costs(model: keras.Model, input_shape: InputShape | None = None) -> ModelCosts:
    """Counts parameters, MACs and activation bytes of a built Keras model, for one example.

    The model is traced once with symbolic tensors, without data. So nested models, shared layers and subclassed models
    are counted as they run.

    Args:
        model: a built `keras.Model` with one or more inputs.
        input_shape: shape of one example, without the batch axis; for several inputs a dict `{name: shape}`. It is
            needed if the model leaves spatial sizes open or is subclassed.

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
    check_keras_model(model)
    return costs_of(View(model, input_shape))


def costs_of(view: View) -> ModelCosts:
    """Counts the costs of the model of a view; see `count_costs`."""
    rows = {}
    counted = set()
    for layer, in_shape, out_shape in view.calls:
        weights = layer.weights if has_own_rule(layer) else own_weights(layer)
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


def _trained(layer, weights):
    """Lists the weights that training changes, in a layer and in layers that it holds. Statistics are left out."""
    statistics = {id(weight) for one in (layer, *held_layers(layer)) for weight in _statistics(one)}
    return [weight for weight in weights if id(weight) not in statistics]


def _statistics(layer):
    if isinstance(layer, keras.layers.BatchNormalization):
        return [weight for weight in layer.weights if weight.name not in ("gamma", "beta")]
    return layer.weights if isinstance(layer, keras.layers.Normalization) else []


def _macs(layer, input_shape, output_shape):
    """MACs of one call on its whole input. The batch axis is above 1 if the model merged another axis into it."""
    if isinstance(layer, keras.layers.Dense):
        return math.prod(output_shape[:-1]) * math.prod(layer.kernel.shape)
    if isinstance(layer, keras.layers.EinsumDense):
        return math.prod(input_shape) * math.prod(layer.kernel.shape) // _einsum_shared(layer, input_shape)
    return _macs_of_one(layer, input_shape, output_shape) * (input_shape[0] if input_shape else 1)


def _macs_of_one(layer, input_shape, output_shape):
    if hasattr(layer, "compute_macs"):
        return layer.compute_macs(input_shape)
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
    return 0


def _cell_macs(cell, output_shape):
    """MACs of one step of a stock cell: its products with the input and with the state. 0 for custom cells."""
    if not (hasattr(cell, "kernel") and hasattr(cell, "recurrent_kernel")):
        return 0
    dims = len(cell.kernel.shape) - 2  # of a convolutional cell's images
    last = getattr(cell, "data_format", None) != "channels_first"
    spatial = output_shape[-1 - dims : -1] if last else output_shape[len(output_shape) - dims :]
    return math.prod(spatial) * (math.prod(cell.kernel.shape) + math.prod(cell.recurrent_kernel.shape))


def _einsum_shared(layer, input_shape):
    """Product of the sizes that input and kernel share. The product of both sizes contains them twice."""
    inputs, rest = layer.equation.replace(" ", "").split(",")
    kernel = rest.split("->")[0]
    before, _, after = inputs.partition("...")
    sizes = dict(zip(before, input_shape)) | dict(zip(reversed(after), reversed(input_shape)))
    return math.prod(sizes[letter] for letter in before + after if letter in kernel)


def _activation_bytes(layer, input_shape, output_shape):
    if isinstance(layer, keras.layers.InputLayer):
        return 0
    own = hasattr(layer, "compute_activations")
    elements = input_shape[0] * layer.compute_activations(input_shape) if own else math.prod(output_shape)
    return elements * _bytes_per_element(layer.compute_dtype)


def _bytes_per_element(dtype):
    return max(1, int("".join(c for c in keras.backend.standardize_dtype(dtype or "float32") if c.isdigit()) or 8) // 8)


def _spatial(layer, shape):
    return shape[1:-1] if layer.data_format == "channels_last" else shape[2:]


def _shape(shape):
    return "×".join(str(size) for size in shape[1:])
