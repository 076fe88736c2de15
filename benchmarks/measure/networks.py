"""The networks that are compared, on random images: dense, low-rank, thinned, and chains as stock layers."""

import functools

import keras
import numpy as np

import elrt_keras as elrt
from benchmarks.measure.variants import FORMATS, tuning_of

_STRENGTH = 0.01  # of double soft orthogonality, the default of elrt-train


def make(name, variant):
    """The builder `name` as one of `variants.NAMES`, or `composed_` and a budget.

    `low_rank` is what a user gets: uniform Tucker-2 ranks and ELRT's penalty. `stock_layers` is the same chain as three
    `Conv2D`, without the penalty, as is `without_penalty`.
    A format's name, or `auto`, is `low_rank` in it. `recomputed` is `low_rank` with `recompute=True`, `composed`
    with `execution="compose"`: a dense convolution by the kernel that the factors make. `thin` is the dense network
    with fewer channels. `tuned_` or `frugal_` in front is the same model, for `tune`. Batch-norm is fused in all but
    `unfused`: the dense network (1.0) or a low-rank one as Keras runs it.
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
        # Its ranks are few: multiples of 8 do not reach the smaller budgets.
        multiple_of = 4 if form == "svd" else None
        options = {"multiple_of": multiple_of, "recompute": kind == "recomputed", "form": form}
        model = low_rank(dense, float(budget), penalty, **options)
        model = {"stock_layers": elrt.expand, "composed": composed}.get(kind, lambda model: model)(model)
    return elrt.fuse_batch_norm(model)


def tune(model, variant, batch_size):
    """Has a model train as its variant is tuned; prints what was chosen."""
    prefer, _ = tuning_of(variant)
    if prefer is not None:
        print(variant, elrt.tune_training(model, batch_size, prefer=prefer), sep="\n", flush=True)


@functools.cache
def built(name):
    """The builder's dense network, made once."""
    return elrt.models.build(name)


def low_rank(dense, max_macs, regularizer="dso", multiple_of=None, recompute=False, form="tucker2"):
    """The low-rank twin of a model, at uniform ranks unless the format is `auto`."""
    penalty = elrt.regularizers.BY_NAME[regularizer](_STRENGTH) if regularizer else None
    plan = elrt.plan_ranks(dense, format=form, max_macs=max_macs, multiple_of=multiple_of)
    return elrt.factorize(dense, plan, factor_regularizer=penalty, recompute=recompute)


def composed(model):
    """The same low-rank model with new weights, whose layers compose their kernels first."""

    def copied(layer):
        own = {"execution": "compose"} if isinstance(layer, elrt.layers.FactorizedLayer) else {}
        return type(layer).from_config({**layer.get_config(), **own})

    return keras.models.clone_model(model, clone_function=copied)


def thinned(name, macs):
    """The builder's dense network with all channels multiplied by one number, the largest that fits the MACs."""
    low, high = 0.05, 1.0
    while high - low > 0.005:
        width = (low + high) / 2
        fits = elrt.count_costs(elrt.models.build(name, width=width)).macs <= macs
        low, high = (width, high) if fits else (low, width)
    return elrt.models.build(name, width=low)


def random_batch(model, batch_size, seed=0):
    """Random images and one-hot labels for a model, as arrays."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (batch_size, *model.input_shape[1:])).astype("float32")
    classes = model.output_shape[-1]
    return images, keras.utils.to_categorical(random.integers(0, classes, batch_size), classes)


def optimizer():
    """The optimizer of all training steps that are timed."""
    return keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True)


def training_step(model, batch_size):
    """A function that trains one step on a fixed random batch and returns when it is done; already compiled.

    XLA compiles it where it does so for `elrt-train` on a CPU: on JAX alone.
    """
    images, labels = map(keras.ops.convert_to_tensor, random_batch(model, batch_size))
    model.compile(optimizer(), "categorical_crossentropy", jit_compile=keras.backend.backend() == "jax")

    def step():
        return finite(model.train_on_batch(images, labels))

    for _ in range(3):
        step()
    return step


def finite(loss):
    """A loss; raises a ValueError for one that is not finite."""
    if not np.isfinite(loss):
        raise ValueError(f"Expected a finite loss. Received: {loss}")
    return loss


def layer_step(size, channels, rank, *, batch_size):
    """A function that runs a 3×3 convolution forward and backward: low-rank, both ranks equal, or dense for `None`."""
    kind, options = keras.layers.Conv2D, {"padding": "same", "use_bias": False}
    if rank is not None:
        kind, options = elrt.layers.Tucker2Conv2D, {**options, "ranks": rank, "execution": "chain"}
    return step_of_layer(kind(channels, 3, **options), random_images(batch_size, size, channels))


def random_images(batch_size, size, channels):
    """Normal numbers in the shape of images, as an array."""
    return np.random.default_rng(0).normal(size=(batch_size, size, size, channels)).astype("float32")


def step_of_layer(layer, images):
    """A function that runs a layer forward and backward on a batch; already traced."""
    if not layer.built:
        layer.build(images.shape)
    return forward_and_backward(lambda inputs: layer(inputs, training=True), [images], layer.trainable_weights)


def forward_and_backward(function, arrays, weights=()):
    """A function that runs another one forward and backward, for arrays and Keras weights; traced. TensorFlow alone.

    The outputs are their own gradient. It returns when the first number of each result is there.
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
