"""Times the ways to run one Tucker-2 layer forward and backward, to choose the one that `training=True` takes.

  python -m benchmarks.executions

The chain with its 1×1 stages as convolutions or as matrix products, and with one or both factor matrices multiplied
into the core first. All take turns. File `benchmarks/results/executions/cpu.json`.
"""

from absl import app, flags

from benchmarks.measure import evidence

_ROUNDS = flags.DEFINE_integer("rounds", 15, "Steps of each.")

# batch, height and width, channels in and out, both ranks: layers of ResNet-20, VGG-16, ResNet-18 at 0.4 of the MACs.
SHAPES = (
    (128, 32, 16, 8),
    (128, 16, 32, 16),
    (128, 8, 64, 32),
    (128, 16, 128, 64),
    (128, 8, 256, 104),
    (16, 56, 64, 32),
    (16, 28, 128, 56),
    (16, 14, 256, 104),
)


def ways():
    """`{way: function of (images, U_in, core, U_out)}`, the matrices as `(in, out)`."""
    from keras import ops

    def conv(images, kernel):
        return ops.conv(images, kernel, padding="same", data_format="channels_last")

    def one(images, matrix):
        return conv(images, matrix[None, None])

    def product(images, matrix):
        outputs = ops.matmul(ops.reshape(images, (-1, images.shape[-1])), matrix)
        return ops.reshape(outputs, (*images.shape[:-1], matrix.shape[-1]))

    def core_in(u_in, core):
        return ops.einsum("pa,hwab->hwpb", u_in, core)

    def core_out(core, u_out):
        return ops.einsum("hwab,bq->hwaq", core, u_out)

    return {
        "matrix products": lambda x, u, g, v: product(conv(product(x, u), g), v),
        "1×1 convolutions": lambda x, u, g, v: one(conv(one(x, u), g), v),
        "U_in in the core": lambda x, u, g, v: product(conv(x, core_in(u, g)), v),
        "U_out in the core": lambda x, u, g, v: conv(product(x, u), core_out(g, v)),
        "composed": lambda x, u, g, v: conv(x, core_out(core_in(u, g), v)),
    }


def step_of(way, batch_size, size, channels, rank):
    """A function that runs one way forward and backward."""
    import numpy as np
    import tensorflow as tf

    random = np.random.default_rng(0)
    shapes = [(batch_size, size, size, channels), (channels, rank), (3, 3, rank, rank), (rank, channels)]
    tensors = [tf.constant(random.normal(size=shape).astype("float32")) for shape in shapes]

    @tf.function
    def run():
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = way(*tensors)
        gradients = tape.gradient(outputs, tensors, outputs)
        return [tf.reshape(value, [-1])[0] for value in (outputs, *gradients)]

    def step():
        for value in run():
            value.numpy()

    step()
    return step


def main(argv):
    """Measures all shapes and writes the file."""
    del argv
    from benchmarks.measure.variants import interleaved, ratios

    rows = []
    for shape in SHAPES:
        steps = {name: step_of(way, *shape) for name, way in ways().items()}
        seconds = interleaved(steps, _ROUNDS.value, show=lambda *_, **__: None)
        rows.append({"shape": shape, "seconds": seconds})
        print(shape, {name: f"{middle:.2f}" for name, (middle, _, _) in ratios(seconds, "matrix products").items()})
    evidence.write("executions", "cpu", {"rows": rows}, f"python -m benchmarks.executions --rounds={_ROUNDS.value}")


if __name__ == "__main__":
    app.run(main)
