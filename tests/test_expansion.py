"""`expand` and `merge`: low-rank layers become stock layers, with equal outputs and everything kept."""

import keras
import numpy as np
import pytest
from common import functional, layer_table, random_array, thorough_but, to_numpy

import elrt_keras as elrt
from elrt_keras import formats
from elrt_keras.graph.paths import iterate_layers

pytestmark = pytest.mark.backends

layers = keras.layers


@pytest.mark.parametrize("name", thorough_but(("tucker2", "cp"), formats.names()))
@pytest.mark.parametrize("execution", thorough_but(("chain",), ["chain", "compose"]))
def test_every_format_goes_in_and_out(name, execution, tmp_path):
    model = functional()
    ranks = {"shared": 0.6, "nested/conv": 0.7}
    low = elrt.factorize(model, {path: (name, rank) for path, rank in ranks.items()} | {"head": ("svd", 2)})
    for _, layer in iterate_layers(low):
        if isinstance(layer, elrt.layers.FactorizedLayer):
            layer._runs_chain = execution == "chain"
    inputs = random_array(3, 10, 10, 3, seed=2)
    outputs = to_numpy(low(inputs))
    merged, expanded = elrt.merge(low), elrt.expand(low)
    assert layer_table(merged) == layer_table(model)
    for stock in (merged, expanded):
        assert {type(layer).__module__.split(".")[0] for _, layer in iterate_layers(stock)} == {"keras"}
        np.testing.assert_allclose(to_numpy(stock(inputs)), outputs, atol=2e-5 * np.abs(outputs).max())
    names = [path for path, _ in iterate_layers(expanded)]
    if execution == "chain":
        factors = formats.get(name).factor_names
        assert [n for n in names if n.startswith("shared")] == [f"shared_{factor}" for factor in factors[:-1]] + [
            "shared"
        ]
        assert f"nested/conv_{factors[0]}" in names and "head" in names
        calls = {row.name: row.calls for row in elrt.count_costs(expanded).layers}
        assert calls[f"shared_{factors[0]}"] == 2
        assert elrt.count_costs(expanded).macs == elrt.count_costs(low).macs
    else:
        assert names == [path for path, _ in iterate_layers(model)]
    for copy in (low, merged, expanded):
        copy.save(tmp_path / "model.keras")
        revived = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(to_numpy(revived(inputs)), to_numpy(copy(inputs)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": "causal", "dilation_rate": 2},
        {"strides": 2, "padding": "same"},
        {"data_format": "channels_first", "use_bias": False},
    ],
    ids=str,
)
def test_expanded_layers_take_over_every_argument(arguments):
    stock = layers.Conv1D(6, 3, activation="tanh", bias_initializer="ones", name="conv", **arguments)
    model = keras.Sequential([keras.Input((8, 6)), stock], name="seq")
    for name in ("tucker2", "svd", "cp"):
        low = elrt.factorize(model, {"conv": (name, 2)})
        expanded = elrt.expand(low)
        inputs = random_array(2, 8, 6)
        np.testing.assert_allclose(to_numpy(expanded(inputs)), to_numpy(low(inputs)), atol=1e-5)
        assert type(expanded) is keras.Sequential and expanded.name == "seq"


@pytest.mark.thorough
def test_named_outputs_keep_their_losses_and_targets():
    inputs = keras.Input((8, 8, 6))
    body = layers.Conv2D(12, 3, name="body")(inputs)
    outputs = [layers.Dense(4, name=name)(layers.GlobalAveragePooling2D()(body)) for name in ("age", "kind")]
    model = keras.Model(inputs, outputs)
    low = elrt.factorize(model, {"body": ("cp", 3), "age": ("svd", 2), "kind": ("svd", 1)})
    targets = {"age": np.ones((2, 4)), "kind": np.zeros((2, 4))}
    for twin in (low, elrt.expand(low), elrt.merge(low)):
        assert twin.output_names == model.output_names == ["age", "kind"]
        twin.compile("sgd", {"age": "mse", "kind": "mae"}, metrics={"kind": ["mse"]})
        assert "kind_mse" in twin.fit(np.ones((2, 8, 8, 6)), targets, verbose=0).history


