"""The CIFAR ResNets: exact sizes, the option-A shortcut, normalisation, gradients."""

import keras
import numpy as np
import pytest
from common import gradients, random_array, to_numpy

import elrt_keras as elrt

PARAMS = {"resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018, "resnet110": 1_727_962}


@pytest.mark.parametrize("name", PARAMS)
def test_trainable_parameters(name):
    model = elrt.models.build(name)
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == PARAMS[name]
    assert len({layer.name for layer in model.layers}) == len(model.layers)


def test_names():
    assert elrt.models.list_models() == list(PARAMS)
    assert elrt.models.resnet20().name == "resnet20"
    with pytest.raises(ValueError, match=r"resnet110.*Received: name='resnet18'"):
        elrt.models.build("resnet18")


def test_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides():
    model = elrt.models.build("resnet20", input_shape=(8, 8, 3))
    probe = keras.Model(
        model.input, [model.get_layer(f"{n}").output for n in ("stage1_block3_relu", "stage2_block1_shortcut_pad")]
    )
    before, after = map(to_numpy, probe(random_array(2, 8, 8, 3, scale=100)))
    expected = np.pad(before[:, ::2, ::2], [(0, 0), (0, 0), (0, 0), (8, 8)])
    np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize("normalization", [None, ([10.0, 20.0, 30.0], [2.0, 4.0, 8.0]), (100.0, 50.0)])
def test_raw_pixels_are_normalised_inside(normalization):
    model = elrt.models.build("resnet20", input_shape=(8, 8, 3), normalization=normalization)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype("float32")
    mean, std = (127.5, 127.5) if normalization is None else map(np.array, normalization)
    got = to_numpy(model.get_layer("normalization")(pixels))
    np.testing.assert_allclose(got, (pixels - mean) / std, atol=1e-4)


def test_bad_builder_arguments():
    with pytest.raises(ValueError, match="one value per channel, 3"):
        elrt.models.build("resnet20", normalization=([1.0, 2.0], [1.0, 1.0]))
    with pytest.raises(ValueError, match=r"need a plan.*factor_initializer"):
        elrt.models.build("resnet20", factor_initializer="spectral")


def test_low_rank_build_outputs_probabilities_and_every_parameter_gets_a_gradient():
    plan = elrt.plan_ranks(elrt.models.build("resnet20", (8, 8, 1), 7), fraction=0.5)
    model = elrt.models.build(
        "resnet20", (8, 8, 1), 7, plan, factor_regularizer=elrt.regularizers.DoubleSoftOrthogonality(1e-3)
    )
    images = random_array(4, 8, 8, 1, scale=100)
    outputs = to_numpy(model(images))
    assert outputs.shape == (4, 7)
    np.testing.assert_allclose(outputs.sum(axis=1), 1, atol=1e-5)

    def loss():
        return keras.ops.mean(keras.ops.square(model(images, training=True)[:, 0])) + sum(model.losses)

    found = gradients(loss, model.trainable_variables)
    missing = [v.path for v, g in zip(model.trainable_variables, found) if g is None or not np.abs(g).max() > 0]
    assert missing == []
