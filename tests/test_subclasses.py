"""Subclasses of Functional and Sequential: conversions keep the class and its additions, or refuse it by name."""

import keras
import numpy as np
import pytest
from common import random_array, to_numpy

import elrt_keras as elrt

layers = keras.layers
CONV = {"body": ("tucker2", 1.0)}


class Counted(keras.Model):
    """A constructor without arguments and a loss of its own."""

    def __init__(self):
        inputs = keras.Input((6, 6, 4))
        body = layers.Conv2D(8, 3, name="body")
        x = body(inputs)
        super().__init__(inputs, layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(x)), name="counted")
        self.body, self.levels = body, {"early": x}
        self.chain = [self.body, ("note", self.layers[-1])]
        self.temperature = 3.0
        self.gain = self.add_weight(shape=(2,), name="gain", initializer="ones", trainable=False)
        self.tracker = keras.metrics.Mean(name="tracker")
        self.preprocessor = layers.Rescaling(1 / 255)

    def compute_loss(self, *args, **kwargs):
        return 7.0 + 0.0 * super().compute_loss(*args, **kwargs)

    def scaled(self, inputs):
        return self(self.preprocessor(inputs)) / self.temperature * self.gain


def conversions(model, plan=None):
    """Runs all four conversions: `{name: copy}`."""
    low = elrt.factorize(model, plan or CONV, factor_initializer="decomposed")
    return {
        "factorize": low,
        "merge": elrt.merge(low),
        "expand": elrt.expand(low),
        "shrink": elrt.shrink(low, max_params=1.0),
    }


@pytest.mark.backends
def test_the_class_and_what_it_adds_stay():
    model = Counted()
    model.gain.assign([2.0, 5.0])
    images = random_array(2, 6, 6, 4)
    for name, copy in conversions(model).items():
        assert isinstance(copy, Counted) and (type(copy) is Counted) == (name in ("merge", "expand"))
        assert copy.temperature == 3.0 and copy.name == "counted"
        assert copy.body is copy.get_layer("body") is not model.body
        assert copy.chain[0] is copy.body and copy.chain[1] == ("note", copy.get_layer("head"))
        assert copy.preprocessor is model.preprocessor  # it has no state
        assert copy.gain is not model.gain and not copy.gain.trainable and copy.tracker is not model.tracker
        np.testing.assert_allclose(to_numpy(copy.gain), [2.0, 5.0])
        if name != "shrink":
            early, expected = (keras.Model(one.input, one.levels["early"]) for one in (copy, model))
            np.testing.assert_allclose(to_numpy(early(images)), to_numpy(expected(images)), atol=1e-4)
            np.testing.assert_allclose(to_numpy(copy.scaled(images)), to_numpy(model.scaled(images)), atol=1e-5)
        copy.compile("sgd", "mse")
        assert copy.evaluate(images, np.ones((2, 2)), verbose=0) == [7.0, 0.0]


class OfFilters:
    """A configuration with the width of the dense model and without ranks."""

    def get_config(self):
        return {"name": self.name, "filters": self.filters}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("test_subclasses")
class Configured(OfFilters, keras.Model):
    """A functional model with a constructor of its own."""

    def __init__(self, filters=8, **options):
        inputs = keras.Input((6, 6, 4))
        super().__init__(inputs, layers.Conv2D(filters, 3, name="body")(inputs), **options)
        self.filters = filters


@keras.saving.register_keras_serializable("test_subclasses")
class Stacked(OfFilters, keras.Sequential):
    """A Sequential model with a constructor of its own."""

    def __init__(self, filters=8, **options):
        super().__init__([keras.Input((6, 6, 4)), layers.Conv2D(filters, 3, name="body")], **options)
        self.filters = filters


