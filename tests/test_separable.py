"""Planning and factorisation of separable convolutions by their stages: a depthwise and a pointwise convolution."""

import keras
import numpy as np
import pytest
from common import depthwise_as_dense, model_of, numpy_conv, random_array, thorough_but, to_numpy

import elrt_keras as elrt
from elrt_keras.graph.view import View

layers = keras.layers
POINTWISE = "separable/separable_pointwise"


def separable(filters=24, **arguments):
    return layers.SeparableConv2D(filters, 3, **{"padding": "same", "name": "separable", **arguments})


def stem_and(*more):
    return model_of(layers.Conv2D(16, 3, padding="same", name="stem"), *more, shape=(10, 10, 3))


@pytest.mark.backends
@pytest.mark.parametrize(
    "kind, arguments",
    [
        (layers.SeparableConv2D, {"kernel_size": (3, 2), "strides": 2, "activation": "tanh"}),
        (layers.SeparableConv2D, {"kernel_size": 3, "dilation_rate": 2, "depth_multiplier": 3, "use_bias": False}),
        (layers.SeparableConv1D, {"kernel_size": 5, "padding": "same", "strides": 3, "depth_multiplier": 2}),
    ],
)
def test_stages_compute_the_same_with_the_same_weights(kind, arguments):
    layer = kind(6, bias_initializer="normal", **arguments)
    dims = len(layer.kernel_size)
    x = random_array(2, *(9,) * dims, 4)
    layer(x)
    model = View(keras.Sequential([keras.Input(x.shape[1:]), layer])).opening(layer).graph
    assert [type(one).__name__ for one in model.layers[1:]] == [f"DepthwiseConv{dims}D", f"Conv{dims}D"]
    assert {id(weight) for weight in model.weights} == {id(weight) for weight in layer.weights}
    np.testing.assert_allclose(to_numpy(model(x)), to_numpy(layer(x)), atol=1e-5)
    options = {name: getattr(layer, name) for name in ("strides", "padding", "dilation_rate")}
    kernel = depthwise_as_dense(to_numpy(layer.depthwise_kernel)) @ to_numpy(layer.pointwise_kernel).squeeze()
    expected = numpy_conv(x, kernel, **options) + (to_numpy(layer.bias) if layer.use_bias else 0)
    np.testing.assert_allclose(
        to_numpy(model(x)), np.tanh(expected) if layer.activation.__name__ == "tanh" else expected, atol=1e-5
    )


def test_plans_name_the_stages():
    model = stem_and(separable(), layers.GlobalAveragePooling2D(), layers.Dense(5, name="head"))
    plan = elrt.plan_ranks(model, fraction=0.25, multiple_of=1)
    assert dict(plan.factorized()) == {POINTWISE: elrt.ranks.plan.LayerPlan("svd", (4,))}
    costs = plan.costs[POINTWISE]
    assert (costs["macs"], costs["planned_macs"]) == (100 * 16 * 24, 100 * 4 * (16 + 24))
    assert plan.reasons["separable/separable_depthwise"].startswith("depthwise")
    # The layer itself is still one row of the costs.
    assert next(row for row in elrt.count_costs(model).layers if row.name == "separable").macs == 100 * 16 * (9 + 24)
    excluded = elrt.plan_ranks(stem_and(separable(), layers.Conv2D(24, 3)), fraction=0.5, exclude=["stem", "separable"])
    assert excluded.reasons[POINTWISE] == "excluded" and len(excluded.factorized()) == 1
    constrained = stem_and(separable(pointwise_constraint="non_neg"), layers.Conv2D(24, 3))
    assert "kernel constraint" in elrt.plan_ranks(constrained, fraction=0.5, exclude="stem").reasons[POINTWISE]


def test_a_low_rank_one_is_the_truncated_singular_value_decomposition():
    layer = separable(activation="relu", bias_initializer="normal")
    model = model_of(layer, shape=(10, 10, 16))
    low_rank = elrt.factorize(model, {POINTWISE: ("svd", 5)}, factor_initializer="decomposed")
    depthwise, pointwise, bias = map(to_numpy, layer.get_weights())
    left, values, right = np.linalg.svd(pointwise.reshape(16, 24), full_matrices=False)
    kernel = depthwise_as_dense(depthwise) @ ((left[:, :5] * values[:5]) @ right[:5])
    x = random_array(2, 10, 10, 16)
    expected = np.maximum(numpy_conv(x, kernel, padding="same") + bias, 0)
    for one in (low_rank, elrt.expand(low_rank), elrt.merge(low_rank)):
        np.testing.assert_allclose(to_numpy(one(x)), expected, atol=2e-5)
    whole = elrt.factorize(model, {POINTWISE: ("svd", 1.0)}, factor_initializer="decomposed")
    np.testing.assert_allclose(to_numpy(elrt.merge(whole)(x)), to_numpy(model(x)), atol=2e-5)
    assert elrt.shrink(low_rank, max_params=0.6, multiple_of=1).count_params() < low_rank.count_params()


