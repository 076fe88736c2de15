"""State that copies of a model keep beside weights and arguments: functions, tables, statistics, activation weights."""

import functools

import keras
import numpy as np
import pytest
from common import random_array, randomized, to_numpy

import elrt_keras as elrt

layers = keras.layers


def test_an_adapted_normalization_keeps_its_statistics():
    images = random_array(8, 6, 6, 3) * 5 + 40
    norm = layers.Normalization(name="norm")
    norm.adapt(images)
    model = keras.Sequential([keras.Input((6, 6, 3)), norm, layers.Conv2D(4, 3, name="a")])
    low_rank = elrt.factorize(model, {"a": ("tucker2", 1.0)}, factor_initializer="decomposed")
    for copy in (low_rank, elrt.merge(low_rank), elrt.expand(low_rank)):
        np.testing.assert_allclose(to_numpy(copy(images)), to_numpy(model(images)), atol=1e-4)


@pytest.mark.tensorflow
def test_adapted_tables_stay():
    lookup, bins = layers.IntegerLookup(output_mode="one_hot"), layers.Discretization(num_bins=3, output_mode="one_hot")
    lookup.adapt(np.array([7, 7, 9, 11]))
    bins.adapt(np.linspace(0, 1, 50)[:, None])
    month, price = keras.Input((1,), dtype="int64"), keras.Input((1,))
    joined = layers.Concatenate()([lookup(month), bins(price)])
    model = keras.Model([month, price], layers.Dense(4, name="a")(joined))
    inputs = [np.array([[9], [11], [5]]), np.array([[0.1], [0.5], [0.9]])]
    low_rank = elrt.factorize(model, {"a": ("svd", 1.0)}, factor_initializer="decomposed")
    for copy in (low_rank, elrt.merge(low_rank)):
        np.testing.assert_allclose(to_numpy(copy(inputs)), to_numpy(model(inputs)), atol=1e-5)


@pytest.mark.tensorflow
def test_an_adapted_vocabulary_stays():
    import tensorflow as tf

    words = layers.TextVectorization(max_tokens=20, output_sequence_length=4)
    words.adapt(tf.constant(["the cat sat", "a dog ran"]))
    inputs = keras.Input((1,), dtype="string")
    model = keras.Model(inputs, layers.Conv1D(6, 3, name="a")(layers.Embedding(20, 8)(words(inputs))))
    text = tf.constant([["the dog"], ["a cat sat"]])
    low_rank = elrt.factorize(model, {"a": ("tucker2", 1.0)}, factor_initializer="decomposed")
    for copy in (low_rank, elrt.merge(low_rank)):
        np.testing.assert_allclose(to_numpy(copy(text)), to_numpy(model(text)), atol=1e-5)


@pytest.mark.backends
def test_inputs_without_names_keep_those_that_keras_gave_them():
    images, mask, inner = keras.Input((8, 8, 3)), keras.Input((8, 8, 4), optional=True), keras.Input((8, 8, 4))
    nested = keras.Model(inner, layers.Conv2D(4, 3, padding="same", name="b")(inner), name="nested")
    outputs = nested(layers.Conv2D(4, 3, padding="same", name="a")(images))
    model = keras.Model([images, mask], outputs + mask)
    low_rank = elrt.factorize(model, {"a": ("svd", 2), "nested/b": ("svd", 2)})
    for copy in (low_rank, elrt.merge(low_rank), elrt.expand(low_rank), elrt.shrink(low_rank, max_macs=0.9)):
        for one, other in ((model, copy), (model.get_layer("nested"), copy.get_layer("nested"))):
            kept, names = ([n.name for n in m.layers if isinstance(n, layers.InputLayer)] for m in (one, other))
            assert kept == names and [x.name for x in one.inputs] == [x.name for x in other.inputs]
        is_optional = {layer.name: layer.optional for layer in copy.layers if isinstance(layer, layers.InputLayer)}
        assert sorted(is_optional.values()) == [False, True] and is_optional[mask._keras_history.operation.name]


class Doubled:
    """An activation that is an object."""

    def __call__(self, x):
        return 2 * keras.ops.tanh(x)

    def method(self, x):
        return keras.ops.tanh(x) - 1


def own_functions():
    """Returns activations of the backend itself, whose types differ from Python functions."""
    if keras.backend.backend() == "jax":
        import jax

        return [jax.nn.relu, jax.numpy.tanh]
    if keras.backend.backend() == "torch":
        import torch

        return [torch.tanh, torch.relu]
    import tensorflow as tf

    return [tf.nn.relu, tf.tanh]


def test_activations_that_are_no_functions_of_python():
    partial = functools.partial(keras.activations.leaky_relu, negative_slope=0.3)
    for activation in (partial, Doubled(), Doubled().method, *own_functions()):
        model = keras.Sequential(
            [
                keras.Input((6, 6, 4)),
                layers.Conv2D(4, 3, activation=activation, name="a"),
                layers.Conv2D(4, 3, activation=activation, name="b"),
                layers.Reshape((4, 4)),
                layers.GRU(3, activation="relu"),
            ]
        )
        low_rank = elrt.factorize(model, {"a": ("tucker2", 1.0)}, factor_initializer="decomposed")
        images = random_array(2, 6, 6, 4)
        for copy in (low_rank, elrt.merge(low_rank), elrt.expand(low_rank)):
            np.testing.assert_allclose(to_numpy(copy(images)), to_numpy(model(images)), atol=1e-4)
        assert model.get_layer("b").activation is activation


