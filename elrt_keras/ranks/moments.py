"""Second moments of the inputs of a model's layers, computed from examples."""

import math
from collections.abc import Iterable
from typing import Any

import keras

from elrt_keras.formats.weighting import InputWeighting
from elrt_keras.graph.view import View
from elrt_keras.graph.watching import replaced_calls
from elrt_keras.litert.examples import batches
from elrt_keras.litert.interface import interface, outputs_of
from elrt_keras.terminal.progress import progress_bar


def input_weightings(view: View, layers: Iterable[keras.layers.Layer], data: Any) -> dict[int, InputWeighting]:
    """Runs examples through a model. Returns `{id of a layer: weighting of its kernel by its inputs}`.

    Layers that the model does not call itself, such as the stages of a separable convolution, have no weighting.

    Args:
        view: view of the model.
        layers: its convolutions and dense layers, low-rank or not.
        data: examples, in the forms that `litert.examples.batches` takes.

    Raises:
        ValueError: for no examples, examples that do not fit, or NaN or infinity in them.
    """
    totals: dict[int, tuple[Any, int]] = {}

    def noting(layer, call):
        def noted(inputs, *args, **kwargs):
            moments, count = _moments(layer, inputs)
            known, before = totals.get(id(layer), (0.0, 0))
            totals[id(layer)] = known + moments, before + count
            return call(inputs, *args, **kwargs)

        return noted

    examples = batches(data, interface(view.model, view.input_shape))
    with replaced_calls(layers, noting):
        for inputs, _ in progress_bar(examples, "moments of the layers' inputs"):
            outputs_of(view.model, inputs)
    return {key: InputWeighting(moments / count) for key, (moments, count) in totals.items()}


def _moments(layer, inputs):
    """Returns `(sums of x·xᵀ, number of positions)` of a batch, with one sum per group of channels."""
    inputs = keras.ops.cast(keras.ops.convert_to_tensor(inputs), "float32")
    if getattr(layer, "data_format", "channels_last") == "channels_first":
        inputs = keras.ops.moveaxis(inputs, 1, -1)
    strides = getattr(layer, "strides", ())
    if strides and math.prod(layer.kernel_size) == 1:  # it reads only these positions
        inputs = inputs[(slice(None), *(slice(None, None, stride) for stride in strides))]
    groups = getattr(layer, "groups", 1)
    matrix = keras.ops.reshape(inputs, (-1, groups, inputs.shape[-1] // groups))
    by_group = keras.ops.moveaxis(matrix, 1, 0)
    sums = keras.ops.matmul(keras.ops.swapaxes(by_group, 1, 2), by_group)
    return keras.ops.convert_to_numpy(sums).astype("float64"), matrix.shape[0]
