"""The networks that are compared, on random images: dense, low-rank, thinned, and chains as stock layers."""

import functools
import statistics
import time

import keras
import numpy as np

import elrt_keras as elrt

# Builders that are measured, and the batch each is trained on.
BATCHES = {"resnet20": 128, "resnet56": 128, "vgg16_cifar": 128, "resnet18": 16, "resnet50": 16}
BUDGETS = (0.5, 0.4, 0.25)
STRENGTH = 0.01  # of double soft orthogonality, the default of elrt-train
NAMES = (
    "dense",
    *(f"low_rank_{budget}" for budget in BUDGETS),
    "without_penalty_0.4",
    "stock_layers_0.4",
    "recomputed_0.4",
    "unfused_1.0",
    "unfused_0.4",
    *(f"thin_{budget}" for budget in BUDGETS),
)

# Kinds of variants with the penalty, and how their layers are made.
_OPTIONS = {"low_rank": {}, "recomputed": {"recompute": True}, "composed": {}}


def make(name, variant):
    """The builder `name` as one of `NAMES`, or `composed_` and a budget.

    `low_rank` is what a user gets: uniform Tucker-2 ranks and ELRT's penalty. `stock_layers` is the same chain as three
    `Conv2D`, without the penalty, as is `without_penalty`. `recomputed` is `low_rank` with `recompute=True`, `composed`
    with `execution="compose"`: a dense convolution by the kernel that the factors make. `thin` is the dense network
    with fewer channels. Batch-norm is fused in all but `unfused`: the dense network (1.0) or a
    low-rank one as Keras runs it.
    """
    kind, _, budget = variant.rpartition("_")
    if variant == "unfused_1.0":
        return elrt.models.build(name)
    if kind == "unfused":
        return low_rank(built(name), float(budget))
    return elrt.fuse_batch_norm(_made(name, variant, kind, budget))


def _made(name, variant, kind, budget):
    dense = built(name)
    if variant == "dense":
        return dense
    if kind in _OPTIONS:
        model = low_rank(dense, float(budget), **_OPTIONS[kind])
        return composed(model) if kind == "composed" else model
    if kind == "thin":
        return thinned(name, elrt.count_costs(make(name, f"without_penalty_{budget}")).macs)
    plain = low_rank(dense, float(budget), regularizer=None)
    return elrt.expand(plain) if kind == "stock_layers" else plain


@functools.cache
def built(name):
    """The builder's dense network, made once."""
    return elrt.models.build(name)


def low_rank(dense, max_macs, regularizer="dso", multiple_of=None, **options):
    """The low-rank twin of a model at uniform Tucker-2 ranks."""
    penalty = elrt.regularizers.BY_NAME[regularizer](STRENGTH) if regularizer else None
    plan = elrt.plan_ranks(dense, max_macs=max_macs, multiple_of=multiple_of)
    return elrt.factorize(dense, plan, factor_regularizer=penalty, **options)


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


def in_order(results):
    """The results `{builder: result}` of the models that are measured, as a list in the order of `BATCHES`."""
    return [results[name] for name in BATCHES if name in results]


def random_batch(model, batch_size, seed=0):
    """Random images and one-hot labels for a model, as arrays."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (batch_size, *model.input_shape[1:])).astype("float32")
    classes = model.output_shape[-1]
    return images, keras.utils.to_categorical(random.integers(0, classes, batch_size), classes)


def training_step(model, batch_size, jit_compile=None, seed=0):
    """A function that trains one step on a fixed random batch and returns when it is done; already compiled.

    `jit_compile` is by default what `elrt-train` takes: XLA on JAX alone.
    """
    if jit_compile is None:
        jit_compile = keras.backend.backend() == "jax"
    images, labels = random_batch(model, batch_size, seed)
    optimizer = keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True)
    model.compile(optimizer, "categorical_crossentropy", jit_compile=jit_compile)
    images, labels = keras.ops.convert_to_tensor(images), keras.ops.convert_to_tensor(labels)

    def step():
        return model.train_on_batch(images, labels)

    for _ in range(3):
        loss = step()
    if not np.isfinite(loss):
        raise ValueError(f"Expected a finite loss. Received: {loss}")
    return step


def layer_step(size, channels, rank, dense=False, *, batch_size):
    """A function that runs a 3×3 convolution C → C forward and backward; the low-rank one has ranks (r, r)."""
    options = {"padding": "same", "use_bias": False}
    layer = (
        keras.layers.Conv2D(channels, 3, **options)
        if dense
        else elrt.layers.Tucker2Conv2D(channels, 3, ranks=rank, execution="chain", **options)
    )
    images = keras.ops.convert_to_tensor(np.random.default_rng(0).normal(size=(batch_size, size, size, channels)))
    return forward_and_backward(layer, keras.ops.cast(images, "float32"))


def forward_and_backward(layer, images):
    """A function that runs a layer forward and backward on a batch; already traced."""
    import tensorflow as tf

    layer.build(images.shape)

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = layer(images, training=True)
        wanted = [images, *(weight.value for weight in layer.trainable_weights)]
        return [tf.reduce_max(gradient) for gradient in tape.gradient(outputs, wanted, outputs)]

    def step():
        for value in gradients():
            value.numpy()

    step()
    return step


def interleaved(functions, rounds, show=print):
    """Seconds of each function, `{name: [one per round]}`; they take turns, in another order each round."""
    seconds = {name: [] for name in functions}
    order = np.random.default_rng(0)
    for number in range(rounds):
        for name in order.permutation(list(functions)):
            start = time.perf_counter()
            functions[name]()
            seconds[name].append(round(time.perf_counter() - start, 6))
        show(f"round {number + 1}/{rounds}", flush=True)
    return seconds


def ratios(seconds, base):
    """`{name: (median, lower quartile, upper quartile)}` of how many times faster than `base`, round by round."""
    return {name: _quartiles(np.array(seconds[base]) / np.array(values)) for name, values in seconds.items()}


def _quartiles(values):
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, low, high
