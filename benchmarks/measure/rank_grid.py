"""Times of neighbouring ranks: do multiples of 8 or 16 run faster?"""

from benchmarks.measure.runner import Flag, measurement
from benchmarks.measure.variants import BATCHES, BUDGETS, interleaved, litert_seconds

_MULTIPLES = (8, 16)
_BATCH, _CHANNELS, _SIZE = 32, 128, 16
# Ranks in steps of 4, and the neighbours of multiples of 16.
_RANKS = sorted({*range(8, 80, 4), 31, 33, 47, 49, 63, 65, 79, 80, 81, 88, 96})


@measurement(
    "rank_grid",
    models=Flag(
        ("layer", "resnet20", "vgg16_cifar", "resnet18"),
        "The layer, and networks, each in a separate process.",
        choices=("layer", *BATCHES),
    ),
    rounds=15,
)
def rank_grid(settings):
    """Times neighbouring ranks, and networks with ranks in multiples of 8 and of 16.

    The layer is a Tucker-2 3×3 convolution of 128 channels at 16×16 with equal ranks: forward and backward of a batch
    in TensorFlow, and inference of one image as a LiteRT file. The networks are timed for training steps at the same
    MACs. All take turns.
    """
    return (_layer if settings.model == "layer" else _network)(settings)


def _layer(settings):
    from benchmarks.measure.networks import layer_step

    steps = {rank: layer_step(_SIZE, _CHANNELS, rank, batch_size=_BATCH) for rank in _RANKS}
    seconds = {"training, TensorFlow": interleaved(steps, settings.rounds, "training")}
    for kind, quantization in {"float32": None, "int8": "int8"}.items():
        seconds[f"LiteRT {kind}"] = litert_seconds(_files(quantization), 1, 8 * settings.rounds, kind)
    return {"channels": _CHANNELS, "size": _SIZE, "seconds": seconds}


def _files(quantization):
    """Exports the layer as `{rank: LiteRT file}`."""
    import keras

    import elrt_keras as elrt
    from benchmarks.measure.networks import random_images
    from elrt_keras import litert

    images, contents = random_images(8, _SIZE, _CHANNELS), {}
    for rank in _RANKS:
        layer = elrt.layers.Tucker2Conv2D(_CHANNELS, 3, ranks=rank, padding="same", use_bias=False)
        model = keras.Sequential([keras.Input(images.shape[1:]), layer])
        contents[rank] = litert.model_to_litert(model, quantization, images if quantization else None)
    return contents


def _network(settings):
    import elrt_keras as elrt
    from benchmarks.measure.networks import built, low_rank, training_step

    name = settings.model
    models = {"dense": built(name)}
    for budget in BUDGETS:
        models |= {f"{step}_{budget}": low_rank(built(name), budget, multiple_of=step) for step in _MULTIPLES}
    macs = {variant: elrt.count_costs(model).macs for variant, model in models.items()}
    steps = {v: training_step(elrt.fuse_batch_norm(model), BATCHES[name]) for v, model in models.items()}
    seconds = interleaved(steps, settings.rounds, name)
    return {"model": name, "batch_size": BATCHES[name], "macs": macs, "seconds": seconds}
