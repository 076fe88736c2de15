"""Times grouped 3×3 convolutions, stock and low-rank: forward and backward, and one inference on LiteRT.

  python -m benchmarks.grouped
  python -m benchmarks.grouped --groups=4,8 --rounds=3

*As convolutions* is the low-rank layer with the grouped convolutions of Keras in the place of its own way to train. All
take turns. File `benchmarks/results/grouped/cpu.json`.
"""

from absl import app, flags

from benchmarks.measure import evidence

_GROUPS = flags.DEFINE_list("groups", ["2", "4", "8", "16"], "Numbers of groups.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Times of each.")
_BATCH, _SIZE, _CHANNELS = 32, 16, 128
LAYERS = ("stock", "chain", "chain, as convolutions", "composed")


def layer_of(name, groups):
    """A 3×3 convolution of 128 channels to as many: stock, or low-rank at half the full ranks."""
    import keras

    import elrt_keras as elrt

    options = {"padding": "same", "use_bias": False, "groups": groups}
    if name == "stock":
        return keras.layers.Conv2D(_CHANNELS, 3, **options)
    execution = "compose" if name == "composed" else "chain"
    layer = elrt.layers.Tucker2Conv2D(_CHANNELS, 3, ranks=0.5, execution=execution, **options)
    if name.endswith("as convolutions"):
        layer._run_training = layer._run
    return layer


def measure(groups, rounds):
    """`{"training": {layer: seconds}, "float32": …, "int8": …}` of one number of groups."""
    import keras
    import numpy as np

    from benchmarks.measure.variants import forward_and_backward, interleaved
    from elrt_keras import litert

    shape = (_SIZE, _SIZE, _CHANNELS)
    images = keras.ops.convert_to_tensor(np.random.default_rng(0).normal(size=(_BATCH, *shape)).astype("float32"))
    made = {name: layer_of(name, groups) for name in LAYERS}
    found = {"training": interleaved({n: forward_and_backward(layer, images) for n, layer in made.items()}, rounds)}
    examples = np.random.default_rng(1).normal(size=(4, *shape)).astype("float32")
    for quantization in (None, "int8"):
        runners = []
        for name in LAYERS[:2]:
            model = keras.Sequential([keras.Input(shape), made[name]])
            runners.append(litert.Runner(litert.model_to_litert(model, quantization, examples), 1))
        seconds = litert.time_interleaved(runners, runs=20 * rounds, warmup=5)
        found[quantization or "float32"] = {name: list(map(float, times)) for name, times in zip(LAYERS, seconds)}
    return found


def main(argv):
    """Measures all numbers of groups and writes the file."""
    del argv
    rounds = _ROUNDS.value
    rows = {groups: measure(int(groups), rounds) for groups in _GROUPS.value}
    command = f"python -m benchmarks.grouped --groups={','.join(_GROUPS.value)} --rounds={rounds}"
    result = {"batch": _BATCH, "size": _SIZE, "channels": _CHANNELS, "rows": rows}
    evidence.write("grouped", "cpu", result, command)


if __name__ == "__main__":
    app.run(main)
