"""Grouped convolutions as single operations of TensorFlow's graph, for ONNX.

On TensorFlow Keras has XLA compile them, as calls of functions in the graph. A converter sees calls there, and ONNX has
none of these, but has grouped convolutions.
"""

from typing import Any

import keras

from elrt_keras.conversion.dense import expand, is_low_rank
from elrt_keras.conversion.rebuild import rebuild
from elrt_keras.layers.arguments import copy_arguments
from elrt_keras.traversal import held_layers, is_container


def _one_operation(layer, inputs):
    """The call of a stock convolution, with the convolution as one operation."""
    import tensorflow as tf

    padding, last = layer.padding, layer.data_format == "channels_last"
    if padding == "causal":
        inputs, padding = keras.ops.pad(inputs, layer._compute_causal_padding()), "valid"
    arguments: dict[str, Any] = {
        "strides": layer.strides,
        "padding": padding.upper(),
        "data_format": {1: "NWC", 2: "NHWC"}[layer.rank] if last else {1: "NCW", 2: "NCHW"}[layer.rank],
        "dilations": layer.dilation_rate,
    }
    outputs = tf.nn.convolution(inputs, keras.ops.convert_to_tensor(layer.kernel), **arguments)
    if layer.use_bias:
        ones = (1,) * layer.rank
        outputs += keras.ops.reshape(layer.bias, (1, *ones, -1) if last else (1, -1, *ones))
    return layer.activation(outputs)


class _Conv1D(keras.layers.Conv1D):
    def call(self, inputs):
        return _one_operation(self, inputs)


class _Conv2D(keras.layers.Conv2D):
    def call(self, inputs):
        return _one_operation(self, inputs)


_PLAIN = {keras.layers.Conv1D: _Conv1D, keras.layers.Conv2D: _Conv2D}


def with_plain_groups(model: keras.Model) -> keras.Model:
    """A model that computes the same, whose grouped convolutions are operations of the graph; itself if it has none.

    Such a model is there to be converted: TensorFlow may not run it.
    """
    grouped = [layer for layer in held_layers(model) if getattr(layer, "groups", 1) > 1]
    if not grouped or not is_container(model):
        return model
    if any(map(is_low_rank, grouped)):
        model = expand(model)
    return rebuild(model, lambda layer: type(layer) in _PLAIN and layer.groups > 1, _plain)


def _plain(layer):
    arguments = {**copy_arguments(layer), "dtype": layer.dtype_policy}
    return [(_PLAIN[type(layer)](**arguments), layer.get_weights())]
