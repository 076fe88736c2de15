"""`factorize` and `merge`: equal outputs, everything kept, and no half-converted model after an error."""

import contextlib
import os
import subprocess
import sys
import warnings

import commands
import keras
import numpy as np
import pytest
from common import functional, layer_table, random_array, randomized, to_numpy

import elrt_keras as elrt

pytestmark = pytest.mark.backends

layers = keras.layers


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
    twins = dict(elrt.graph.paths.iterate_layers(low))
    for path, layer in elrt.graph.paths.iterate_layers(model):
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


@pytest.mark.parametrize("initializer", ["orthogonal_factors", "decomposed"])
def test_the_models_share_no_memory(initializer):
    model = keras.Sequential([keras.Input((4, 4, 2)), layers.Conv2D(3, 3, name="a"), layers.GlobalAveragePooling2D()])
    low_rank = elrt.factorize(model, {"a": ("tucker2", 1)}, factor_initializer=initializer)
    twin = elrt.layers.Tucker2Conv2D.from_dense(model.get_layer("a"), 1)
    images, targets = random_array(2, 4, 4, 2), np.zeros((2, 3), "float32")
    before = to_numpy(model(images))
    low_rank.compile("sgd", "mse")
    low_rank.fit(images, targets, verbose=0)  # a compiled step on JAX reuses the memory of its input weights
    np.testing.assert_array_equal(to_numpy(model(images)), before)
    model.compile("sgd", "mse")
    model.fit(images, targets, verbose=0)
    assert np.all(np.isfinite(to_numpy(low_rank(images)))) and np.all(np.isfinite(to_numpy(twin(images))))


def test_shared_layers_stay_shared():
    low = elrt.factorize(functional(), {"shared": ("tucker2", 3)})
    calls = {row.name: row.calls for row in elrt.count_costs(low).layers}
    assert calls["shared"] == 2
    assert sum("shared" in weight.path for weight in low.weights) == 4


@pytest.mark.tensorflow
def test_saved_low_rank_model_loads_in_another_process(tmp_path):
    model = elrt.factorize(functional(), {"shared": ("tucker2", 3), "nested/conv": ("tucker2", (0.5, 4))})
    inputs = random_array(2, 10, 10, 3)
    model.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", inputs)
    program = (
        "import numpy as np, keras, elrt_keras; m = keras.models.load_model('m.keras'); "
        "np.save('y.npy', keras.ops.convert_to_numpy(m(np.load('x.npy'))))"
    )
    done = commands.program(program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
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
        ({"nowhere": ("tucker2", 2)}, r"Expected a plan for layers of 'seq'.* Received: \['nowhere'\]"),
        ({"head": ("tucker2", 2)}, "Layer 'head': expected a format for dense layers. Received: format='tucker2'"),
        ({"a": ("tucker2", (5, 2))}, "Layer 'a': Expected r_in of at most the full rank, 4"),
        ({"a": ("tucker2", 2), "b": ("tucker2", (2, 9))}, "Layer 'b': .*full rank, 5"),
        ({"a": None}, "Expected a plan that factorises a layer"),
        ({}, "Expected a plan that factorises a layer"),
        (elrt.RankPlan({"a": None}, {"a": "excluded"}), "all dense; 'a': excluded"),
        (None, "mapping from layer names.*Received: entries=None"),
        ("plan.json", "RankPlan.load reads files. Received: entries='plan.json'"),
        ({"a": ("cpx", 2)}, "format='cpx'"),
        ({"bn": ("svd", 2)}, "Layer 'bn': expected one of Conv1D, Conv2D, Conv3D, Dense. Received: a BatchNorm"),
    ],
)
def test_bad_plans_change_nothing(plan, message):
    model = sequential()
    before = [to_numpy(w) for w in model.weights]
    with pytest.raises(ValueError, match=message):
        elrt.factorize(model, plan)
    for weight, value in zip(model.weights, before):
        np.testing.assert_array_equal(to_numpy(weight), value)


