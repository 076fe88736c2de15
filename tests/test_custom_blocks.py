"""Custom layers made of other layers: opened by the planner and `factorize` where nothing is lost by that."""

import keras
import numpy as np
import pytest
from common import random_array, to_numpy

import elrt_keras as elrt

layers = keras.layers


@keras.saving.register_keras_serializable("elrt_tests")
class Block(layers.Layer):
    """A custom block around a convolution; what it does beside depends on its options."""

    def __init__(self, doubles=False, **kwargs):
        super().__init__(**kwargs)
        self.doubles = doubles
        self.conv = layers.Conv2D(4, 3, padding="same", name="conv")

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.built = True

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, x, scale=None, training=None):
        y = self.conv(x)
        if self.doubles and training:
            y = 2 * y
        return x + (y if scale is None else scale * y)

    def get_config(self):
        return {**super().get_config(), "doubles": self.doubles}


@pytest.mark.parametrize(
    "options, arguments, opens",
    [
        ({}, {}, True),
        ({"doubles": True}, {}, False),
        ({"activity_regularizer": "l2"}, {}, False),
        ({}, {"scale": 0.5}, False),
    ],
)
def test_custom_blocks_are_opened_where_nothing_is_lost(options, arguments, opens):
    inputs = keras.Input((6, 6, 4))
    x = Block(name="block", **options)(inputs, **arguments)
    model = keras.Model(inputs, layers.Conv2D(4, 3, name="last")(x))
    plan = elrt.plan_ranks(model, fraction=1.0, exclude=[], break_even=False)
    assert ("block/conv" in plan) == opens
    low_rank = elrt.factorize(model, plan, factor_initializer="decomposed")
    images = random_array(2, 6, 6, 4)
    for training in (False, True):
        outputs = [to_numpy(one(images, training=training)) for one in (model, low_rank)]
        np.testing.assert_allclose(*outputs, atol=1e-4)


@keras.saving.register_keras_serializable("elrt_tests")
class LowRankBlock(Block):
    """The same block around a low-rank convolution."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = elrt.layers.Tucker2Conv2D(4, 3, ranks=3, padding="same", name="conv")


def test_low_rank_layers_in_custom_blocks_are_reached():
    model = keras.Sequential([keras.Input((6, 6, 4)), LowRankBlock(name="block"), layers.Conv2D(4, 3, name="last")])
    images = random_array(2, 6, 6, 4)
    for copy in (elrt.merge(model), elrt.expand(model), elrt.shrink(model, max_macs=1.0)):
        np.testing.assert_allclose(to_numpy(copy(images)), to_numpy(model(images)), atol=1e-5)
    dense = elrt.count_costs(elrt.merge(model)).macs
    shrunk = elrt.shrink(model, max_macs=0.7, multiple_of=1)
    assert elrt.count_costs(shrunk).macs <= 0.7 * dense
    assert shrunk.get_layer("block").get_layer("conv").ranks < (3, 3)
