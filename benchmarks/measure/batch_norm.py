"""Times batch-norm layers, stock and fused, over numbers of channels: forward and backward of one layer.

  python -m benchmarks.batch_norm

What decides for which layers `elrt_keras.fuse_batch_norm` takes TensorFlow's operation. Result in
`benchmarks/results/batch_norm/cpu.json`.
"""

from absl import app, flags

from benchmarks.measure import evidence

_ROUNDS = flags.DEFINE_integer("rounds", 25, "Times of each layer.")
# Batch size, height and width, channels: as in ResNet-20 on CIFAR-10 and in ResNet-18, and numbers between.
_SHAPES = (
    *((128, 32, channels) for channels in (8, 11, 12, 14, 16, 20, 22, 24, 32)),
    *((128, 8, channels) for channels in (44, 45, 48, 60, 62, 64)),
    *((16, 56, channels) for channels in (44, 45, 46, 48, 64)),
    *((16, 7, channels) for channels in (300, 362, 384, 512)),
)


def step(batch_size, size, channels, is_fused):
    """A function that runs a layer on a fixed batch, forward and backward; already compiled."""
    import keras
    import tensorflow as tf

    import elrt_keras as elrt

    model = keras.Sequential([keras.Input((size, size, channels)), keras.layers.BatchNormalization()])
    if is_fused:
        # At any number of channels: whether to fuse is what is asked here.
        elrt.layers.batch_norm._MULTIPLE_OF = 1
        elrt.fuse_batch_norm(model)
    inputs = tf.random.stateless_normal((batch_size, size, size, channels), (0, 0))

    @tf.function
    def run(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(model(inputs, training=True) * inputs)
        return tape.gradient(loss, [inputs, *(v.value for v in model.trainable_variables)])

    for _ in range(3):
        run(inputs)
    return lambda: run(inputs)[0].numpy()


def main(argv):
    """Measures all shapes; the two of a shape take turns."""
    del argv
    from benchmarks.measure.variants import interleaved, ratios

    rows = []
    for shape in _SHAPES:
        steps = {"stock": step(*shape, False), "fused": step(*shape, True)}
        seconds = interleaved(steps, _ROUNDS.value, show=lambda *text, **options: None)
        rows.append({"shape": shape, "seconds": seconds})
        print(shape, "fused {:.2f}x ({:.2f}-{:.2f})".format(*ratios(seconds, "stock")["fused"]), flush=True)
    command = f"python -m benchmarks.batch_norm --rounds={_ROUNDS.value}"
    evidence.write("batch_norm", "cpu", {"rows": rows}, command)


if __name__ == "__main__":
    app.run(main)