@pytest.mark.backends
def test_low_rank_ones_are_saved_and_train_apart_from_the_model_they_come_from(tmp_path):
    model = stem_and(separable(), layers.GlobalAveragePooling2D(), layers.Dense(5, name="head"))
    before = [weight.copy() for weight in model.get_weights()]
    low_rank = elrt.factorize(model, elrt.plan_ranks(model, fraction=0.5), factor_initializer="decomposed")
    low_rank.compile("sgd", "mse")
    low_rank.fit(random_array(8, 10, 10, 3), random_array(8, 5), epochs=2, verbose=0)
    for weight, value in zip(model.get_weights(), before):
        np.testing.assert_array_equal(weight, value)
    depthwise = low_rank.get_layer("separable").get_layer("separable_depthwise").get_weights()[0]
    assert np.abs(depthwise - model.get_layer("separable").get_weights()[0]).max() > 0
    low_rank.save(tmp_path / "model.keras")
    x = random_array(2, 10, 10, 3)
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(to_numpy(again(x)), to_numpy(low_rank(x)), atol=1e-6)


@pytest.mark.backends
def test_regularizers_frozen_layers_and_precision_stay():
    layer = separable(
        depthwise_regularizer=keras.regularizers.L2(0.1),
        pointwise_regularizer=keras.regularizers.L2(0.2),
        bias_regularizer=keras.regularizers.L1(0.3),
        activity_regularizer=keras.regularizers.L2(0.4),
        bias_initializer="normal",
        trainable=False,
        dtype="mixed_bfloat16",
    )
    model = model_of(layer, shape=(10, 10, 16))
    low_rank = elrt.factorize(model, {POINTWISE: ("svd", 1.0)}, factor_initializer="decomposed")
    depthwise, pointwise = low_rank.get_layer("separable").layers[1:]
    assert not depthwise.trainable and not pointwise.trainable
    assert depthwise.compute_dtype == pointwise.compute_dtype == "bfloat16"
    layer.trainable = depthwise.trainable = pointwise.trainable = True
    x = random_array(2, 10, 10, 16)
    losses = []
    for one in (model, low_rank):
        one(x, training=True)
        losses.append(sum(float(to_numpy(keras.ops.cast(loss, "float32"))) for loss in one.losses))
    np.testing.assert_allclose(*losses, rtol=2e-2)  # bfloat16 outputs in the penalty of the activity


def test_one_that_is_called_on_two_sizes_stays_shared():
    shared, pool = separable(16), layers.AveragePooling2D(2)
    inputs = keras.Input((8, 8, 16))
    x = shared(inputs)
    model = keras.Model(inputs, shared(pool(x)))
    plan = elrt.plan_ranks(model, fraction=0.25, exclude=[], multiple_of=1)
    assert plan.costs[POINTWISE]["macs"] == (64 + 16) * 16 * 16
    low_rank = elrt.factorize(model, plan)
    assert len([layer for layer in low_rank.layers if layer.name == "separable"]) == 1
    assert elrt.count_costs(low_rank).macs == (64 + 16) * (9 * 16 + 2 * 4 * 16)
    x = random_array(2, 8, 8, 16)
    np.testing.assert_allclose(to_numpy(elrt.merge(low_rank)(x)), to_numpy(low_rank(x)), atol=1e-5)


class Heads(layers.Layer):
    """Runs one separable convolution on each input, like detectors; it takes a list, so it stays closed."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = separable(8, name="head")

    def call(self, inputs):
        return [self.head(x) for x in inputs]

    def compute_output_shape(self, input_shape):
        return input_shape


class Lazy(layers.Layer):
    """Has no `build`: its layers are built in its first call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.down = layers.Conv2D(8, 3, strides=2, padding="same", name="down")
        self.separable = separable(8)

    def call(self, inputs):
        return self.separable(self.down(inputs))


