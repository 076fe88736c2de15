"""Custom layers made of other layers: the planner and `factorize` open them if nothing is lost."""

import keras
import numpy as np
import pytest
from common import random_array, to_numpy

import elrt_keras as elrt

layers = keras.layers


@keras.saving.register_keras_serializable("elrt_tests")
class Block(layers.Layer):
    """A custom block around a convolution; options add more operations."""

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


@pytest.mark.backends
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


def test_a_block_made_frozen_stays_so():
    inputs = keras.Input((6, 6, 4))
    model = keras.Model(inputs, Block(name="block", trainable=False)(inputs))
    low_rank = elrt.factorize(model, {"block/conv": ("tucker2", 2)})
    assert not low_rank.get_layer("block").trainable_weights
    model.get_layer("block").trainable = True
    assert elrt.factorize(model, {"block/conv": ("tucker2", 2)}).get_layer("block").trainable_weights


class Wired(Block):
    def call(self, x, training=None):
        y = self.conv(x)
        return (x if training else y) + y


class Weighted(Block):
    def call(self, x, training=None):
        return x + self.conv(x) * (0.1 if training else 1.0)


class Masked(Block):
    def call(self, x, mask=None):
        y = self.conv(x)
        return y if mask is None else y * keras.ops.cast(mask, y.dtype)[..., None]


class Noisy(Block):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x):
        return self.conv(x) + keras.random.normal((4,), seed=self.seeds)


class Passing(Block):
    """Passes its `training` argument to its layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm, self.dropout = layers.BatchNormalization(), layers.Dropout(0.5)

    def call(self, x, training=None):
        x = self.norm(self.conv(x), training=training)
        return keras.ops.concatenate([self.dropout(x, training=training), 2.0 * x], axis=-1)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 8)


class Frozen(Passing):
    """Passes a constant `training` argument to its layers."""

    def build(self, input_shape):
        super().build(input_shape)
        self.norm.build(input_shape)

    def call(self, x):
        x = self.norm(self.conv(x), training=False)
        return keras.ops.concatenate([self.dropout(x, training=False), 2.0 * x], axis=-1)


KINDS = [(Wired, 0), (Weighted, 0), (Masked, 0), (Noisy, 0), (Frozen, 0), (Passing, 1), (Block, 1)]


@pytest.mark.parametrize("kind, opens", KINDS)
def test_blocks_that_would_compute_something_else_stay_closed(kind, opens):
    inputs = keras.Input((6, 6, 4))
    model = keras.Model(inputs, layers.Conv2D(4, 3, name="last")(kind(name="block")(inputs)))
    plan = elrt.plan_ranks(model, fraction=1.0, exclude=[], break_even=False)
    assert ("block/conv" in plan) == bool(opens) and ("block" in plan.reasons) != bool(opens)
    low_rank = elrt.factorize(model, plan, factor_initializer="decomposed")
    assert [layer.name for layer in low_rank.layers[1:]] == ["block", "last"]
    images = random_array(2, 6, 6, 4)
    if kind is Noisy:
        assert np.abs(to_numpy(low_rank(images)) - to_numpy(low_rank(images))).max() > 0
        return
    np.testing.assert_allclose(to_numpy(low_rank(images)), to_numpy(model(images)), atol=1e-4)
    if kind is not Passing:
        outputs = [to_numpy(one(images, training=True)) for one in (model, low_rank)]
        np.testing.assert_allclose(*outputs, atol=1e-4)
        return
    for one in (model, low_rank):
        one(images, training=True)
    statistics = [[to_numpy(w) for w in one.weights if "moving" in w.name] for one in (model, low_rank)]
    for a, b in zip(*statistics, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert np.abs(to_numpy(low_rank(images, training=True)) - to_numpy(low_rank(images))).max() > 0.01


@pytest.mark.backends
def test_a_block_called_at_several_sizes_and_types(tmp_path):
    block = Block(name="head")
    inputs = keras.Input((8, 8, 4)), keras.Input((5, 6, 4))
    model = keras.Model(inputs, [block(one) for one in inputs])
    plan = elrt.plan_ranks(model, fraction=0.5, exclude=[], break_even=False)
    low_rank = elrt.factorize(model, plan)
    for format_name, ranks in plan.values():
        assert format_name == "tucker2" and ranks == (2, 2)
    costs = plan.costs["head/conv"]
    assert elrt.count_costs(low_rank).macs == costs["planned_macs"] < elrt.count_costs(model).macs
    full = elrt.factorize(model, {"head/conv": ("tucker2", 1.0)}, factor_initializer="decomposed")
    images = random_array(2, 8, 8, 4), random_array(2, 5, 6, 4, seed=1)
    for a, b in zip(full(images), model(images)):
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), atol=1e-4)
    full.save(tmp_path / "full.keras")
    again = keras.models.load_model(tmp_path / "full.keras")
    np.testing.assert_array_equal(to_numpy(again(images)[1]), to_numpy(full(images)[1]))


def test_a_block_keeps_what_it_makes_of_its_input_type():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        block = Block(name="block")
    finally:
        keras.config.set_dtype_policy("float32")
    inputs = keras.Input((6, 6, 4), dtype="float32")
    model = keras.Model(inputs, block(inputs))
    low_rank = elrt.factorize(model, {"block/conv": ("tucker2", 2)})
    kinds = [keras.backend.standardize_dtype(one(random_array(1, 6, 6, 4)).dtype) for one in (model, low_rank)]
    assert kinds[0] == kinds[1]


@keras.saving.register_keras_serializable("elrt_tests")
class LowRankBlock(Block):
    """A custom block around a low-rank convolution."""

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


class TiedDecoder(Block):
    """Reads the weight of its layer."""

    def call(self, x):
        return keras.ops.matmul(self.conv(x), keras.ops.transpose(self.conv.kernel[0, 0]))


class PassedOn(Block):
    """Passes the weight of its layer to an operation."""

    def call(self, x):
        return self.conv(x) * keras.ops.mean(x) + keras.ops.multiply(x, self.conv.bias)


@pytest.mark.backends
@pytest.mark.parametrize(
    "kind, reason",
    [
        (TiedDecoder, "it reads the value of 'block/conv/kernel'"),
        (PassedOn, "it reads the value of 'block/conv/bias'"),
    ],
)
def test_blocks_that_read_values_stay_closed_and_say_why(kind, reason):
    inputs = keras.Input((6, 6, 4))
    model = keras.Model(inputs, layers.Conv2D(4, 3, name="last")(kind(name="block")(inputs)))
    plan = elrt.plan_ranks(model, fraction=1.0, exclude=[], break_even=False)
    assert "block/conv" not in plan and reason in plan.reasons["block"]
    low_rank = elrt.factorize(model, plan, factor_initializer="decomposed")
    images = random_array(2, 6, 6, 4)
    for step in (0.0, 1.0):  # weights that training would change change the outputs
        low_rank.get_layer("block").conv.bias.assign(np.full(4, step))
        model.get_layer("block").conv.bias.assign(np.full(4, step))
        np.testing.assert_allclose(to_numpy(low_rank(images)), to_numpy(model(images)), atol=1e-4)


@pytest.mark.tensorflow
def test_opening_a_block_changes_no_state():
    inputs = keras.Input((6, 6, 4))
    model = keras.Model(inputs, Noisy(name="block")(inputs))
    before = to_numpy(model.get_layer("block").seeds.state)
    elrt.plan_ranks(keras.Model(inputs, layers.Conv2D(8, 3)(model(inputs))), fraction=0.5, exclude=[])
    np.testing.assert_array_equal(to_numpy(model.get_layer("block").seeds.state), before)


class Strong(Block):
    """A block whose graph depends on an attribute."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.strength = 0.0

    def call(self, x):
        return x + self.strength * self.conv(x)