@pytest.mark.backends
@pytest.mark.parametrize("kind", [Configured, Stacked])
@pytest.mark.parametrize("nested", [False, True])
def test_copies_are_saved_and_loaded_with_their_class(kind, nested, tmp_path):
    model, plan = kind(6, name="own"), {"body": ("svd", 4)}
    if nested:
        inputs = keras.Input((6, 6, 4))
        model, plan = keras.Model(inputs, layers.Flatten()(model(inputs))), {"own/body": ("svd", 4)}
    images = random_array(2, 6, 6, 4)
    for name, copy in conversions(model, plan).items():
        copy.save(tmp_path / f"{name}.keras")
        loaded = keras.models.load_model(tmp_path / f"{name}.keras")
        own, twin = (one.get_layer("own") if nested else one for one in (copy, loaded))
        assert isinstance(own, kind) and isinstance(twin, kind) and twin.filters == 6 and twin.name == "own"
        assert (type(twin) is kind) == (name == "merge")
        np.testing.assert_allclose(to_numpy(loaded(images)), to_numpy(copy(images)), atol=1e-6)
        # A loaded one is converted on, and saved again.
        if name == "factorize":
            merged = elrt.merge(loaded)
            merged.save(tmp_path / "again.keras")
            again = keras.models.load_model(tmp_path / "again.keras")
            np.testing.assert_allclose(to_numpy(again(images)), to_numpy(merged(images)), atol=1e-6)


@pytest.mark.tensorflow
def test_what_was_expanded_is_factorised_on_and_loads_again(tmp_path):
    stock = elrt.expand(elrt.factorize(Configured(6), {"body": ("tucker2", (3, 3))}))
    low = elrt.factorize(stock, {"body_core": ("svd", 2)})
    low.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    images = random_array(2, 6, 6, 4)
    np.testing.assert_allclose(to_numpy(loaded(images)), to_numpy(low(images)), atol=1e-6)


class Unsaved(Configured):
    """A model that cannot be saved: its configuration holds an object that cannot be written."""

    def get_config(self):
        raise NotImplementedError("no configuration of Unsaved")


@pytest.mark.tensorflow
def test_a_model_that_cannot_be_saved_is_converted_and_says_why_it_is_not_saved(tmp_path):
    low = elrt.factorize(Unsaved(), CONV)
    assert isinstance(low, Unsaved)
    with pytest.raises(NotImplementedError, match="no configuration of Unsaved"):
        low.save(tmp_path / "model.keras")


class Doubling(Configured):
    """A model whose outputs differ from those of its graph."""

    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


@pytest.mark.tensorflow
def test_a_model_with_a_call_of_its_own_is_refused_by_name_or_stays_closed():
    with pytest.raises(ValueError, match="`call` is Keras' own. Received: 'own', a Doubling"):
        elrt.factorize(Doubling(name="own"), CONV)
    inputs = keras.Input((6, 6, 4))
    model = keras.Model(inputs, layers.Conv2D(8, 3, name="last")(Doubling(name="own")(inputs)))
    plan = elrt.plan_ranks(model, fraction=0.5, exclude=[])
    assert plan.reasons["own"].startswith("a Doubling, which cannot be opened")
    copy = elrt.factorize(model, {"last": ("svd", 8)}, factor_initializer="decomposed")
    images = random_array(2, 6, 6, 4)
    np.testing.assert_allclose(to_numpy(copy(images)), to_numpy(model(images)), atol=1e-4)


@pytest.mark.tensorflow
def test_attributes_that_cannot_be_copied_are_refused_by_name():
    model = Configured(name="own")
    model.kernel = model.get_layer("body").kernel
    with pytest.raises(ValueError, match="the weights of layers. Received: 'own' with an attribute that holds 'body"):
        elrt.factorize(model, CONV)
    model = Configured(name="own")
    model.other = keras.Input((3,))
    with pytest.raises(ValueError, match="tensors of the model's own graph. Received: model='own'"):
        elrt.factorize(model, CONV)


@pytest.mark.tensorflow
def test_models_that_attributes_hold_beside_the_graph_are_copied_too():
    teacher = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(8, 3, name="body")], name="teacher")
    model = Configured(8)
    model.teacher = teacher
    low = elrt.factorize(model, CONV)
    assert low.teacher is not teacher and type(low.teacher.get_layer("body")) is layers.Conv2D
    images = random_array(2, 6, 6, 4)
    np.testing.assert_allclose(to_numpy(low.teacher(images)), to_numpy(teacher(images)), atol=1e-6)


@pytest.mark.tensorflow
def test_an_attribute_stands_for_the_whole_chain(tmp_path):
    model = Configured(6)
    model.body, model.parts = model.get_layer("body"), [model.get_layer("body")]
    low = elrt.factorize(model, {"body": ("tucker2", (3, 3))})
    stock = elrt.expand(low)
    images = random_array(2, 6, 6, 4)
    assert stock.body is stock.parts[0] and len(stock.weights) == len(low.weights)
    for one in (stock, stock.body):
        np.testing.assert_allclose(to_numpy(one(images)), to_numpy(low.body(images)), atol=1e-5)
