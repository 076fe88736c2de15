"""Separable convolutions as the two stock layers that they are made of."""

from typing import Any

import keras

# Each with the layers of its two stages.
_STAGES = {
    keras.layers.SeparableConv1D: (keras.layers.DepthwiseConv1D, keras.layers.Conv1D),
    keras.layers.SeparableConv2D: (keras.layers.DepthwiseConv2D, keras.layers.Conv2D),
}


def is_separable(layer: keras.layers.Layer) -> bool:
    """Whether a layer is a stock separable convolution."""
    return type(layer) in _STAGES


def open_sizes(layer: Any) -> tuple[int | None, ...]:
    """Input shape of a separable convolution with every axis `None` except the channels."""
    return _open_sizes(layer.depthwise_kernel, layer.data_format)


def separable_stages(layer: Any) -> list[keras.layers.Layer]:
    """Makes a depthwise and a pointwise convolution that compute what a separable one does, on its weights.

    Their names are the layer's, with `_depthwise` and `_pointwise` behind.
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
    """Builds a convolution on weights that there are."""
    weights = {"kernel": kernel, "bias": bias}
    # What `build` asks for its weights.
    layer.add_weight = lambda name, **_: weights[name]
    layer.build(_open_sizes(kernel, layer.data_format))
    del layer.add_weight


def _open_sizes(kernel, data_format):
    channels = kernel.shape[-2]
    any_size = (None,) * (len(kernel.shape) - 2)
    return (None, *any_size, channels) if data_format == "channels_last" else (None, channels, *any_size)