def test_a_layer_shared_with_a_nested_model_stays_shared():
    shared = layers.Conv2D(8, 3, padding="same", name="shared")
    inner_input = keras.Input((8, 8, 8))
    inner = keras.Model(inner_input, shared(inner_input), name="inner")
    inputs = keras.Input((8, 8, 8))
    model = keras.Model(inputs, shared(inner(inputs)))
    plan = elrt.plan_ranks(model, fraction=0.5, exclude=[], break_even=False, multiple_of=2)
    assert len(plan.factorized()) == 1
    for copy in (elrt.factorize(model, plan), elrt.expand(elrt.factorize(model, plan))):
        assert len(copy.weights) == 4  # three factors and one bias
        values = [to_numpy(weight) for weight in copy.weights]
        copy(random_array(1, 8, 8, 8))
        assert all(np.array_equal(to_numpy(weight), value) for weight, value in zip(copy.weights, values))


def test_operations_multiple_inputs_and_a_compiled_model():
    first, second = keras.Input((8, 8, 4), name="first"), keras.Input((8, 8, 4), name="second")
    x = layers.Conv2D(8, 3, padding="same", name="conv")(layers.Concatenate()([first, second]))
    x = keras.ops.relu(x + 1.0) * 2.0
    outputs = {"pixels": x, "mean": layers.Dense(3, name="head")(keras.ops.mean(x, axis=(1, 2)))}
    model = keras.Model([first, second], outputs)
    model.compile(keras.optimizers.Adam(), {"pixels": "mse", "mean": "mse"})
    inputs = [random_array(2, 8, 8, 4), random_array(2, 8, 8, 4, seed=1)]
    low = elrt.factorize(model, {"conv": ("tucker2", 1.0), "head": ("svd", 1.0)}, factor_initializer="decomposed")
    assert model.compiled and not low.compiled and not elrt.expand(low).compiled
    for name, expected in model(inputs).items():
        for copy in (low, elrt.expand(low), elrt.merge(low)):
            np.testing.assert_allclose(to_numpy(copy(inputs)[name]), to_numpy(expected), atol=1e-4)


def test_layers_inside_a_subclassed_model_are_left_alone():
    class Block(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.conv = layers.Conv2D(8, 3, padding="same", name="inside")

        def call(self, inputs):
            return self.conv(inputs)

        def get_config(self):
            return {"name": self.name}

        @classmethod
        def from_config(cls, config):
            return cls(**config)

    inputs = keras.Input((8, 8, 8))
    x = layers.Conv2D(16, 3, name="conv")(Block(name="block")(inputs))
    model = keras.Model(inputs, x)
    plan = elrt.plan_ranks(model, fraction=0.5, exclude=[], break_even=False)
    assert list(plan) == ["block", "conv"] and list(plan.factorized()) == ["conv"]
    assert plan.reasons == {"block": "a Block, which cannot be opened for the layers in it"}
    low = elrt.factorize(model, plan)
    values = random_array(1, 8, 8, 8)
    np.testing.assert_array_equal(to_numpy(low.get_layer("block")(values)), to_numpy(model.get_layer("block")(values)))


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


def test_a_model_made_anew_from_the_config_of_a_decomposed_one_trains():
    model = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(4, 3, name="a"), layers.Flatten(), layers.Dense(3)])
    low_rank = elrt.factorize(model, {"a": ("tucker2", 2)}, factor_initializer="decomposed")
    anew = keras.models.clone_model(low_rank)
    deviations = [np.std(to_numpy(one.get_layer("a").kernel)) for one in (model, anew)]
    assert deviations[1] == pytest.approx(deviations[0], rel=0.5)


@pytest.mark.thorough
@pytest.mark.tensorflow
def test_a_terminal_shows_how_far_decomposition_is():
    pty = pytest.importorskip("pty")
    told, terminal = pty.openpty()
    program = """if True:
        import keras, elrt_keras
        layers = [keras.layers.Conv2D(64, 3, name=f"c{i}") for i in range(4)]
        model = keras.Sequential([keras.Input((16, 16, 64)), *layers])
        plan = {layer.name: ("tucker2", 16) for layer in layers}
        elrt_keras.factorize(model, plan, factor_initializer="decomposed")"""
    process = subprocess.Popen([sys.executable, "-c", program], stderr=terminal, env={**os.environ, "TERM": "xterm"})
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # a terminal ends with this error
        while part := os.read(told, 4096):
            shown += part
    assert process.wait(timeout=100) == 0 and b"decomposing kernels" in shown


