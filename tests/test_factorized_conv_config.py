"""Saving and loading: every constructor argument, at a non-default value, is restored and has the same effect."""

import importlib
import inspect
import json

import commands
import keras
import numpy as np
import pytest
from common import random_array, thorough_but, to_numpy

import elrt_keras as elrt
from elrt_keras import formats
from elrt_keras.layers import FactorizedConv

pytestmark = pytest.mark.backends

ARGUMENTS = {
    "filters": 6,
    "kernel_size": (3, 2),
    "ranks": (0.5, 3),
    "strides": (2, 1),
    "padding": "same",
    "data_format": "channels_first",
    "dilation_rate": (1, 1),
    "groups": 2,
    "activation": "tanh",
    "use_bias": True,
    "factor_initializer": elrt.initializers.Spectral("glorot_uniform", seed=4),
    "bias_initializer": keras.initializers.RandomNormal(seed=3),
    "factor_regularizer": elrt.regularizers.SpectralIsometry(0.3, power_iterations=3),
    "kernel_regularizer": keras.regularizers.L2(0.2),
    "bias_regularizer": keras.regularizers.L1(0.1),
    "activity_regularizer": keras.regularizers.L2(0.05),
    "factor_constraint": elrt.constraints.Stiefel(),
    "bias_constraint": keras.constraints.MaxNorm(0.7),
    "execution": "compose",
    "recompute": True,
}


DENSE_ONLY = ("filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate", "groups")
LEAVES = [leaf for leaf in map(elrt.layers.__dict__.get, elrt.layers.__all__) if getattr(leaf, "format_name", None)]


def arguments_of(leaf, **others):
    """Returns the arguments for one layer class, with its number of ranks, kernel axes and strides."""
    arguments = {**ARGUMENTS, **others}
    arguments["ranks"] = (0.5, 3, 0.4)[: len(formats.get(leaf.format_name).rank_names)]
    if leaf.spatial_dims == 0:
        arguments = {name: value for name, value in arguments.items() if name not in DENSE_ONLY}
        return {"units": 6, **arguments}
    for name in ("kernel_size", "strides", "dilation_rate"):
        value = arguments[name]
        arguments[name] = (value if isinstance(value, tuple) else (value,) * 3)[: leaf.spatial_dims]
        arguments[name] += (1,) * (leaf.spatial_dims - len(arguments[name]))
    return arguments


@pytest.mark.tensorflow
def test_a_fraction_as_rank_stays_one_in_the_configuration_of_a_built_layer():
    layer = elrt.layers.Tucker2Conv2D(8, 3, ranks=0.5)
    layer.build((None, 6, 6, 4))
    assert layer.ranks == (2, 4) and layer.get_config()["ranks"] == 0.5
    wider = elrt.layers.Tucker2Conv2D.from_config(layer.get_config())
    wider.build((None, 6, 6, 8))
    assert wider.ranks == (4, 4)


def test_the_table_holds_every_argument():
    parameters = list(inspect.signature(FactorizedConv.__init__).parameters)
    assert parameters[1:-1] == list(ARGUMENTS)
    dense = list(inspect.signature(elrt.layers.LowRankDense.__init__).parameters)
    assert dense[1:-1] == list(arguments_of(elrt.layers.LowRankDense))


def test_the_general_layers_take_the_same_and_a_format():
    parameters = list(inspect.signature(elrt.layers.LowRankConv2D.__init__).parameters)
    assert parameters[1:-1] == [*list(ARGUMENTS)[:3], "format", *list(ARGUMENTS)[3:]]
    arguments = arguments_of(elrt.layers.Tucker2Conv2D)
    layer = elrt.layers.LowRankConv2D(**arguments, format="tucker2", name="low")
    twin = elrt.layers.Tucker2Conv2D(**arguments, name="low")
    assert layer.get_config() == {**twin.get_config(), "format": "tucker2"}
    assert elrt.layers.LowRankConv2D.from_config(layer.get_config()).get_config() == layer.get_config()


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "change, received",
    [
        ({"format": "tucker9"}, "Expected one of .*Received: format='tucker9'"),
        ({"format": None}, "Received: format=None"),
        (
            {"format": "spatial_svd"},
            r"Expected a format for 1 spatial axes, one of \['cp', 'svd', 'tucker2'\].*'spatial_svd'",
        ),
        ({"format": type(formats.get("svd"))()}, "a registered format.*Received: format='svd', another object"),
    ],
    ids=["unknown", "none", "other dimensions", "another object"],
)
def test_formats_that_a_layer_cannot_have(change, received):
    with pytest.raises(ValueError, match=received):
        elrt.layers.LowRankConv1D(4, 3, 2, **change)


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name != "ranks"])
def test_a_built_layer_refuses_what_only_building_reads(name):
    """Checks which attributes a built layer refuses; others act on the next call or in a layer from its config."""
    layer = elrt.layers.Tucker2Conv2D(6, 3, 2, padding="same")
    setattr(layer, name, getattr(layer, name))  # before it is built
    layer.build((None, 6, 6, 4))
    value = getattr(layer, name)
    if name in ("activation", "recompute", "factor_initializer", "bias_initializer", "activity_regularizer"):
        setattr(layer, name, value)
        return
    with pytest.raises(AttributeError, match=f"Expected '{name}' to be set before .*Received: {name}="):
        setattr(layer, name, value)


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_argument_is_an_attribute_and_a_config_entry(leaf):
    arguments = arguments_of(leaf)
    layer = leaf(**arguments, name="low", dtype="mixed_bfloat16", trainable=False)
    config = layer.get_config()
    revived = leaf.from_config(config)
    assert revived.get_config() == config
    for name in arguments:
        assert hasattr(revived, name) and name in config
    assert (revived.name, revived.dtype_policy.name, revived.trainable) == ("low", "mixed_bfloat16", False)
    for name in (
        "ranks",
        "strides",
        "padding",
        "data_format",
        "execution",
        "recompute",
        "kernel_size",
        "filters",
        "units",
    ):
        assert getattr(revived, name, None) == arguments.get(name)
    assert revived.factor_regularizer.power_iterations == 3 and revived.factor_initializer.seed == 4


