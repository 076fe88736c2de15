"""Separable convolutions as two stock layers: a depthwise and a pointwise convolution."""

from typing import Any

import keras

# Separable layers with the layers of their two stages.
_STAGES = {
    keras.layers.SeparableConv1D: (keras.layers.DepthwiseConv1D, keras.layers.Conv1D),
    keras.layers.SeparableConv2D: (keras.layers.DepthwiseConv2D, keras.layers.Conv2D),
}


def is_separable(layer: keras.layers.Layer) -> bool:
    """Reports if a layer is a stock separable convolution."""
    return type(layer) in _STAGES


def open_sizes(layer: Any) -> tuple[int | None, ...]:
    """Input shape of a separable convolution with every axis `None` except the channels."""
    return _open_sizes(layer.depthwise_kernel, layer.data_format)


def separable_stages(layer: Any) -> list[keras.layers.Layer]:
    """Makes a depthwise and a pointwise convolution that together equal a separable one and share its weights.

    Their names are the name of the layer followed by `_depthwise` or `_pointwise`.
    """
    depthwise_class, pointwise_class = _STAGES[type(layer)]
    common = {"data_format": layer.data_format, "dtype": layer.dtype_policy, "trainable": layer.trainable}
    depthwise = depthwise_class(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        depth_multiplier=layer.depth_multiplier,
        dilation_rate=layer.dilation_rate,
        use_bias=False,
        depthwise_initializer=layer.depthwise_initializer,
        depthwise_regularizer=layer.depthwise_regularizer,
        depthwise_constraint=layer.depthwise_constraint,
        name=f"{layer.name}_depthwise",
        **common,
    )
    pointwise = pointwise_class(
        layer.filters,
        1,
        activation=layer.activation,
        use_bias=layer.use_bias,
        kernel_initializer=layer.pointwise_initializer,
        kernel_regularizer=layer.pointwise_regularizer,
        kernel_constraint=layer.pointwise_constraint,
        bias_initializer=layer.bias_initializer,
        bias_regularizer=layer.bias_regularizer,
        bias_constraint=layer.bias_constraint,
        activity_regularizer=layer.activity_regularizer,
        name=f"{layer.name}_pointwise",
        **common,
    )
    _share(depthwise, kernel=layer.depthwise_kernel)
    _share(pointwise, kernel=layer.pointwise_kernel, bias=layer.bias)
    return [depthwise, pointwise]


def _share(layer, kernel, bias=None):
    """Builds a convolution on existing weights."""
    weights = {"kernel": kernel, "bias": bias}
    # `build` calls this to get its weights.
    layer.add_weight = lambda name, **_: weights[name]
    layer.build(_open_sizes(kernel, layer.data_format))
    del layer.add_weight


def _open_sizes(kernel, data_format):
    channels = kernel.shape[-2]
    any_size = (None,) * (len(kernel.shape) - 2)
    return (None, *any_size, channels) if data_format == "channels_last" else (None, channels, *any_size)
