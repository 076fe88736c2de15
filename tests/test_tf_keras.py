"""Keras 3 models in tf_keras: the same outputs, weights and names; layers that tf_keras lacks are refused."""

import keras
import numpy as np
import pytest
from common import thorough_but

import elrt_keras as elrt

pytestmark = pytest.mark.tensorflow
tf_keras = pytest.importorskip("tf_keras")
pytest.importorskip("tensorflow_model_optimization")
export = elrt.export


def images(*shape, seed=4):
    return np.random.default_rng(seed).uniform(0, 255, shape).astype("float32")


def low_rank(name, shape, **options):
    dense = elrt.models.build(name, input_shape=shape, classes=6, **options)
    return elrt.factorize(dense, elrt.plan_ranks(dense, max_macs=0.7))


def every_kind_of_layer():
    """Builds branches, shared layers, a nested model, operators, dilation, strides, groups, depthwise, activations."""
    layers = keras.layers
    nested = keras.Sequential([keras.Input((10, 10, 8)), layers.Conv2D(8, 3, padding="same"), layers.LeakyReLU(0.1)])
    shared = layers.Conv2D(8, 3, padding="same", activation="relu", dilation_rate=2, name="shared")
    inputs = keras.Input((10, 10, 3))
    x = shared(layers.Conv2D(8, 1, name="first")(inputs))
    x = layers.Concatenate()([shared(x), nested(x)])
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=1)(x)
    x = x + layers.Conv2D(16, 3, groups=2, padding="same")(y)
    x = layers.SeparableConv2D(8, 3, strides=2)(layers.ZeroPadding2D(((1, 0), (0, 1)))(x))
    x = layers.PReLU()(layers.BatchNormalization(epsilon=1e-2, center=False)(x))
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D(keepdims=True)(x))
    return keras.Model(inputs, layers.Dense(6, activation="softmax")(layers.Flatten()(x)))


MODELS = {
    "resnet20": lambda: low_rank("resnet20", (16, 16, 3)),
    "dense resnet50": lambda: elrt.models.build("resnet50", input_shape=(32, 32, 3), classes=6),
    "mobilenet_v2": lambda: low_rank("mobilenet_v2", (32, 32, 3)),
    "vgg16_cifar": lambda: low_rank("vgg16_cifar", (32, 32, 3), normalization=([120.0, 110, 100], [50.0, 60, 70])),
    "every kind of layer": every_kind_of_layer,
}


@pytest.mark.parametrize("name", thorough_but(("every kind of layer",), MODELS))
def test_outputs_weights_and_names_are_those_of_keras(name):
    keras.utils.set_random_seed(1)
    model = MODELS[name]()
    # Set statistics and offsets that differ from those of new layers, so that exchanged values would show.
    random = np.random.default_rng(5)
    model.set_weights([w + random.uniform(0, 0.2, w.shape) * (1 if w.ndim == 1 else 0) for w in model.get_weights()])
    legacy = export.to_tf_keras(model)
    assert isinstance(legacy, tf_keras.Model) and legacy.name == model.name
    x = images(3, *model.input_shape[1:])
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(legacy.predict(x, verbose=0), expected, atol=1e-5 * max(1, np.abs(expected).max()))
    assert legacy.count_params() == model.count_params()
    names = {layer.name for layer in legacy.layers}
    stock = {layer.name for layer in model.layers if type(layer) in (keras.layers.Conv2D, keras.layers.Dense)}
    assert stock <= names


def test_what_tf_keras_lacks_is_named():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.Flatten()(keras.ops.exp(inputs)))
    with pytest.raises(ValueError, match="Received: keras.ops, Exp"):
        export.to_tf_keras(model)
    model = keras.Model(inputs, keras.ops.maximum(inputs, 0.5))
    with pytest.raises(ValueError, match="Received: keras.ops, Maximum"):
        export.to_tf_keras(model)
    model = keras.Sequential([inputs, keras.layers.RMSNormalization(name="norm")])
    with pytest.raises(ValueError, match="Received: 'norm', a RMSNormalization"):
        export.to_tf_keras(model)
    model = keras.Sequential([inputs, keras.layers.Lambda(lambda x: 2 * x, name="twice")])
    with pytest.raises(ValueError, match="Expected layers that tf_keras can make. Received: 'twice', a Lambda"):
        export.to_tf_keras(model)
    model = keras.Sequential([inputs, keras.layers.Conv2D(2, 3, activation="hard_sigmoid", name="gate")])
    with pytest.raises(ValueError, match="that are equal in tf_keras. Received: 'gate', 'hard_sigmoid'"):
        export.to_tf_keras(model)


