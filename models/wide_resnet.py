"""Wide residual networks: Zagoruyko and Komodakis (arXiv 1605.07146).

Pre-activation blocks of two 3×3 convolutions, optionally with dropout between them. Three stages of 16k, 32k and 64k
channels have (depth − 4) / 6 blocks each. The shortcut is a 1×1 convolution if the number of channels changes.
"""

import keras

from elrt_keras.models.blocks import batch_norm, builder, convolution, relu, widened

_STAGE_CHANNELS = (16, 32, 64)


def _features(depth, widening):
    def features(x, width, dropout):
        x = convolution(x, widened(_STAGE_CHANNELS[0], width), 3, 1, "stem")
        for stage, channels in enumerate(_STAGE_CHANNELS, start=1):
            for block in range(1, (depth - 4) // 6 + 1):
                strides = 2 if stage > 1 and block == 1 else 1
                x = _block(x, widened(channels * widening, width), strides, dropout, f"stage{stage}_block{block}")
        return relu(batch_norm(x, "last"), "last")

    return features


def _block(x, channels, strides, dropout, name):
    y = relu(batch_norm(x, f"{name}_1"), f"{name}_1")
    if x.shape[-1] != channels or strides > 1:
        x = convolution(y, channels, 1, strides, f"{name}_shortcut")
    y = convolution(y, channels, 3, strides, f"{name}_1")
    y = relu(batch_norm(y, f"{name}_2"), f"{name}_2")
    if dropout:
        y = keras.layers.Dropout(dropout, name=f"{name}_dropout")(y)
    y = convolution(y, channels, 3, 1, f"{name}_2")
    return keras.layers.Add(name=f"{name}_add")([x, y])


wide_resnet28_10 = builder(
    "wide_resnet28_10",
    _features(28, 10),
    input_shape=(32, 32, 3),
    classes=10,
    options={"dropout": 0.0},
    doc="WRN-28-10 (Zagoruyko and Komodakis, arXiv 1605.07146); the paper also trains it with `dropout=0.3`.",
)
