"""`factorize` and `merge`: equal outputs, nothing lost on the way, all or nothing."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from common import random_array, to_numpy

import elrt_keras as elrt

layers = keras.layers


def randomized(model, seed=0):
    """The model with random values in every weight, batch-norm statistics included (variances stay positive)."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(rng.uniform(0.2, 1.0, weight.shape) * (1 if "variance" in weight.name else rng.choice([-1, 1])))
    return model


def functional():
    inputs = keras.Input((10, 10, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    shared = layers.Conv2D(8, (3, 1), padding="same", activation="tanh", name="shared")
    x = shared(shared(layers.BatchNormalization(name="bn")(x)))
    nested = keras.Sequential(
        [keras.Input((10, 10, 8)), layers.Conv2D(6, 3, strides=2, use_bias=False, name="conv")], name="nested"
    )
    x = nested(x)
    return randomized(keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)), name="net"))


def sequential():
    return randomized(
        keras.Sequential(
            [
                keras.Input((12, 12, 4)),
                layers.Conv2D(6, 3, dilation_rate=2, kernel_regularizer=keras.regularizers.L2(0.5), name="a"),
                layers.BatchNormalization(name="bn"),
                layers.Conv2D(5, (2, 3), strides=(1, 2), padding="same", activation="relu", name="b"),
                layers.Dense(2, name="head"),
            ],
            name="seq",
        )
    )


CASES = {
    "functional": (functional, {"shared": ("tucker2", 1.0), "nested/conv": ("tucker2", 1.0)}),
    "sequential": (sequential, {"a": ("tucker2", 1.0), "b": ("tucker2", 1.0)}),
}


@pytest.fixture(params=CASES)
def case(request):
    make, plan = CASES[request.param]
    model = make()
    return model, plan, random_array(3, *model.input_shape[1:], seed=2)


def layer_table(model):
    return [(path, type(layer).__name__) for path, layer in elrt.traversal.iterate_layers(model)]


def test_full_rank_round_trip_is_the_model(case):
    model, plan, inputs = case
    low = elrt.factorize(model, plan, factor_initializer="decomposed")
    merged = elrt.merge(low)
    assert layer_table(merged) == layer_table(model) and type(merged) is type(model)
    expected = to_numpy(model(inputs))
    scale = np.abs(expected).max()
    for converted in (low, merged):
        np.testing.assert_allclose(to_numpy(converted(inputs)), expected, atol=1e-5 * scale)
    for a, b in zip(merged.weights, model.weights):
        assert a.path.split("/")[-1] == b.path.split("/")[-1]
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), atol=1e-5)


def test_low_rank_model_and_its_merge_agree(case):
    model, plan, inputs = case
    low = elrt.factorize(model, {name: ("tucker2", 2) for name in plan})
    assert [name for name, kind in layer_table(low) if kind == "Tucker2Conv2D"] == list(plan)
    outputs = to_numpy(low(inputs))
    assert np.abs(outputs - to_numpy(model(inputs))).max() > 1e-3  # new factors: another function
    np.testing.assert_allclose(to_numpy(elrt.merge(low)(inputs)), outputs, atol=1e-5 * np.abs(outputs).max())


def test_everything_else_is_carried_over(case):
    model, plan, _ = case
    low = elrt.factorize(model, {name: ("tucker2", 2) for name in plan})
    twins = dict(elrt.traversal.iterate_layers(low))
    for path, layer in elrt.traversal.iterate_layers(model):
        twin = twins[path]
        if path not in plan:
            for a, b in zip(layer.weights, twin.weights):
                np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
            continue
        for name in ("strides", "padding", "dilation_rate", "data_format", "use_bias", "filters", "kernel_size"):
            assert getattr(twin, name) == getattr(layer, name)
        assert twin.activation is layer.activation
        assert type(twin.kernel_regularizer) is type(layer.kernel_regularizer)
        if layer.use_bias:
            np.testing.assert_array_equal(to_numpy(twin.bias), to_numpy(layer.bias))


def test_shared_layers_stay_shared():
    low = elrt.factorize(functional(), {"shared": ("tucker2", 3)})
    calls = {row.name: row.calls for row in elrt.count_costs(low).layers}
    assert calls["shared"] == 2
    assert sum("shared" in weight.path for weight in low.weights) == 4


def test_saved_low_rank_model_loads_in_a_fresh_process(tmp_path):
    model = elrt.factorize(functional(), {"shared": ("tucker2", 3), "nested/conv": ("tucker2", (0.5, 4))})
    inputs = random_array(2, 10, 10, 3)
    model.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", inputs)
    program = (
        "import numpy as np, keras, elrt_keras; m = keras.models.load_model('m.keras'); "
        "np.save('y.npy', keras.ops.convert_to_numpy(m(np.load('x.npy'))))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=300)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), to_numpy(model(inputs)), rtol=1e-5, atol=1e-5)


def test_seeds():
    model = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(4, 3, name="a"), layers.Conv2D(4, 3, name="b")])
    plan = {"a": ("tucker2", 2), "b": ("tucker2", 2)}
    draws = [
        [to_numpy(w) for w in elrt.factorize(model, plan, factor_initializer=initializer).weights]
        for initializer in (elrt.initializers.OrthogonalFactors(seed=s) for s in (1, 1, 2))
    ]
    for first, same in zip(draws[0], draws[1]):
        np.testing.assert_array_equal(first, same)
    assert np.abs(draws[0][0] - draws[2][0]).max() > 0.01
    assert np.abs(draws[0][0] - draws[0][4]).max() > 0.01  # two layers of one shape


@pytest.mark.parametrize(
    "plan, message",
    [
        ({"nowhere": ("tucker2", 2)}, r"'seq' lacks. Received: \['nowhere'\]"),
        ({"head": ("tucker2", 2)}, "layer 'head', a Dense"),
        ({"a": ("tucker2", (5, 2))}, "Layer 'a': r_in is at most the full rank, 4"),
        ({"a": ("tucker2", 2), "b": ("tucker2", (2, 9))}, "Layer 'b': .*full rank, 5"),
        ({"a": None}, "factorises no layer"),
        ({}, "factorises no layer"),
        ({"a": ("cpx", 2)}, "format='cpx'"),
    ],
)
def test_bad_plans_change_nothing(plan, message):
    model = sequential()
    before = [to_numpy(w) for w in model.weights]
    with pytest.raises(ValueError, match=message):
        elrt.factorize(model, plan)
    for weight, value in zip(model.weights, before):
        np.testing.assert_array_equal(to_numpy(weight), value)


def test_models_that_cannot_be_converted():
    class Subclassed(keras.Model):
        pass

    with pytest.raises(ValueError, match="Functional or Sequential.*Received: a Subclassed"):
        elrt.factorize(Subclassed(), {"a": ("tucker2", 2)})
    with pytest.raises(ValueError, match="built model"):
        elrt.factorize(keras.Sequential([layers.Conv2D(2, 3, name="a")]), {"a": ("tucker2", 1)})
    with pytest.raises(ValueError, match="nothing to merge"):
        elrt.merge(sequential())
    constrained = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(2, 3, kernel_constraint="non_neg", name="a")])
    with pytest.raises(ValueError, match="Layer 'a'.*kernel_constraint=NonNeg"):
        elrt.factorize(constrained, {"a": ("tucker2", 1)})
