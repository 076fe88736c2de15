"""MobileNetV2: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (arXiv 1801.04381), table 2.

Each block expands (1×1), filters each channel separately (3×3 depthwise) and projects (1×1, without activation), with
batch-norm after each convolution. As in the authors' code, a width multiplier gives multiples of 8 channels, the last
convolution has at least 1280 channels, and batch-norm has momentum 0.997 and ε = 1e-3.
"""

import math

import keras

from elrt_keras.models.blocks import batch_norm, builder, classifier, convolution, pool, relu

# Expansion, channels, blocks, stride of the first block.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _channels(channels, width):
    """Returns the multiple of 8 nearest to `channels · width`, but not more than 10 % below it."""
    wanted = channels * width
    nearest = max(8, int(wanted + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * wanted else nearest + 8


def _norm(x, name):
    return batch_norm(x, name, momentum=0.997, epsilon=1e-3)


def _features(x, width):
    x = relu(_norm(convolution(x, _channels(32, width), 3, 2, "stem"), "stem"), "stem", 6)
    for stage, (expansion, channels, blocks, strides) in enumerate(_STAGES, start=1):
        for block in range(1, blocks + 1):
            name = f"stage{stage}_block{block}"
            x = _block(x, expansion, _channels(channels, width), strides if block == 1 else 1, name)
    return relu(_norm(convolution(x, _channels(1280, max(1.0, width)), 1, 1, "last"), "last"), "last", 6)


def _block(x, expansion, channels, strides, name):
    y = x
    if expansion > 1:
        y = _norm(convolution(y, expansion * x.shape[-1], 1, 1, f"{name}_expand"), f"{name}_expand")
        y = relu(y, f"{name}_expand", 6)
    y = relu(_norm(_depthwise(y, strides, f"{name}_depthwise"), f"{name}_depthwise"), f"{name}_depthwise", 6)
    y = _norm(convolution(y, channels, 1, 1, f"{name}_project"), f"{name}_project")
    if strides == 1 and x.shape[-1] == channels:
        return keras.layers.Add(name=f"{name}_add")([x, y])
    return y


def _depthwise(x, strides, name):
    # Keras counts all channels of a depthwise kernel as inputs, but each output has only nine.
    he_normal = keras.initializers.TruncatedNormal(stddev=math.sqrt(2 / 9) / 0.87962566103423978)
    return keras.layers.DepthwiseConv2D(
        3,
        strides=strides,
        padding="same",
        data_format="channels_last",
        use_bias=False,
        depthwise_initializer=he_normal,
        name=f"{name}_conv",
    )(x)


def _head(x, classes, activation, dropout):
    x = pool(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    return classifier(x, classes, activation)


mobilenet_v2 = builder(
    "mobilenet_v2",
    _features,
    input_shape=(224, 224, 3),
    classes=1000,
    options={"dropout": 0.2},
    head=_head,
    doc="MobileNetV2 (Sandler et al., arXiv 1801.04381).",
)
