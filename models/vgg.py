"""VGG networks with batch-norm: Simonyan and Zisserman (arXiv 1409.1556), configurations A, B, D and E.

3×3 convolutions, each with batch-norm and ReLU, and 2×2 max pooling after each stage. For large images, two dense
layers of 4096 units with dropout precede the classifier, and the convolutions have biases, as in torchvision's
`vgg16_bn`. `vgg16_cifar` has one classifier layer and no convolution biases, because batch-norm cancels them.
"""

import keras

from elrt_keras.models.blocks import Builder, batch_norm, builder, classifier, convolution, relu, widened

_STAGE_CHANNELS = (64, 128, 256, 512, 512)
_SMALLEST = 2 ** len(_STAGE_CHANNELS)


def _features(repeats, use_bias):
    def features(x, width):
        if any(size is not None and size < _SMALLEST for size in x.shape[1:3]):
            raise ValueError(
                f"Expected images of at least {_SMALLEST}×{_SMALLEST} pixels: five poolings halve them. "
                f"Received: input_shape={tuple(x.shape[1:])}"
            )
        for stage, (channels, count) in enumerate(zip(_STAGE_CHANNELS, repeats), start=1):
            for number in range(1, count + 1):
                name = f"stage{stage}_{number}"
                x = convolution(x, widened(channels, width), 3, 1, name, use_bias)
                x = relu(batch_norm(x, name), name)
            x = keras.layers.MaxPooling2D(2, data_format="channels_last", name=f"stage{stage}_pool")(x)
        return x

    return features


def _head(x, classes, activation, width, dropout):
    if None in x.shape[1:3]:
        raise ValueError(
            "Expected a fixed height and width: the first dense layer has a weight for each place of the image. "
            "`vgg16_cifar` and `include_top=False` need no fixed size. Received: None in `input_shape`"
        )
    x = keras.layers.Flatten(name="flatten", data_format="channels_last")(x)
    for number in (1, 2):
        name = f"hidden{number}"
        x = keras.layers.Dense(widened(4096, width), kernel_initializer="he_normal", name=name)(x)
        x = relu(x, name)
        x = keras.layers.Dropout(dropout, name=f"{name}_dropout")(x)
    return classifier(x, classes, activation)


def _builder(name, repeats) -> Builder:
    return builder(
        name,
        _features(repeats, use_bias=True),
        input_shape=(224, 224, 3),
        classes=1000,
        options={"dropout": 0.5},
        head=_head,
        doc=f"VGG-{name.removeprefix('vgg')} with batch-norm (Simonyan and Zisserman, arXiv 1409.1556).",
    )


vgg11 = _builder("vgg11", (1, 1, 2, 2, 2))
vgg13 = _builder("vgg13", (2, 2, 2, 2, 2))
vgg16 = _builder("vgg16", (2, 2, 3, 3, 3))
vgg19 = _builder("vgg19", (2, 2, 4, 4, 4))
vgg16_cifar = builder(
    "vgg16_cifar",
    _features((2, 2, 3, 3, 3), use_bias=False),
    input_shape=(32, 32, 3),
    classes=10,
    doc="VGG-16 with batch-norm for 32×32 pixels: the convolutions of configuration D and one classifier layer.",
)
