"""The CIFAR ResNets of He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), section 4.2.

3×3 convolutions in three stages of 16, 32 and 64 channels, n blocks of two each (depth 6n + 2), strides 1, 2, 2, global
average pooling, one classifier. Shortcuts have no parameters (option A): subsampling and zero channels. The paper
begins at depth 20; depth 8 (n = 1) is added for microcontrollers and quick trials.
"""

import keras

from elrt_keras.models.blocks import Builder, batch_norm, builder, convolution, relu, widened

_STAGE_CHANNELS = (16, 32, 64)


def _features(depth):
    def features(x, width, zero_init_residual):
        gamma = "zeros" if zero_init_residual else "ones"
        x = batch_norm(convolution(x, widened(_STAGE_CHANNELS[0], width), 3, 1, "stem"), "stem")
        x = relu(x, "stem")
        for stage, channels in enumerate(_STAGE_CHANNELS, start=1):
            for block in range(1, (depth - 2) // 6 + 1):
                strides = 2 if stage > 1 and block == 1 else 1
                x = _block(x, widened(channels, width), strides, f"stage{stage}_block{block}", gamma)
        return x

    return features


def _block(x, channels, strides, name, gamma):
    y = batch_norm(convolution(x, channels, 3, strides, f"{name}_1"), f"{name}_1")
    y = relu(y, f"{name}_1")
    y = batch_norm(convolution(y, channels, 3, 1, f"{name}_2"), f"{name}_2", gamma)
    y = keras.layers.Add(name=f"{name}_add")([_shortcut(x, channels, strides, name), y])
    return relu(y, name)


def _shortcut(x, channels, strides, name):
    """Applies option A: keeps every second pixel, and adds zero channels, half of them on each side."""
    if strides > 1:
        x = keras.layers.AveragePooling2D(
            1, strides=strides, data_format="channels_last", name=f"{name}_shortcut_subsample"
        )(x)
    missing = channels - x.shape[-1]
    if missing:
        # "channels_first" pads the last two axes, here the width (by 0) and the channels. So a stock layer, which every
        # backend and the LiteRT converter know, can pad channels.
        x = keras.layers.ZeroPadding2D(
            ((0, 0), (missing // 2, missing - missing // 2)),
            data_format="channels_first",
            name=f"{name}_shortcut_pad",
        )(x)
    return x


def _builder(depth) -> Builder:
    return builder(
        f"resnet{depth}",
        _features(depth),
        input_shape=(32, 32, 3),
        classes=10,
        options={"zero_init_residual": False},
        doc=f"ResNet-{depth} for small images (He et al., arXiv 1512.03385, section 4.2).",
    )


resnet8, resnet20, resnet32, resnet44, resnet56, resnet110 = map(_builder, (8, 20, 32, 44, 56, 110))
