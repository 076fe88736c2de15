"""Times neighbouring ranks, and networks with ranks in multiples of 8 and of 16.

  python -m benchmarks.rank_grid
  python -m benchmarks.rank_grid --models=resnet18

First one Tucker-2 layer, a 3×3 convolution of 128 channels at 16×16, both ranks equal: forward and backward in
TensorFlow on a batch, and one image as a LiteRT file. Then training steps of whole networks at the same MACs. All take
turns; one process per network. Files in `benchmarks/results/rank_grid/`.
"""

import numpy as np
from absl import app, flags

from benchmarks.measure import evidence
from benchmarks.measure.processes import run_each

_MODELS = flags.DEFINE_list("models", ["layer", "resnet20", "vgg16_cifar", "resnet18"], "The layer, and builders.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Steps of each.")
_ONE = flags.DEFINE_string("one", None, "The model of this process; the driver sets it.")
MULTIPLES = (8, 16)
BATCH, CHANNELS, SIZE = 32, 128, 16
RANKS = (
    8,
    12,
    16,
    20,
    24,
    28,
    31,
    32,
    33,
    36,
    40,
    44,
    47,
    48,
    49,
    52,
    56,
    60,
    63,
    64,
    65,
    68,
    72,
    76,
    79,
    80,
    81,
    88,
    96,
)


def litert_seconds(quantization, rounds):
    """`{rank: seconds of each round}` of one image on one thread."""
    import keras

    import elrt_keras as elrt
    from elrt_keras import litert

    images = np.random.default_rng(0).normal(size=(8, SIZE, SIZE, CHANNELS)).astype("float32")
    runners = []
    for rank in RANKS:
        layer = elrt.layers.Tucker2Conv2D(CHANNELS, 3, ranks=rank, padding="same", use_bias=False)
        model = keras.Sequential([keras.Input(images.shape[1:]), layer])
        runners.append(litert.Runner(litert.model_to_litert(model, quantization, images if quantization else None), 1))
    return dict(zip(RANKS, (np.round(times, 7).tolist() for times in litert.time_interleaved(runners, rounds))))


def measure_layer():
    """Times one layer and writes the file."""
    from benchmarks.measure.variants import interleaved, layer_step

    steps = {rank: layer_step(SIZE, CHANNELS, rank, batch_size=BATCH) for rank in RANKS}
    seconds = {
        "training, TensorFlow": interleaved(steps, _ROUNDS.value, show=_silent),
        "LiteRT float32": litert_seconds(None, 8 * _ROUNDS.value),
        "LiteRT int8": litert_seconds("int8", 8 * _ROUNDS.value),
    }
    result = {"channels": CHANNELS, "size": SIZE, "seconds": seconds}
    evidence.write("rank_grid", "layer", result, f"python -m benchmarks.rank_grid --models=layer{_rounds_flag()}")


def measure_network(name):
    """Times the training steps of one network and writes the file."""
    import elrt_keras as elrt
    from benchmarks.measure.variants import BATCHES, BUDGETS, built, interleaved, low_rank, ratios, training_step

    models = {"dense": built(name)}
    for budget in BUDGETS:
        models |= {f"{step}_{budget}": low_rank(built(name), budget, multiple_of=step) for step in MULTIPLES}
    macs = {variant: elrt.count_costs(model).macs for variant, model in models.items()}
    steps = {v: training_step(elrt.fuse_batch_norm(model), BATCHES[name]) for v, model in models.items()}
    seconds = interleaved(steps, _ROUNDS.value, show=_silent)
    print(name, {v: f"{middle:.2f}x" for v, (middle, _, _) in ratios(seconds, "dense").items()}, flush=True)
    result = {"model": name, "batch_size": BATCHES[name], "macs": macs, "seconds": seconds}
    evidence.write("rank_grid", name, result, f"python -m benchmarks.rank_grid --models={name}{_rounds_flag()}")


def _rounds_flag():
    return f" --rounds={_ROUNDS.value}"


def _silent(*_, **__):
    pass


def main(argv):
    """Measures the layer and the networks, each in a process of its own."""
    del argv
    if _ONE.value is None:
        run_each("benchmarks.measure.rank_grid", _MODELS.value)
    elif _ONE.value == "layer":
        measure_layer()
    else:
        measure_network(_ONE.value)


if __name__ == "__main__":
    app.run(main)
