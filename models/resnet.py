"""ResNets for large images: He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), section 4.1.

Post-activation, version 1.5: the 3×3 convolution of a bottleneck block has the stride. A shortcut is a projection (1×1
convolution and batch-norm) if the shape changes. `resnet18_cifar` has a 3×3 stem without pooling, for 32×32 pixels.
`zero_init_residual` starts the last batch-norm scale of each block at zero (Goyal et al., arXiv 1706.02677).
"""

import keras

from elrt_keras.models.blocks import Builder, batch_norm, builder, convolution, relu, widened

_STAGE_CHANNELS = (64, 128, 256, 512)


def _features(blocks, block, small_images=False):
    def features(x, width, zero_init_residual):
        gamma = "zeros" if zero_init_residual else "ones"
        x = _stem(x, widened(64, width), small_images)
        for stage, (channels, count) in enumerate(zip(_STAGE_CHANNELS, blocks), start=1):
            for number in range(1, count + 1):
                strides = 2 if stage > 1 and number == 1 else 1
                x = _residual(x, block, widened(channels, width), strides, f"stage{stage}_block{number}", gamma)
        return x

    return features


def _stem(x, channels, small_images):
    size, strides = (3, 1) if small_images else (7, 2)
    x = relu(batch_norm(convolution(x, channels, size, strides, "stem"), "stem"), "stem")
    if small_images:
        return x
    return keras.layers.MaxPooling2D(3, strides=2, padding="same", data_format="channels_last", name="stem_pool")(x)


def _residual(x, block, channels, strides, name, gamma):
    y = block(x, channels, strides, name, gamma)
    if strides > 1 or x.shape[-1] != y.shape[-1]:
        shortcut = f"{name}_shortcut"
        x = batch_norm(convolution(x, y.shape[-1], 1, strides, shortcut), shortcut)
    return relu(keras.layers.Add(name=f"{name}_add")([x, y]), name)


def _basic(x, channels, strides, name, gamma):
    x = relu(batch_norm(convolution(x, channels, 3, strides, f"{name}_1"), f"{name}_1"), f"{name}_1")
    return batch_norm(convolution(x, channels, 3, 1, f"{name}_2"), f"{name}_2", gamma)


def _bottleneck(x, channels, strides, name, gamma):
    x = relu(batch_norm(convolution(x, channels, 1, 1, f"{name}_1"), f"{name}_1"), f"{name}_1")
    x = relu(batch_norm(convolution(x, channels, 3, strides, f"{name}_2"), f"{name}_2"), f"{name}_2")
    return batch_norm(convolution(x, 4 * channels, 1, 1, f"{name}_3"), f"{name}_3", gamma)


def _builder(name, blocks, block) -> Builder:
    return builder(
        name,
        _features(blocks, block),
        input_shape=(224, 224, 3),
        classes=1000,
        options={"zero_init_residual": False},
        doc=f"ResNet-{name.removeprefix('resnet')} v1.5 (He et al., arXiv 1512.03385, section 4.1).",
    )


resnet18 = _builder("resnet18", (2, 2, 2, 2), _basic)
resnet34 = _builder("resnet34", (3, 4, 6, 3), _basic)
resnet50 = _builder("resnet50", (3, 4, 6, 3), _bottleneck)
resnet101 = _builder("resnet101", (3, 4, 23, 3), _bottleneck)
resnet152 = _builder("resnet152", (3, 8, 36, 3), _bottleneck)
resnet18_cifar = builder(
    "resnet18_cifar",
    _features((2, 2, 2, 2), _basic, small_images=True),
    input_shape=(32, 32, 3),
    classes=10,
    options={"zero_init_residual": False},
    doc="ResNet-18 with a 3×3 stem and no pooling after it, for 32×32 pixels.",
)