def test_custom_blocks_are_unfolded():
    class Block(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.conv = elrt.layers.Tucker2Conv2D(4, 3, ranks=2, padding="same", name="conv")

        def build(self, input_shape):
            self.conv.build(input_shape)

        def call(self, x):
            return x + self.conv(x)

    model = keras.Sequential([keras.Input((8, 8, 4)), Block(name="block"), keras.layers.Flatten()])
    legacy = export.to_tf_keras(model)
    assert {"conv_factor_in", "conv_core", "conv"} <= {layer.name for layer in legacy.layers}


def test_names_that_nested_models_share_are_numbered():
    def nested(name):
        layers = [keras.Input((8, 8, 4)), keras.layers.Conv2D(4, 3, padding="same", name="conv")]
        return keras.Sequential([*layers, keras.layers.BatchNormalization(name="norm")], name=name)

    model = keras.Sequential([keras.Input((8, 8, 4)), nested("a"), nested("b"), nested("c"), keras.layers.Flatten()])
    legacy = export.to_tf_keras(model)  # which compares the outputs
    assert [layer.name for layer in legacy.layers[1:-1]] == ["conv", "norm", "conv_1", "norm_1", "conv_2", "norm_2"]
    assert isinstance(export.prune(model), tf_keras.Model)


@pytest.mark.parametrize(
    "operate",
    [
        lambda x: 0.5 * x,
        lambda x: x + 1,
        lambda x: 1.5 - x,
        lambda x: x - np.float32(3),
        lambda x: keras.ops.concatenate([x, 2 * x], axis=1),
        lambda x: keras.ops.maximum(x, x - 1),
    ],
)
def test_operations_with_numbers_and_along_axes(operate):
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, operate(keras.layers.Conv2D(4, 3, name="conv")(inputs)))
    legacy = export.to_tf_keras(model)
    x = images(2, 6, 6, 3)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(legacy.predict(x, verbose=0), expected, atol=1e-5 * np.abs(expected).max())


def test_operations_and_layers_that_compute_the_same_have_names_of_their_own():
    """Uses layers without a name: tf_keras numbers them itself, and from the start in a new session."""
    tf_keras.backend.clear_session()
    inputs = keras.Input((6, 6, 4))
    x = keras.layers.Rescaling(0.5, name="rescaling")(inputs) * 0.25
    model = keras.Model(inputs, keras.layers.Add(name="add")([x, inputs]) + x)
    legacy = export.to_tf_keras(model)  # which compares the outputs
    assert {"rescaling", "add"} < {layer.name for layer in legacy.layers}


def test_small_numbers_where_pixels_go_too_far():
    """Uses small inputs: `exp` of a pixel is infinite in float32, and 162 is not one of fifty words."""
    layers = keras.layers
    model = keras.Sequential([keras.Input((4, 4, 3)), layers.Conv2D(4, 3, activation="exponential"), layers.Flatten()])
    model.set_weights([10 + np.zeros((3, 3, 3, 4)), np.zeros(4)])
    words = keras.Sequential([keras.Input((20,), dtype="int32"), layers.Embedding(50, 8), layers.Conv1D(8, 3)])
    assert isinstance(export.to_tf_keras(words), tf_keras.Model)
    with pytest.raises(ValueError, match="finite outputs on random inputs from 0 to 1. Received: NaN or infinity"):
        export.to_tf_keras(model)
    model.set_weights([np.ones((3, 3, 3, 4)), np.zeros(4)])
    assert isinstance(export.prune(model), tf_keras.Model)
