"""Replacements for layers whose TensorFlow graph the ONNX converter does not take.

Grouped convolutions become single operations. On TensorFlow, Keras compiles them with XLA, as calls of functions in the
graph, and ONNX has no such calls. The statistics of a `Normalization` become constants. Otherwise they would be tensors
outside of the graph, and further inputs of the file.
"""

from typing import Any

import keras
import numpy as np

from elrt_keras.conversion.merge import is_low_rank
from elrt_keras.graph.configs import copy_arguments
from elrt_keras.graph.paths import is_container
from elrt_keras.graph.private import held_layers
from elrt_keras.graph.rebuild import rebuild
from elrt_keras.graph.view import View


def _one_operation(layer, inputs):
    """Computes the call of a stock convolution, with the convolution as one operation."""
    import tensorflow as tf

    padding, last = layer.padding, layer.data_format == "channels_last"
    if padding == "causal":
        inputs, padding = keras.ops.pad(inputs, _causal_padding(layer)), "valid"
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
    else:  # the converter would ignore the groups
        axis = -1 if last else 1
        parts = tf.split(inputs, layer.groups, axis), tf.split(kernel, layer.groups, -1)
        outputs = tf.concat([tf.nn.convolution(*part, **arguments) for part in zip(*parts)], axis)
    if layer.use_bias:
        ones = (1,) * layer.rank
        outputs += keras.ops.reshape(layer.bias, (1, *ones, -1) if last else (1, -1, *ones))
    return layer.activation(outputs)


def _causal_padding(layer):
    """The padding in front of a causal 1-D convolution."""
    before = (layer.dilation_rate[0] * (layer.kernel_size[0] - 1), 0)
    return ((0, 0), before, (0, 0)) if layer.data_format == "channels_last" else ((0, 0), (0, 0), before)


class _Conv1D(keras.layers.Conv1D):
    def call(self, inputs):
        return _one_operation(self, inputs)


class _Conv2D(keras.layers.Conv2D):
    def call(self, inputs):
        return _one_operation(self, inputs)


class _Conv3D(keras.layers.Conv3D):
    def call(self, inputs):
        return _one_operation(self, inputs)


class _Normalization(keras.layers.Normalization):
    def call(self, inputs):
        mean, variance = (keras.ops.convert_to_numpy(value) for value in (self.mean, self.variance))
        deviation = np.maximum(np.sqrt(variance), np.float32(keras.config.epsilon()))
        inputs = keras.ops.cast(inputs, self.compute_dtype)
        return inputs * deviation + mean if self.invert else (inputs - mean) / deviation


_TWINS = {
    keras.layers.Conv1D: _Conv1D,
    keras.layers.Conv2D: _Conv2D,
    keras.layers.Conv3D: _Conv3D,
    keras.layers.Normalization: _Normalization,
}


def with_twins(model: keras.Model) -> keras.Model:
    """Makes a model with equal outputs whose layers the converter takes. Returns `model` itself if all fit already.

    The new model is only for conversion: TensorFlow may be unable to run it.
    """
    if not is_container(model) or not any(map(_needs_twin, held_layers(model))):
        return model
    return rebuild(View(model), _needs_twin, _plain)


def _needs_twin(layer):
    return type(layer) is keras.layers.Normalization or _is_grouped(layer)


def _is_grouped(layer):
    return (type(layer) in _TWINS or is_low_rank(layer)) and getattr(layer, "groups", 1) > 1


def _plain(layer):
    """Makes the replacement of a stock or low-rank layer, in the form that `rebuild` takes."""
    if not is_low_rank(layer):
        return [(_twin(layer), layer.get_weights())]
    chain = layer.stock_layers()
    twins = [_twin(one) if _is_grouped(one) else one for one, _ in chain]
    # In a nested model the names of the chain cannot collide with others.
    return [(keras.Sequential(twins, name=layer.name), [array for _, arrays in chain for array in arrays])]


def _twin(layer):
    return _TWINS[type(layer)](**{**copy_arguments(layer), "dtype": layer.dtype_policy})
