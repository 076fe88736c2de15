"""Grouped convolutions as single operations of TensorFlow's graph, for ONNX.

On TensorFlow Keras has XLA compile them, as calls of functions in the graph. A converter sees calls there, and ONNX has
none of these, but has grouped convolutions.
"""

from typing import Any

import keras

from elrt_keras.conversion.dense import is_low_rank
from elrt_keras.conversion.rebuild import rebuild
from elrt_keras.layers.arguments import copy_arguments
from elrt_keras.traversal import held_layers, is_container


def _one_operation(layer, inputs):
    """The call of a stock convolution, with the convolution as one operation."""
    import tensorflow as tf

    padding, last = layer.padding, layer.data_format == "channels_last"
    if padding == "causal":
        inputs, padding = keras.ops.pad(inputs, layer._compute_causal_padding()), "valid"
    axes = "DHW"[3 - layer.rank :]
    arguments: dict[str, Any] = {
        "strides": layer.strides,
        "padding": padding.upper(),
        "data_format": f"N{axes}C" if last else f"NC{axes}",
        "dilations": layer.dilation_rate,
    }
    kernel = keras.ops.convert_to_tensor(layer.kernel)
    if layer.rank < 3:
        outputs = tf.nn.convolution(inputs, kernel, **arguments)
    else:  # which the converter takes for a convolution without groups
        axis = -1 if last else 1
        parts = tf.split(inputs, layer.groups, axis), tf.split(kernel, layer.groups, -1)
        outputs = tf.concat([tf.nn.convolution(*part, **arguments) for part in zip(*parts)], axis)
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


class _Conv3D(keras.layers.Conv3D):
    def call(self, inputs):
        return _one_operation(self, inputs)


_PLAIN = {keras.layers.Conv1D: _Conv1D, keras.layers.Conv2D: _Conv2D, keras.layers.Conv3D: _Conv3D}


def with_plain_groups(model: keras.Model) -> keras.Model:
    """A model that computes the same, whose grouped convolutions are operations of the graph; itself if it has none.

    Such a model is there to be converted: TensorFlow may not run it.
    """
    if not is_container(model) or not any(map(_is_grouped, held_layers(model))):
        return model
    return rebuild(model, _is_grouped, _plain)


def _is_grouped(layer):
    return (type(layer) in _PLAIN or is_low_rank(layer)) and getattr(layer, "groups", 1) > 1


def _plain(layer):
    """What stands in for a grouped layer, stock or low-rank, as `rebuild` takes it."""
    if not is_low_rank(layer):
        return [(_twin(layer), layer.get_weights())]
    chain = layer.stock_layers()
    twins = [_twin(one) if _is_grouped(one) else one for one, _ in chain]
    # In a model of its own, where the names of the chain meet no others.
    return [(keras.Sequential(twins, name=layer.name), [array for _, arrays in chain for array in arrays])]


def _twin(layer):
    return _PLAIN[type(layer)](**{**copy_arguments(layer), "dtype": layer.dtype_policy})