def test_sizes_that_differ_from_that_of_the_build():
    inputs = keras.Input((16, 16, 3))
    stem = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    down = layers.Conv2D(8, 3, strides=2, padding="same", name="down")(stem)
    model = keras.Model(inputs, Heads(name="heads")([stem, down]))
    model(random_array(1, 16, 16, 3))
    plan = elrt.plan_ranks(model, exclude="stem", fraction=0.25, multiple_of=1)
    assert set(plan.factorized()) == {"down"}
    frames = layers.TimeDistributed(separable(), name="frames")
    inputs = [keras.Input((2, size, size, 16)) for size in (8, 6)]
    model = keras.Model(inputs, [frames(one) for one in inputs])
    plan = elrt.plan_ranks(model, exclude=[], fraction=0.25, multiple_of=1)
    assert plan.costs[f"frames/{POINTWISE}"]["macs"] == 2 * (64 + 36) * 16 * 24
    low_rank = elrt.factorize(model, plan)
    assert elrt.count_costs(low_rank).macs == 2 * (64 + 36) * (9 * 16 + 4 * (16 + 24))
    x = [random_array(1, 2, size, size, 16) for size in (8, 6)]
    for one, other in zip(elrt.merge(low_rank)(x), low_rank(x)):
        np.testing.assert_allclose(to_numpy(one), to_numpy(other), atol=1e-5)


def test_plans_of_layers_built_late_are_the_same_each_time():
    model = model_of(Lazy(name="block"), shape=(8, 8, 8))
    plans = [elrt.plan_ranks(model, exclude=[], fraction=0.25, multiple_of=1) for _ in range(3)]
    assert set(plans[0].factorized()) == {"block/down", f"block/{POINTWISE}"}
    assert plans[0] == plans[1] == plans[2] and plans[0].reasons == plans[1].reasons == plans[2].reasons


def test_what_changes_after_planning_counts():
    layer = separable(16, activation="relu", trainable=False)
    model = model_of(layer, shape=(8, 8, 16))
    plan = elrt.plan_ranks(model, fraction=1.0, exclude=[], break_even=False)
    layer.activation, layer.trainable = keras.activations.linear, True
    layer.depthwise_regularizer = keras.regularizers.L2(1.0)
    low_rank = elrt.factorize(model, plan, factor_initializer="decomposed")
    x = random_array(2, 8, 8, 16)
    np.testing.assert_allclose(to_numpy(low_rank(x)), to_numpy(model(x)), atol=1e-5)
    assert len(low_rank.trainable_weights) == 4 and len(low_rank.losses) == 1


def test_one_that_is_called_by_keyword_says_so():
    inputs = keras.Input((8, 8, 16))
    model = keras.Model(inputs, layers.Conv2D(16, 3, name="conv")(separable()(inputs=inputs)))
    plan = elrt.plan_ranks(model, fraction=0.25, exclude=[])
    assert plan.reasons["separable"] == "a separable convolution that is not called with one tensor by its position"


@pytest.mark.tensorflow
def test_a_dense_one_is_one_in_tf_keras():
    pytest.importorskip("tf_keras")
    legacy = elrt.export.to_tf_keras(model_of(separable(), shape=(8, 8, 16)))
    assert type(legacy.get_layer("separable")).__name__ == "SeparableConv2D"


def test_in_a_time_distributed():
    model = model_of(layers.TimeDistributed(separable(), name="frames"), shape=(3, 8, 8, 16))
    plan = elrt.plan_ranks(model, fraction=0.25, exclude=[], multiple_of=1)
    assert plan.costs[f"frames/{POINTWISE}"]["macs"] == 3 * 64 * 16 * 24
    low_rank, x = elrt.factorize(model, plan), random_array(1, 3, 8, 8, 16)
    np.testing.assert_allclose(to_numpy(elrt.merge(low_rank)(x)), to_numpy(low_rank(x)), atol=1e-5)


@pytest.mark.tensorflow
@pytest.mark.parametrize("quantization", thorough_but(("int8",), [None, "int8"]))
def test_litert_files_agree(tmp_path, quantization):
    pytest.importorskip("ai_edge_litert")
    model = stem_and(separable(activation="relu"), layers.GlobalAveragePooling2D(), layers.Dense(5))
    low_rank = elrt.factorize(model, elrt.plan_ranks(model, fraction=0.5), factor_initializer="decomposed")
    data = random_array(16, 10, 10, 3)
    report = elrt.export.to_litert(low_rank, tmp_path / "model.tflite", quantization, representative_data=data)
    assert report.macs == elrt.count_costs(low_rank).macs