@keras.saving.register_keras_serializable("test_copied_state")
class FixedActivation(layers.Layer):
    """Keeps a function as `activation` that has no constructor argument."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.activation = keras.activations.gelu

    def call(self, inputs):
        return self.activation(inputs)


@keras.saving.register_keras_serializable("test_copied_state")
class OtherArgument(FixedActivation):
    """Takes the function by another argument; its argument `activation` means something else."""

    def __init__(self, function="relu", activation=None, **kwargs):
        super().__init__(**kwargs)
        self.activation, self.other = keras.activations.get(function), activation

    def get_config(self):
        return {**super().get_config(), "function": keras.activations.serialize(self.activation)}


@keras.saving.register_keras_serializable("test_copied_state")
class AppliedTwice(FixedActivation):
    """Makes another function of its argument."""

    def __init__(self, activation="relu", **kwargs):
        super().__init__(**kwargs)
        self.given, once = activation, keras.activations.get(activation)
        self.activation = lambda x: once(once(x))

    def get_config(self):
        return {**super().get_config(), "activation": self.given}


@keras.saving.register_keras_serializable("test_copied_state")
class SwishDense(layers.Dense):
    """A stock layer with its activation fixed."""

    def __init__(self, units, **kwargs):
        super().__init__(units, activation="silu", **kwargs)

    def get_config(self):
        return {name: value for name, value in super().get_config().items() if name != "activation"}


@pytest.mark.parametrize("make", [FixedActivation, lambda: OtherArgument("tanh"), lambda: AppliedTwice("tanh")])
def test_custom_layers_keep_activations_that_are_no_arguments(make):
    custom = [make(), SwishDense(5)]
    model = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(4, 3, name="a"), *custom])
    low_rank = elrt.factorize(model, {"a": ("tucker2", 1.0)}, factor_initializer="decomposed")
    images = random_array(2, 6, 6, 4)
    for copy in (low_rank, elrt.merge(low_rank), elrt.expand(low_rank)):
        np.testing.assert_allclose(to_numpy(copy(images)), to_numpy(model(images)), atol=1e-4)
        assert [type(layer) for layer in copy.layers[-2:]] == [type(layer) for layer in custom]


class Counting(keras.Sequential):
    """A model that overrides the computation of the loss."""

    def compute_loss(self, *args, **kwargs):
        return 7.0 + 0.0 * super().compute_loss(*args, **kwargs)


def test_subclasses_of_sequential_stay():
    model = Counting([keras.Input((6, 6, 4)), layers.Conv2D(4, 3, name="a"), layers.GlobalAveragePooling2D()], name="m")
    low_rank = elrt.factorize(model, {"a": ("tucker2", 2)})
    images = random_array(2, 6, 6, 4)
    for copy in (low_rank, elrt.merge(low_rank), elrt.expand(low_rank)):
        assert type(copy) is Counting and copy.name == "m"
        copy.compile("sgd", "mse")
        assert copy.evaluate(images, np.zeros((2, 4)), verbose=0) == 7.0
        assert [layer.name for layer in copy.layers][-1] == model.layers[-1].name


def doubled_tanh(x):
    """Activation that Keras cannot find by its name."""
    return 2 * keras.ops.tanh(x)


@pytest.mark.parametrize("activation", [doubled_tanh, lambda x: keras.ops.relu(x) - 1], ids=["function", "lambda"])
@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_functions_that_keras_cannot_load_stay(activation):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            layers.Conv2D(4, 3, activation=activation, name="a"),
            layers.Lambda(lambda x: 3 * x),
            layers.Conv2D(4, 3, activation=activation, name="b"),
        ]
    )
    images = random_array(2, 6, 6, 4)
    low_rank = elrt.factorize(model, {"a": ("tucker2", 1.0)}, factor_initializer="decomposed")
    assert low_rank.get_layer("a").activation is activation
    for copy in (low_rank, elrt.merge(low_rank), elrt.expand(low_rank)):
        np.testing.assert_allclose(to_numpy(copy(images)), to_numpy(model(images)), atol=1e-4)
    cheaper = elrt.factorize(model, {"a": ("tucker2", 2)})
    shrunk = elrt.shrink(cheaper, max_macs=1.0)  # which it is within already
    np.testing.assert_allclose(to_numpy(shrunk(images)), to_numpy(cheaper(images)), atol=1e-4)


@pytest.mark.tensorflow
def test_a_frozen_layer_stays_frozen_as_a_low_rank_one():
    frozen = [layers.Conv2D(6, 3, trainable=False, name="conv"), layers.Dense(4, trainable=False, name="dense")]
    model = keras.Sequential([keras.Input((6, 6, 4)), *frozen, layers.Conv2D(4, 3, name="free")])
    low_rank = elrt.factorize(model, {"conv": ("tucker2", 2), "dense": ("svd", 2), "free": ("tucker2", 2)})
    for copy in (low_rank, elrt.merge(low_rank), elrt.shrink(low_rank, max_macs=1.0)):
        assert [copy.get_layer(name).trainable for name in ("conv", "dense", "free")] == [False, False, True]


def test_models_made_frozen_stay_so():
    inputs = keras.Input((6, 6, 4))
    inner = keras.Model(inputs, layers.Conv2D(4, 3, name="a")(inputs), name="inner", trainable=False)
    outer = keras.Model(inputs, layers.Flatten()(inner(inputs)), trainable=False)
    low_rank = elrt.factorize(outer, {"inner/a": ("tucker2", 2)})
    for copy in (low_rank, elrt.merge(low_rank), elrt.expand(low_rank), elrt.shrink(low_rank, max_macs=1.0)):
        assert not copy.trainable_weights and not copy.get_layer("inner").trainable
        assert copy.get_layer("inner").layers[-1].trainable  # as in the original, whose flag is its own


@pytest.mark.backends
@pytest.mark.parametrize("name", ["tucker2", "svd"])
def test_an_activation_with_weights_keeps_them(name):
    dense = keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            layers.Conv2D(4, 3, activation=layers.PReLU(), name="a"),
            layers.Dense(3, activation=layers.PReLU(), name="b"),
        ]
    )
    model = randomized(dense)
    images = random_array(2, 6, 6, 4)
    low_rank = elrt.factorize(model, {"a": (name, 1.0), "b": ("svd", 1.0)}, factor_initializer="decomposed")
    for copy in (low_rank, elrt.merge(low_rank), elrt.expand(low_rank)):
        np.testing.assert_allclose(to_numpy(copy(images)), to_numpy(model(images)), atol=1e-4)
    cheaper = elrt.factorize(model, {"a": (name, 2)})
    shrunk = elrt.shrink(cheaper, max_macs=1.0)  # which it is within already
    np.testing.assert_allclose(to_numpy(shrunk(images)), to_numpy(cheaper(images)), atol=1e-4)
    twin = elrt.layers.LowRankDense.from_dense(model.get_layer("b"), 1.0)
    inputs = random_array(2, 4, 4, 4)
    np.testing.assert_allclose(to_numpy(twin(inputs)), to_numpy(model.get_layer("b")(inputs)), atol=1e-4)


class Closed(layers.Layer):
    """A layer with sublayers and a weight of its own; its configuration does not say which part is frozen."""

    def __init__(self, **options):
        super().__init__(**options)
        self.norm, self.dense = layers.BatchNormalization(), layers.Dense(4)
        self.gain = self.add_weight(shape=(), name="gain")

    def build(self, shape):
        self.norm.build(shape)
        self.dense.build(shape)
        self.built = True

    def call(self, inputs):
        return self.dense(self.norm(inputs)) * self.gain

    def get_config(self):
        return {"name": self.name}


def freeze_attention(layer):
    layer.query_dense.trainable = False


def freeze_variable(layer):
    layer.gain.trainable = False


def freeze_part(layer):
    layer.norm.trainable = False


def freeze_all_but_one(layer):
    layer.trainable = False
    layer.dense.trainable = True


def freeze(layer):
    layer.trainable = False


@pytest.mark.backends
@pytest.mark.parametrize(
    "make, freeze_in",
    [
        *[(Closed, change) for change in (freeze, freeze_part, freeze_variable, freeze_all_but_one)],
        (lambda **options: layers.MultiHeadAttention(2, 3, **options), freeze_attention),
    ],
)
def test_what_is_frozen_in_a_layer_that_is_copied_stays_frozen(make, freeze_in):
    inputs = keras.Input((6, 8))
    x, layer = layers.Conv1D(8, 3, name="body")(inputs), make(name="closed")
    outputs = layer(x, x) if isinstance(layer, layers.MultiHeadAttention) else layer(x)
    model = keras.Model(inputs, outputs)
    freeze_in(layer)
    low = elrt.factorize(model, {"body": ("svd", 3)})
    for twin in (low, elrt.merge(low), elrt.expand(low)):
        copy = twin.get_layer("closed")
        assert copy is not layer
        assert [w.trainable for w in copy.variables] == [w.trainable for w in layer.variables]
        trained = [[any(w is one for one in part.trainable_weights) for w in part.weights] for part in (layer, copy)]
        assert trained[0] == trained[1]


@pytest.mark.tensorflow
def test_numbers_that_a_configuration_forgets_stay():
    model = keras.Sequential([keras.Input((6, 8)), layers.Conv1D(8, 3, name="body"), layers.Dense(4, name="head")])
    head = model.get_layer("head")
    head.enable_lora(2, lora_alpha=8)
    head.lora_kernel_b.assign(np.ones(head.lora_kernel_b.shape))
    low = elrt.factorize(model, {"body": ("svd", 8)}, factor_initializer="decomposed")
    x = random_array(2, 6, 8)
    np.testing.assert_allclose(to_numpy(low(x)), to_numpy(model(x)), atol=1e-4)
    assert low.get_layer("head").lora_alpha == 8