@pytest.mark.tensorflow
def test_merged_layers_keep_the_penalty_of_their_kernels():
    conv = elrt.layers.Tucker2Conv2D(8, 3, ranks=2, kernel_regularizer=keras.regularizers.L2(0.1), name="conv")
    low = keras.Sequential([keras.Input((6, 6, 4)), conv])
    (merged,), (expected,) = elrt.merge(low).losses, low.losses
    np.testing.assert_allclose(to_numpy(merged), to_numpy(expected), rtol=1e-5)
    assert not elrt.expand(low).losses


@pytest.mark.tensorflow
@pytest.mark.parametrize("execution", ["chain", "compose"])
def test_what_is_frozen_stays_frozen(execution):
    conv = elrt.layers.Tucker2Conv2D(8, 3, ranks=2, execution=execution, trainable=False, name="conv")
    head = elrt.layers.LowRankDense(3, ranks=2, execution=execution, trainable=False, name="head")
    model = keras.Sequential([keras.Input((6, 6, 4)), conv, layers.Flatten(), head])
    for back in (elrt.expand, elrt.merge):
        assert back(model).weights and not back(model).trainable_weights


def test_names_that_two_layers_would_get_are_refused():
    model = keras.Sequential([keras.Input((8, 8, 4))])
    model.add(elrt.layers.Tucker2Conv2D(4, 3, ranks=2, name="conv"))
    model.add(layers.Conv2D(4, 3, name="conv_core"))
    with pytest.raises(ValueError, match="different names. Received: 'conv_core' of 'conv' and of 'conv_core'"):
        elrt.expand(model)
    both = elrt.factorize(model, {"conv_core": ("tucker2", 2)})  # the end of its chain has its name, too
    with pytest.raises(ValueError, match="different names. Received: 'conv_core' of 'conv' and of 'conv_core'"):
        elrt.expand(both)
    model.layers[-1].name = "conv_factor_out"
    assert [layer.name for layer in elrt.expand(model).layers][-2:] == ["conv", "conv_factor_out"]


def test_an_expanded_model_needs_no_penalty_of_this_package():
    penalty = elrt.regularizers.SoftOrthogonality(0.1)
    conv = elrt.layers.Tucker2Conv2D(6, 3, 2, execution="compose", kernel_regularizer=penalty)
    head = elrt.layers.LowRankDense(4, 2, execution="compose", kernel_regularizer=penalty)
    model = keras.Sequential([keras.Input((6, 6, 4)), conv, layers.Flatten(), head])
    assert model.losses and not elrt.expand(model).losses
    assert "elrt_keras" not in elrt.expand(model).to_json()


def test_a_layer_called_by_the_name_of_its_argument_expands():
    inputs = keras.Input((6, 6, 4))
    model = keras.Model(inputs, elrt.layers.Tucker2Conv2D(4, 3, ranks=2)(inputs=inputs))
    images = random_array(2, 6, 6, 4)
    np.testing.assert_allclose(to_numpy(elrt.expand(model)(images)), to_numpy(model(images)), atol=1e-5)


@pytest.mark.parametrize("verb", ["merge", "expand", "shrink"])
def test_low_rank_layers_that_would_be_left_over_are_named(verb):
    class Frames(layers.TimeDistributed):
        """A subclass, which stays closed: it may run its layer in another way."""

    inside = elrt.layers.Tucker2Conv2D(4, 3, ranks=2, name="inside")
    model = keras.Sequential(
        [
            keras.Input((2, 6, 6, 4)),
            Frames(inside, name="frames"),
            elrt.layers.LowRankDense(3, ranks=2, name="last"),
        ]
    )
    arguments = {"max_macs": 0.5} if verb == "shrink" else {}
    with pytest.raises(ValueError, match=f"can be opened, to {verb}. Received: .*inside'] inside other layers"):
        getattr(elrt, verb)(model, **arguments)