def test_a_kernel_of_zeros_is_decomposed_without_warnings():
    model = keras.Sequential([keras.Input((6, 6, 8)), layers.Conv2D(8, 3, kernel_initializer="zeros", name="a")])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for name in elrt.formats.names():
            low_rank = elrt.factorize(model, {"a": (name, 4)}, factor_initializer="decomposed")
            assert np.all(to_numpy(low_rank.get_layer("a").kernel) == 0)


def test_quantised_layers_are_refused():
    model = keras.Sequential([keras.Input((64,)), layers.Dense(32, name="a"), layers.Dense(32, name="b")])
    model.quantize("int8")
    with pytest.raises(ValueError, match="Layer 'a': .*can be trained.* Received: layer='a' with dtype='int8_from"):
        elrt.factorize(model, {"a": ("svd", 4)})


def test_a_layer_that_two_models_share_has_one_entry():
    inputs, conv = keras.Input((8, 8, 4)), layers.Conv2D(4, 3, padding="same", name="c")
    nested = [keras.Sequential([keras.Input((8, 8, 4)), conv], name=name) for name in "AB"]
    model = keras.Model(inputs, nested[1](nested[0](inputs)))
    with pytest.raises(ValueError, match=r"one entry for layer 'B/c'.* shared. Received: .*tucker2.* and .*svd"):
        elrt.factorize(model, {"A/c": ("tucker2", (2, 2)), "B/c": ("svd", 4)})
    low = elrt.factorize(model, {"A/c": ("svd", 2), "B/c": ("svd", 2)})
    assert elrt.factorize(model, {"A/c": ("svd", 2), "B/c": None}).count_params() == low.count_params()


@pytest.mark.parametrize("initializer", [elrt.initializers.OrthogonalFactors, elrt.initializers.Spectral])
def test_merged_layers_start_like_the_composed_kernels(initializer):
    model = sequential()
    plan = {"a": ("tucker2", 2), "b": ("svd", 2)}
    low = elrt.factorize(model, plan, factor_initializer=initializer("lecun_uniform"))
    merged = elrt.merge(low)
    for name in plan:
        assert isinstance(merged.get_layer(name).kernel_initializer, keras.initializers.LecunUniform)
    again = keras.models.clone_model(merged)
    assert np.abs(to_numpy(again.get_layer("a").kernel) - to_numpy(merged.get_layer("a").kernel)).max() > 0
    trained = elrt.merge(elrt.factorize(model, plan, factor_initializer="decomposed"))
    assert isinstance(trained.get_layer("a").kernel_initializer, keras.initializers.GlorotUniform)


def test_layers_of_one_shape_start_apart_with_a_seeded_stock_initializer():
    model = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(4, 3, name="a"), layers.Conv2D(4, 3, name="b")])
    initializer = keras.initializers.HeNormal(seed=0)
    first, again = (
        elrt.factorize(model, {"a": ("tucker2", 2), "b": ("tucker2", 2)}, factor_initializer=initializer)
        for _ in range(2)
    )
    for one, other, same in zip(first.layers[0].factors, first.layers[1].factors, again.layers[0].factors):
        assert np.abs(to_numpy(one) - to_numpy(other)).max() > 0.01
        np.testing.assert_array_equal(to_numpy(one), to_numpy(same))


@pytest.mark.tensorflow
def test_models_of_the_other_keras_are_named():
    tf_keras = pytest.importorskip("tf_keras")
    other = tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(4,))], name="other")
    calls = (
        lambda: elrt.plan_ranks(other, fraction=0.5),
        lambda: elrt.factorize(other, {"dense": ("svd", 2)}),
        lambda: elrt.count_costs(other),
        lambda: elrt.merge(other),
    )
    for call in calls:
        with pytest.raises(ValueError, match="Expected a model of Keras 3. Received: 'other', a model of tf_keras"):
            call()


@pytest.mark.tensorflow
def test_planning_a_low_rank_model_says_what_to_do_instead():
    model = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(6, 3, name="conv")])
    low = elrt.factorize(model, {"conv": ("tucker2", (2, 3))})
    with pytest.raises(ValueError, match=r"`shrink` lowers .* Received: model='.*' with low-rank layers \['conv'\]"):
        elrt.plan_ranks(low, fraction=0.5)