@pytest.mark.tensorflow
def test_a_block_is_opened_as_it_is_now():
    inputs = keras.Input((6, 6, 4))
    model = keras.Model(inputs, Strong(name="block")(inputs))
    elrt.plan_ranks(model, fraction=1.0, exclude=[], break_even=False)
    images = random_array(2, 6, 6, 4)
    for strength in (1.0, 2.0):
        model.get_layer("block").strength = strength
        low_rank = elrt.factorize(model, {"block/conv": ("tucker2", 1.0)}, factor_initializer="decomposed")
        np.testing.assert_allclose(to_numpy(low_rank(images)), to_numpy(model(images)), atol=1e-4)


class Unclonable(layers.Layer):
    """Has no configuration of its own and takes no `name`."""

    def __init__(self, units):
        super().__init__()
        self.dense = layers.Dense(units)

    def build(self, shape):
        self.dense.build(shape)
        self.built = True

    def call(self, inputs):
        return inputs * self.dense(inputs)


class Holding(Block):
    """Can be cloned and saved, although its sublayer cannot by itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = Unclonable(4)

    def build(self, shape):
        super().build(shape)
        self.scale.build(shape)

    def call(self, x):
        return self.scale(self.conv(x))


@pytest.mark.tensorflow
def test_a_block_of_parts_that_cannot_be_made_again_stays_closed_and_one_at_the_top_is_refused():
    inputs = keras.Input((6, 6, 4))
    model = keras.Model(inputs, layers.Conv2D(8, 3, name="last")(Holding(name="block")(inputs)))
    plan = elrt.plan_ranks(model, fraction=1.0, exclude=[], break_even=False)
    assert "a Unclonable, cannot be made again by itself" in plan.reasons["block"]
    low_rank = elrt.factorize(model, plan, factor_initializer="decomposed")
    images = random_array(2, 6, 6, 4)
    np.testing.assert_allclose(to_numpy(low_rank(images)), to_numpy(model(images)), atol=1e-4)
    top = keras.Model(inputs, layers.Conv2D(8, 3, name="last")(Unclonable(4)(inputs)))
    assert "last" in elrt.plan_ranks(top, fraction=0.5, exclude=[])
    with pytest.raises(ValueError, match="made from their configuration. Received: 'unclonable.*', a Unclonable"):
        elrt.factorize(top, {"last": ("svd", 2)})


@pytest.mark.tensorflow
def test_an_operation_of_the_model_on_a_weight_is_refused():
    conv = layers.Conv2D(4, 3, padding="same", name="conv")
    inputs = keras.Input((6, 6, 4))
    x = conv(inputs)
    model = keras.Model(inputs, layers.Conv2D(8, 3, name="last")(keras.ops.add(x, conv.bias)))
    with pytest.raises(ValueError, match="Received: 'add.*', which reads 'conv/bias'"):
        elrt.factorize(model, {"last": ("svd", 2)})
