"""Single layers: the ways to run a Tucker-2 layer, batch-norm, grouped convolutions."""

from benchmarks.measure.runner import Flag, measurement
from benchmarks.measure.variants import interleaved, litert_seconds

# (batch, height and width, channels in and out, both ranks): layers of ResNet-20, VGG-16, ResNet-18, 0.4 of the MACs.
_CONVOLUTIONS = ((128, 32, 16, 8), (128, 16, 32, 16), (128, 8, 64, 32), (128, 16, 128, 64), (128, 8, 256, 104))
_CONVOLUTIONS += ((16, 56, 64, 32), (16, 28, 128, 56), (16, 14, 256, 104))


@measurement("executions", rounds=15, name="cpu")
def executions(settings):
    """Times the ways to run one Tucker-2 layer forward and backward, to choose the way for `training=True`.

    The 1×1 stages are convolutions or matrix products, or one or both factor matrices are multiplied into the core
    first. All ways take turns.
    """
    import numpy as np

    from benchmarks.measure.networks import forward_and_backward

    rows = []
    for shape in _CONVOLUTIONS:
        batch_size, size, channels, rank = shape
        random = np.random.default_rng(0)
        shapes = [(batch_size, size, size, channels), (channels, rank), (3, 3, rank, rank), (rank, channels)]
        arrays = [random.normal(size=sizes).astype("float32") for sizes in shapes]
        steps = {name: forward_and_backward(way, arrays) for name, way in _ways().items()}
        rows.append({"shape": shape, "seconds": interleaved(steps, settings.rounds, shape)})
    return {"rows": rows}


def _ways():
    """Returns `{way: function of (images, U_in, core, U_out)}`; the matrices have shapes `(in, out)`."""
    from keras import ops

    def conv(images, kernel):
        return ops.conv(images, kernel, padding="same", data_format="channels_last")

    def one(images, matrix):
        return conv(images, matrix[None, None])

    def product(images, matrix):
        outputs = ops.matmul(ops.reshape(images, (-1, images.shape[-1])), matrix)
        return ops.reshape(outputs, (*images.shape[:-1], matrix.shape[-1]))

    def first(u, core):
        return ops.einsum("pa,hwab->hwpb", u, core)

    def last(core, v):
        return ops.einsum("hwab,bq->hwaq", core, v)

    return {
        "matrix products": lambda x, u, core, v: product(conv(product(x, u), core), v),
        "1×1 convolutions": lambda x, u, core, v: one(conv(one(x, u), core), v),
        "U_in in the core": lambda x, u, core, v: product(conv(x, first(u, core)), v),
        "U_out in the core": lambda x, u, core, v: conv(product(x, u), last(core, v)),
        "composed": lambda x, u, core, v: conv(x, last(first(u, core), v)),
    }


# (batch size, height and width, channels): those of ResNet-20 on CIFAR-10 and of ResNet-18, and others between.
_BATCH_NORMS = (
    *((128, 32, channels) for channels in (8, 11, 12, 14, 16, 20, 22, 24, 32)),
    *((128, 8, channels) for channels in (44, 45, 48, 60, 62, 64)),
    *((16, 56, channels) for channels in (44, 45, 46, 48, 64)),
    *((16, 7, channels) for channels in (300, 362, 384, 512)),
)


@measurement("batch_norm", rounds=25, name="cpu")
def batch_norm(settings):
    """Times one batch-norm layer, stock and fused, forward and backward, over numbers of channels.

    The result decides for which layers `elrt_keras.fuse_batch_norm` uses TensorFlow's operation.
    """
    rows = []
    for shape in _BATCH_NORMS:
        steps = {"stock": _batch_norm_step(*shape, False), "fused": _batch_norm_step(*shape, True)}
        rows.append({"shape": shape, "seconds": interleaved(steps, settings.rounds, shape)})
    return {"rows": rows}


def _batch_norm_step(batch_size, size, channels, is_fused):
    import keras

    import elrt_keras as elrt
    from benchmarks.measure.networks import random_images, step_of_layer

    layer = keras.layers.BatchNormalization()
    if is_fused:
        # Fuse for any number of channels: the measurement shows where that is faster.
        elrt.layers.batch_norm._MULTIPLE_OF = 1
        elrt.fuse_batch_norm(keras.Sequential([keras.Input((size, size, channels)), layer]))
    return step_of_layer(layer, random_images(batch_size, size, channels))


_BATCH, _SIZE, _CHANNELS = 32, 16, 128
_GROUPED = ("stock", "chain", "chain, as convolutions", "composed")


@measurement("grouped", rounds=5, name="cpu", groups=Flag((2, 4, 8, 16), "Numbers of groups.", int))
def grouped(settings):
    """Times grouped 3×3 convolutions, stock and low-rank: forward and backward, and one inference on LiteRT.

    *As convolutions* is the low-rank layer trained with the grouped convolutions of Keras instead of its own way. All
    take turns.
    """
    rows = {groups: _grouped_seconds(groups, settings.rounds) for groups in settings.groups}
    return {"batch": _BATCH, "size": _SIZE, "channels": _CHANNELS, "rows": rows}


def _grouped_seconds(groups, rounds):
    """Measures `{"training": {layer: seconds}, "float32": …, "int8": …}` for one number of groups."""
    import keras

    from benchmarks.measure.networks import random_images, step_of_layer
    from elrt_keras import litert

    images, examples = random_images(_BATCH, _SIZE, _CHANNELS), random_images(4, _SIZE, _CHANNELS)
    layers_by_name = {name: _layer_of(name, groups) for name in _GROUPED}
    steps = {name: step_of_layer(layer, images) for name, layer in layers_by_name.items()}
    seconds_by_kind = {"training": interleaved(steps, rounds, f"{groups} groups")}
    models = {name: keras.Sequential([keras.Input(images.shape[1:]), layers_by_name[name]]) for name in _GROUPED[:2]}
    for kind, quantization in {"float32": None, "int8": "int8"}.items():
        contents = {name: litert.model_to_litert(model, quantization, examples) for name, model in models.items()}
        seconds_by_kind[kind] = litert_seconds(contents, 1, 20 * rounds, f"{groups} groups, {kind}")
    return seconds_by_kind


def _layer_of(name, groups):
    """Makes a 3×3 convolution from 128 to 128 channels: stock, or low-rank at half of the full ranks."""
    import keras

    import elrt_keras as elrt

    options = {"padding": "same", "use_bias": False, "groups": groups}
    if name == "stock":
        return keras.layers.Conv2D(_CHANNELS, 3, **options)
    execution = "compose" if name == "composed" else "chain"
    layer = elrt.layers.Tucker2Conv2D(_CHANNELS, 3, ranks=0.5, execution=execution, **options)
    if name.endswith("as convolutions"):
        layer._run_way = lambda way, inputs, factors: layer._run(inputs, *factors)
    return layer
