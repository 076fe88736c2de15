"""Networks for comparisons, on random images: dense, low-rank, thinned, and chains as stock layers."""

import functools

import keras
import numpy as np

import elrt_keras as elrt
from benchmarks.measure.variants import FORMATS, tuning_of

_STRENGTH = 0.01  # of double soft orthogonality, the default of elrt-train


def make(name, variant):
    """Builds the network `name` as one of the variants in `variants.NAMES`.

    `low_rank` is the default of the package: uniform Tucker-2 ranks and ELRT's penalty. `stock_layers` is the same
    chain as three `Conv2D` without the penalty; `without_penalty` is `low_rank` without it. The name of a format, or
    `auto`, is `low_rank` in that format. `recomputed` is `low_rank` with `recompute=True`. `composed` has
    `execution="compose"`: one dense convolution with the composed kernel. `thin` is the dense network with fewer
    channels. The prefix `tuned_` or `frugal_` marks the same model for `tune`. Batch-norm is fused in all variants
    except `unfused`: the dense network (1.0) or a low-rank one with the batch-norm of Keras.
    """
    _, variant = tuning_of(variant)
    kind, _, budget = variant.rpartition("_")
    if variant == "unfused_1.0":
        return elrt.models.build(name)
    if kind == "unfused":
        return low_rank(built(name), float(budget))
    dense = built(name)
    if variant == "dense":
        model = dense
    elif kind == "thin":
        model = thinned(name, elrt.count_costs(make(name, f"without_penalty_{budget}")).macs)
    else:
        penalty = None if kind in ("without_penalty", "stock_layers") else "dso"
        form = kind if kind in FORMATS else "tucker2"
        # This network has small ranks: multiples of 8 do not reach the smaller budgets.
        multiple_of = 4 if form == "svd" else None
        options = {"multiple_of": multiple_of, "recompute": kind == "recomputed", "form": form}
        model = low_rank(dense, float(budget), penalty, **options)
        model = {"stock_layers": elrt.expand, "composed": composed}.get(kind, lambda model: model)(model)
    return elrt.fuse_batch_norm(model)


def tune(model, variant, batch_size):
    """Tunes the training of a model if its variant says so; prints the chosen ways."""
    prefer, _ = tuning_of(variant)
    if prefer is not None:
        print(variant, elrt.tune_training(model, batch_size, prefer=prefer), sep="\n", flush=True)


@functools.cache
def built(name):
    """Builds the dense network once; later calls return the same one."""
    return elrt.models.build(name)


def low_rank(dense, max_macs, regularizer="dso", multiple_of=None, recompute=False, form="tucker2"):
    """Makes the low-rank twin of a model, with uniform ranks unless the format is `auto`."""
    penalty = elrt.regularizers.BY_NAME[regularizer](_STRENGTH) if regularizer else None
    plan = elrt.plan_ranks(dense, format=form, max_macs=max_macs, multiple_of=multiple_of)
    return elrt.factorize(dense, plan, factor_regularizer=penalty, recompute=recompute)


def composed(model):
    """Copies a low-rank model with new weights; the layers of the copy compose their kernels first."""

    def copied(layer):
        own = {"execution": "compose"} if isinstance(layer, elrt.layers.FactorizedLayer) else {}
        return type(layer).from_config({**layer.get_config(), **own})

    return keras.models.clone_model(model, clone_function=copied)


def thinned(name, macs):
    """Builds the dense network with all channels multiplied by the largest factor that fits the MACs."""
    low, high = 0.05, 1.0
    while high - low > 0.005:
        width = (low + high) / 2
        fits = elrt.count_costs(elrt.models.build(name, width=width)).macs <= macs
        low, high = (width, high) if fits else (low, width)
    return elrt.models.build(name, width=low)


def random_batch(model, batch_size, seed=0):
    """Returns random images and one-hot labels for a model, as arrays."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (batch_size, *model.input_shape[1:])).astype("float32")
    classes = model.output_shape[-1]
    return images, keras.utils.to_categorical(random.integers(0, classes, batch_size), classes)


def optimizer():
    """Returns the optimizer of all timed training steps."""
    return keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True)


def training_step(model, batch_size):
    """Returns a compiled function that trains one step on a fixed random batch and waits for the result.

    XLA compiles it on JAX only, as for `elrt-train` on a CPU.
    """
    images, labels = map(keras.ops.convert_to_tensor, random_batch(model, batch_size))
    model.compile(optimizer(), "categorical_crossentropy", jit_compile=keras.backend.backend() == "jax")

    def step():
        return finite(model.train_on_batch(images, labels))

    for _ in range(3):
        step()
    return step


def finite(loss):
    """Returns a loss; refuses one that is not finite."""
    if not np.isfinite(loss):
        raise ValueError(f"Expected a finite loss. Received: {loss}")
    return loss


def layer_step(size, channels, rank, *, batch_size):
    """Returns a function that runs a 3×3 convolution forward and backward: both ranks are `rank`; dense for `None`."""
    kind, options = keras.layers.Conv2D, {"padding": "same", "use_bias": False}
    if rank is not None:
        kind, options = elrt.layers.Tucker2Conv2D, {**options, "ranks": rank, "execution": "chain"}
    return step_of_layer(kind(channels, 3, **options), random_images(batch_size, size, channels))


def random_images(batch_size, size, channels):
    """Returns normally distributed images, as an array."""
    return np.random.default_rng(0).normal(size=(batch_size, size, size, channels)).astype("float32")


def step_of_layer(layer, images):
    """Returns a traced function that runs a layer forward and backward on a batch."""
    if not layer.built:
        layer.build(images.shape)
    return forward_and_backward(lambda inputs: layer(inputs, training=True), [images], layer.trainable_weights)


def forward_and_backward(function, arrays, weights=()):
    """Returns a traced function that runs `function` forward and backward for arrays and Keras weights; TensorFlow.

    The outputs serve as their own gradient. The function waits for the first number of each result.
    """
    import tensorflow as tf

    tensors = [tf.constant(array) for array in arrays]

    @tf.function
    def firsts():
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = function(*tensors)
        wanted = [*tensors, *(weight.value for weight in weights)]
        results = [outputs, *tape.gradient(outputs, wanted, outputs)]
        return [tf.reshape(result, [-1])[0] for result in results]

    def step():
        for value in firsts():
            value.numpy()

    step()
    return step