@pytest.mark.parametrize(
    "changed",
    [
        {"kernel_size": np.array([3, 3])},
        {"kernel_size": (np.int64(3), np.int32(3))},
        {"strides": (np.int64(2), 2), "dilation_rate": (np.int64(1), 1)},
        {"groups": np.int64(1)},
        {"use_bias": np.bool_(False)},
        {"filters": np.int64(8), "ranks": np.array([2, 3])},
    ],
    ids=str,
)
def test_numbers_of_numpy_become_plain_ones(changed):
    layer = elrt.layers.Tucker2Conv2D(**{"filters": 8, "kernel_size": 3, "ranks": 4, **changed})
    config = json.loads(json.dumps(layer.get_config()))
    plain = {name: np.asarray(value).tolist() for name, value in changed.items()}
    assert layer.get_config() == elrt.layers.Tucker2Conv2D(**{**config, **plain}).get_config()


FRESH = """
import sys
sys.path.insert(0, ".")
import elrt_keras, keras, numpy as np
import user_formats
model = keras.models.load_model("model.keras")
print(model.layers[0].format_name, type(elrt_keras.formats.get("my_svd")).__module__)
np.testing.assert_allclose(model(np.load("inputs.npy")), np.load("outputs.npy"), atol=1e-6)
"""
USER_FORMAT = """
from elrt_keras import formats

@formats.register
class MySVD(type(formats.get("svd"))):
    name = "my_svd"
"""


@pytest.mark.tensorflow
def test_a_model_in_a_format_of_the_user_loads_in_a_new_process(tmp_path, monkeypatch):
    (tmp_path / "user_formats.py").write_text(USER_FORMAT)
    monkeypatch.setattr(formats.base, "_FORMATS", dict(formats.base._FORMATS))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("user_formats")
    dense = keras.Sequential([keras.Input((6, 6, 4)), keras.layers.Conv2D(6, 3, groups=2, name="conv")])
    low = elrt.factorize(dense, elrt.plan_ranks(dense, format="my_svd", fraction=0.5, exclude=[]))
    inputs = random_array(2, 6, 6, 4)
    low.save(tmp_path / "model.keras")
    np.save(tmp_path / "inputs.npy", inputs)
    np.save(tmp_path / "outputs.npy", to_numpy(low(inputs)))
    done = commands.program(FRESH, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.split()[-2:] == ["my_svd", "user_formats"], done.stderr
    failed = commands.program(FRESH.replace("import user_formats", ""), cwd=tmp_path)
    assert failed.returncode != 0 and "Received: format='my_svd'" in failed.stderr


@pytest.mark.parametrize("leaf", thorough_but((elrt.layers.Tucker2Conv2D, elrt.layers.CPConv1D), LEAVES))
def test_saved_models_come_back_with_equal_outputs_and_penalties(leaf, tmp_path):
    dims = leaf.spatial_dims
    arguments = arguments_of(leaf, kernel_size=3, strides=1, dilation_rate=2, data_format="channels_last")
    if dims == 1:
        arguments["padding"] = "causal"
    layer = leaf(**arguments)
    model = keras.Sequential([keras.Input((*(7,) * dims, 4)), layer])
    layer.bias.assign(random_array(6, seed=8))
    inputs = random_array(2, *(7,) * dims, 4)
    model.save(tmp_path / "model.keras")
    revived = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(revived(inputs)), to_numpy(model(inputs)))
    np.testing.assert_allclose(sum(map(to_numpy, revived.losses)), sum(map(to_numpy, model.losses)), rtol=1e-6)
    assert revived.layers[0].ranks == layer.ranks


