"""Times one Tucker-2 layer at neighbouring ranks: which of them are dear for what they hold.

  python -m benchmarks.rank_grid

Where `multiple_of=8`, the default of `plan_ranks`, comes from. A 3×3 convolution of 128 channels at 16×16, both ranks
equal: forward and backward in TensorFlow on a batch, and one image as a LiteRT file. All ranks take turns. File
`benchmarks/results/rank_grid/cpu.json`.
"""

import numpy as np
from absl import app, flags

from benchmarks import evidence

_ROUNDS = flags.DEFINE_integer("rounds", 25, "Steps of each rank.")
CHANNELS, SIZE = 128, 16
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


def main(argv):
    """Measures and writes the file."""
    del argv
    from benchmarks.variants import interleaved, layer_step

    steps = {rank: layer_step(SIZE, CHANNELS, rank) for rank in RANKS}
    seconds = {
        "training, TensorFlow": interleaved(steps, _ROUNDS.value, show=lambda *_, **__: None),
        "LiteRT float32": litert_seconds(None, 8 * _ROUNDS.value),
        "LiteRT int8": litert_seconds("int8", 8 * _ROUNDS.value),
    }
    result = {"channels": CHANNELS, "size": SIZE, "seconds": seconds}
    evidence.write("rank_grid", "cpu", result, f"python -m benchmarks.rank_grid --rounds={_ROUNDS.value}")


if __name__ == "__main__":
    app.run(main)
