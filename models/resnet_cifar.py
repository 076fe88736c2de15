"""The CIFAR ResNets of He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), section 4.2.

3×3 convolutions in three stages of 16, 32 and 64 channels, n blocks of two each (depth 6n + 2), strides 1, 2, 2, global
average pooling, one classifier. Shortcuts without parameters (option A): subsampling and zero channels.
"""

import keras

from elrt_keras.conversion import factorize

_STAGE_CHANNELS = (16, 32, 64)


def _resnet_cifar(name, depth, input_shape, classes, plan, normalization, classifier_activation, **conversion):
    inputs = keras.Input(input_shape, name="image")
    x = _normalize(inputs, normalization)
    x = _convolution(x, _STAGE_CHANNELS[0], 1, "stem")
    x = keras.layers.ReLU(name="stem_relu")(x)
    for stage, channels in enumerate(_STAGE_CHANNELS, start=1):
        for block in range(1, (depth - 2) // 6 + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _block(x, channels, strides, f"stage{stage}_block{block}")
    x = keras.layers.GlobalAveragePooling2D(name="pool", data_format="channels_last")(x)
    outputs = keras.layers.Dense(
        classes, activation=classifier_activation, kernel_initializer="he_normal", name="classifier"
    )(x)
    model = keras.Model(inputs, outputs, name=name)
    if plan is not None:
        return factorize(model, plan, **conversion)
    if conversion:
        raise ValueError(f"Arguments of `factorize` need a plan. Received: {sorted(conversion)} with plan=None")
    return model


def _normalize(x, normalization):
    mean, std = (127.5, 127.5) if normalization is None else normalization
    channels = x.shape[-1]
    mean, std = ([float(v) for v in _per_channel(value, channels)] for value in (mean, std))
    # Rescaling computes x · scale + offset, in the compute dtype on every backend.
    return keras.layers.Rescaling(
        scale=[1 / s for s in std], offset=[-m / s for m, s in zip(mean, std)], name="normalization"
    )(x)


def _per_channel(value, channels):
    values = list(value) if hasattr(value, "__len__") else [value] * channels
    if len(values) != channels:
        raise ValueError(f"`normalization` has one value per channel, {channels}. Received: {values}")
    return values


def _convolution(x, filters, strides, name):
    x = keras.layers.Conv2D(
        filters,
        3,
        strides=strides,
        padding="same",
        data_format="channels_last",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)


def _block(x, channels, strides, name):
    y = _convolution(x, channels, strides, f"{name}_1")
    y = keras.layers.ReLU(name=f"{name}_1_relu")(y)
    y = _convolution(y, channels, 1, f"{name}_2")
    y = keras.layers.Add(name=f"{name}_add")([_shortcut(x, channels, strides, name), y])
    return keras.layers.ReLU(name=f"{name}_relu")(y)


def _shortcut(x, channels, strides, name):
    """Option A: every second pixel, and zeros in the new channels, half of them on each side."""
    if strides > 1:
        x = keras.layers.AveragePooling2D(
            1, strides=strides, data_format="channels_last", name=f"{name}_shortcut_subsample"
        )(x)
    missing = channels - x.shape[-1]
    if missing:
        # Padding "channels first" pads the last two axes, here width (by none) and channels: a stock layer that every
        # backend and the LiteRT converter know, where a custom one would be needed otherwise.
        x = keras.layers.ZeroPadding2D(
            ((0, 0), (missing // 2, missing - missing // 2)),
            data_format="channels_first",
            name=f"{name}_shortcut_pad",
        )(x)
    return x


def _builder(depth):
    def build(
        input_shape=(32, 32, 3), classes=10, plan=None, normalization=None, classifier_activation="softmax", **kwargs
    ):
        return _resnet_cifar(
            f"resnet{depth}", depth, input_shape, classes, plan, normalization, classifier_activation, **kwargs
        )

    build.__name__ = build.__qualname__ = f"resnet{depth}"
    build.__doc__ = f"ResNet-{depth} for small images (He et al., arXiv 1512.03385). Arguments: see `build`."
    return build


resnet20, resnet32, resnet44, resnet56, resnet110 = map(_builder, (20, 32, 44, 56, 110))