def test_weights_alone_load_into_another_strength(tmp_path):
    def build(strength):
        regularizer = elrt.regularizers.DoubleSoftOrthogonality(strength)
        layer = elrt.layers.Tucker2Conv2D(4, 3, 2, factor_regularizer=regularizer)
        return keras.Sequential([keras.Input((8, 8, 4)), layer])

    first, second = build(0.1), build(0.7)
    first.save_weights(tmp_path / "w.weights.h5")
    second.load_weights(tmp_path / "w.weights.h5")
    inputs = random_array(1, 8, 8, 4)
    np.testing.assert_array_equal(to_numpy(first(inputs)), to_numpy(second(inputs)))
    assert float(to_numpy(second.layers[0].factor_regularizer.strength_variable)) == pytest.approx(0.7)


def low_rank_pair(**penalties):
    """Builds a model of two low-rank layers, each with its own regularizer."""
    dso = elrt.regularizers.DoubleSoftOrthogonality
    chain = [elrt.layers.Tucker2Conv2D(4, 3, 2, factor_regularizer=dso(0.1), **penalties) for _ in range(2)]
    dense = elrt.layers.LowRankDense(3, 2, factor_regularizer=dso(0.1))
    return keras.Sequential([keras.Input((8, 8, 4)), *chain, keras.layers.GlobalAveragePooling2D(), dense])


@pytest.mark.tensorflow
def test_checkpoints_of_tensorflow_hold_the_factors(tmp_path):
    import tensorflow as tf

    model, other = low_rank_pair(), low_rank_pair()
    path = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
    tf.train.Checkpoint(model=other).restore(path).assert_existing_objects_matched()
    for one, same in zip(model.weights, other.weights):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(same))


def strengths_in(tree):
    """Finds the strengths in a part of a state tree, which has a level for each part of a variable's path."""
    inner = [value for value in tree.values() if isinstance(value, dict)]
    own = [value for name, value in tree.items() if "strength" in name and not isinstance(value, dict)]
    return own + [strength for one in inner for strength in strengths_in(one)]


def test_a_state_tree_tells_the_strengths_of_several_regularizers_apart(tmp_path):
    """Checks that the paths of the variables differ: Keras names the entries by them."""
    model = low_rank_pair(kernel_regularizer=elrt.regularizers.SoftOrthogonality(0.2))
    model.save(tmp_path / "model.keras")
    for one in (model, keras.models.clone_model(model), keras.models.load_model(tmp_path / "model.keras")):
        one.compile("sgd", "mse")
        tree = one.get_state_tree(value_format="numpy_array")
        strengths = strengths_in(tree["non_trainable_variables"])
        np.testing.assert_allclose(
            sorted(strengths), [0.1, 0.1, 0.1, 0.2, 0.2] if one is not model else [0.1] * 3 + [0.2]
        )
        one.set_state_tree(tree)


def test_strengths_have_the_same_names_in_every_program():
    """Checks that a model can load names saved by another model, regardless of objects made between the two."""

    def named():
        inputs = keras.Input((6, 6, 4))
        x = keras.layers.Conv2D(4, 3, padding="same", name="first")(inputs)
        dense = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="second")(x), name="network")
        penalty = elrt.regularizers.DoubleSoftOrthogonality
        plan = {"first": ("tucker2", 2), "second": ("svd", 2)}
        return elrt.factorize(dense, plan, factor_regularizer=penalty(0.1), kernel_regularizer=penalty(0.2))

    model, other = named(), named()
    for one in (model, other):
        one.compile("sgd", "mse")
    model.get_layer("first").factor_regularizer.strength = 0.7
    tree = model.get_state_tree(value_format="numpy_array")["non_trainable_variables"]
    other.set_state_tree({"non_trainable_variables": tree})
    strength = other.get_layer("first").factor_regularizer.strength_variable
    assert float(keras.ops.convert_to_numpy(strength)) == pytest.approx(0.7)
    if keras.backend.backend() == "torch":
        named().load_state_dict(model.state_dict())  # PyTorch refuses missing and unexpected names


def test_optimizer_state_survives(tmp_path):
    layer = elrt.layers.Tucker2Conv2D(4, 3, 2, factor_regularizer=elrt.regularizers.SoftOrthogonality(0.1))
    model = keras.Sequential([keras.Input((6, 6, 4)), layer, keras.layers.GlobalAveragePooling2D()])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    x, y = random_array(8, 6, 6, 4), random_array(8, 4, seed=1)
    model.fit(x, y, epochs=1, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    revived = keras.models.load_model(tmp_path / "model.keras")
    for candidate in (model, revived):
        candidate.fit(x, y, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(model.weights, revived.weights):
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), atol=1e-6)
