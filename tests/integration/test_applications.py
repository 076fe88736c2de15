"""CNNs of keras.applications, with random weights: low-rank and back."""

import keras
import numpy as np
import pytest
from common import to_numpy

import elrt_keras as elrt

NAMES = ("MobileNetV2", "ResNet50", "EfficientNetB0", "ConvNeXtTiny", "VGG16")


def build(name, **kwargs):
    keras.utils.set_random_seed(0)
    return getattr(keras.applications, name)(weights=None, classifier_activation=None, **kwargs)


def images(model, size=None):
    shape = (1, *(model.input_shape[1:] if size is None else (size, size, 3)))
    return np.random.default_rng(0).uniform(0, 255, shape).astype("float32")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in NAMES])
def test_full_rank_and_back_is_the_model(name):
    model = build(name)
    plan = elrt.plan_ranks(model, fraction=1.0, break_even=False)
    low = elrt.factorize(model, plan, factor_initializer="decomposed")
    merged = elrt.merge(low)
    for weight, original in zip(merged.weights, model.weights):
        expected = to_numpy(original)
        assert np.linalg.norm(to_numpy(weight) - expected) <= 1e-5 * max(np.linalg.norm(expected), 1e-9)
    inputs = images(model)
    expected = to_numpy(model(inputs, training=False))
    scale = np.abs(expected).max()
    assert scale > 0
    for copy in (low, merged):
        # Fifty layers and more pass on each other's rounding.
        np.testing.assert_allclose(to_numpy(copy(inputs, training=False)) / scale, expected / scale, atol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["uniform", "energy"])
def test_a_mobile_model_at_lower_ranks(method, tmp_path):
    model = build("MobileNetV2", input_shape=(96, 96, 3), alpha=0.5)
    plan = elrt.plan_ranks(model, max_macs=0.7, method=method)
    low = elrt.factorize(model, plan, factor_initializer="decomposed")
    assert 0.68 <= elrt.count_costs(low).macs / elrt.count_costs(model).macs <= 0.7
    inputs = images(model)
    outputs = to_numpy(low(inputs, training=False))
    low.save(tmp_path / "low.keras")
    for twin in (keras.models.load_model(tmp_path / "low.keras"), elrt.expand(low), elrt.merge(low)):
        found = to_numpy(twin(inputs, training=False))
        np.testing.assert_allclose(found, outputs, atol=1e-4 * np.abs(outputs).max())


class Squeeze(keras.layers.Layer):
    """A block in the style of other packages: layers as attributes, no weights of its own."""

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.down = keras.layers.Conv2D(channels, 3, padding="same", activation="relu", name="down")
        self.norm = keras.layers.BatchNormalization(name="norm")
        self.up = keras.layers.Conv2D(channels, 3, padding="same", name="up")

    def build(self, input_shape):
        self.down.build(input_shape)
        shape = self.down.compute_output_shape(input_shape)
        self.norm.build(shape)
        self.up.build(shape)
        self.built = True

    def call(self, inputs, training=None):
        return keras.ops.relu(inputs + self.up(self.norm(self.down(inputs), training=training)))

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


class Scaled(Squeeze):
    """A block that cannot be opened: a graph of its layers would lose its own weight."""

    def build(self, input_shape):
        super().build(input_shape)
        self.scale = self.add_weight(shape=(1,), initializer="ones", name="scale")

    def call(self, inputs, training=None):
        return self.scale * super().call(inputs, training)


@pytest.mark.thorough
def test_layers_inside_custom_blocks(tmp_path):
    inputs = keras.Input((8, 8, 16))
    x = Scaled(16, name="closed")(Squeeze(16, name="second")(Squeeze(16, name="first")(inputs)))
    model = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="last")(x))
    plan = elrt.plan_ranks(model, fraction=0.5, exclude=["last"])
    assert list(plan.factorized()) == ["first/down", "first/up", "second/down", "second/up"]
    values = np.random.default_rng(0).standard_normal((2, 8, 8, 16)).astype("float32")
    full = elrt.factorize(model, {"first/up": ("tucker2", 1.0)}, factor_initializer="decomposed")
    assert type(full.get_layer("second")) is Squeeze and type(full.get_layer("closed")) is Scaled
    np.testing.assert_allclose(to_numpy(full(values)), to_numpy(model(values)), atol=1e-4)
    low = elrt.factorize(model, plan)
    outputs = to_numpy(low(values))
    assert elrt.count_costs(low).macs < elrt.count_costs(model).macs
    low.save(tmp_path / "m.keras")
    revived = keras.models.load_model(tmp_path / "m.keras", custom_objects={"Scaled": Scaled})
    for twin in (revived, elrt.merge(low), elrt.expand(low)):
        np.testing.assert_allclose(to_numpy(twin(values)), outputs, atol=1e-4)
    with pytest.raises(ValueError, match="lacks.*closed/up"):
        elrt.factorize(model, {"closed/up": ("tucker2", 4)})
    # Batch-norm inside a block still follows `training`.
    assert np.abs(to_numpy(low(values, training=True)) - outputs).max() > 1e-3
