"""Costs against closed forms and published figures."""

import threading

import keras
import numpy as np
import pytest

import elrt_keras as elrt

layers = keras.layers


def costs_of(layer, input_shape):
    return elrt.count_costs(keras.Sequential([keras.Input(input_shape), layer]))


@pytest.mark.parametrize(
    "layer, input_shape, params, macs",
    [
        (layers.Conv2D(8, 3, padding="same"), (10, 10, 4), 9 * 32 + 8, 100 * 9 * 32),
        (layers.Conv2D(8, (3, 2), strides=(2, 1)), (11, 10, 4), 6 * 32 + 8, 5 * 9 * 6 * 32),
        (layers.Conv2D(8, 3, dilation_rate=2), (10, 10, 4), 9 * 32 + 8, 36 * 9 * 32),
        (layers.Conv2D(8, 3, groups=2, padding="same"), (10, 10, 4), 9 * 16 + 8, 100 * 9 * 16),
        (layers.Conv2D(8, 3, padding="same", data_format="channels_first"), (4, 10, 6), 296, 60 * 9 * 32),
        (layers.Conv1D(8, 3, padding="causal"), (10, 4), 3 * 32 + 8, 10 * 3 * 32),
        (layers.Conv3D(2, 2), (4, 4, 4, 3), 8 * 6 + 2, 27 * 8 * 6),
        (layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"), (10, 10, 4), 72 + 8, 100 * 72),
        (layers.SeparableConv2D(8, 3, padding="same"), (10, 10, 4), 36 + 32 + 8, 100 * (36 + 32)),
        (layers.Conv2DTranspose(8, 3, strides=2, padding="same"), (5, 5, 4), 9 * 32 + 8, 25 * 9 * 32),
        (layers.Dense(7), (5,), 42, 35),
        (layers.Dense(7), (3, 5), 42, 3 * 35),
        (layers.EinsumDense("abc,cd->abd", (3, 7)), (3, 5), 35, 3 * 35),
        (layers.EinsumDense("ab...,bc->ac...", 7), (5, 6), 35, 6 * 35),
        (layers.TimeDistributed(layers.Conv2D(8, 3, padding="same")), (6, 10, 10, 4), 296, 6 * 100 * 9 * 32),
        (layers.TimeDistributed(layers.Dense(7)), (6, 5), 42, 6 * 35),
        (layers.SimpleRNN(3), (6, 5), 3 * (5 + 3 + 1), 6 * 3 * (5 + 3)),
        (layers.LSTM(3), (6, 5), 4 * 3 * (5 + 3 + 1), 6 * 4 * 3 * (5 + 3)),
        (layers.GRU(3, return_sequences=True), (6, 5), 3 * 3 * (5 + 3 + 2), 6 * 3 * 3 * (5 + 3)),
        (layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)]), (6, 5), 12 * 9 + 6 * 7, 6 * (12 * 8 + 6 * 5)),
        (layers.ConvLSTM2D(3, 3, padding="same"), (4, 8, 8, 2), 12 * 9 * 5 + 12, 4 * 64 * 9 * (2 + 3) * 12),
        (layers.ConvLSTM1D(3, 3, strides=2, return_sequences=True), (4, 9, 2), 12 * 15 + 12, 4 * 4 * 15 * 12),
        (layers.Bidirectional(layers.LSTM(3)), (6, 5), 2 * 4 * 3 * (5 + 3 + 1), 2 * 6 * 4 * 3 * (5 + 3)),
        (layers.BatchNormalization(), (4, 4, 5), 10, 0),
        (layers.Normalization(), (4, 4, 5), 0, 0),
        (layers.MaxPooling2D(), (4, 4, 5), 0, 0),
    ],
)
def test_stock_layers(layer, input_shape, params, macs):
    costs = costs_of(layer, input_shape)
    assert (costs.params, costs.macs) == (params, macs)


@pytest.mark.parametrize("strides", [1, 2])
def test_tucker2_formula(strides):
    r_in, r_out, size, out = 3, 5, 8, 8 // strides
    layer = elrt.layers.Tucker2Conv2D(12, 3, (r_in, r_out), strides=strides, padding="same", execution="chain")
    costs = costs_of(layer, (size, size, 10))
    assert costs.macs == size**2 * 10 * r_in + out**2 * (9 * r_in * r_out + r_out * 12)
    assert costs.params == 10 * r_in + 9 * r_in * r_out + r_out * 12 + 12
    assert costs.activation_bytes == 4 * (size**2 * r_in + out**2 * (r_out + 12))
    composed = elrt.layers.Tucker2Conv2D(12, 3, (r_in, r_out), strides=strides, padding="same", execution="compose")
    assert costs_of(composed, (size, size, 10)).macs == out**2 * 9 * 120


@pytest.mark.backends
def test_shared_and_nested_layers():
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    block = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(4, 1, name="inner")], name="block")
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, block(block(shared(shared(inputs)))))
    costs = elrt.count_costs(model)
    assert costs.params == (9 * 16 + 4) + (16 + 4) == model.count_params()
    assert costs.macs == 2 * 64 * (9 * 16 + 16)
    assert {row.name: row.calls for row in costs.layers if row.macs} == {"shared": 2, "inner": 2}


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(4, 3)

    def call(self, inputs):
        return self.conv(inputs)


@pytest.mark.tensorflow
def test_weights_that_two_layers_share_count_once():
    inputs, cell = keras.Input((5, 3)), keras.layers.SimpleRNNCell(4)
    both = [keras.layers.RNN(cell, go_backwards=backwards)(inputs) for backwards in (False, True)]
    costs = elrt.count_costs(keras.Model(inputs, keras.layers.Add()(both)))
    assert costs.params == 3 * 4 + 4 * 4 + 4 and costs.macs == 2 * 5 * (3 * 4 + 4 * 4)


@pytest.mark.parametrize("activation", [layers.ReLU, layers.PReLU], ids=["ReLU", "PReLU"])
def test_layers_with_a_layer_as_their_activation_count_and_are_planned(activation):
    plain = keras.Sequential([keras.Input((9, 9, 8)), layers.Conv2D(16, 3, name="a"), layers.Conv2D(32, 3, name="b")])
    model = keras.Sequential(
        [
            keras.Input((9, 9, 8)),
            layers.Conv2D(16, 3, name="a", activation=activation()),
            layers.Conv2D(32, 3, name="b", activation=activation()),
        ]
    )
    assert elrt.count_costs(model).macs == elrt.count_costs(plain).macs == (49 * 8 * 16 + 25 * 16 * 32) * 9
    assert elrt.count_costs(model).params == model.count_params()
    plan = elrt.plan_ranks(model, max_macs=0.5, exclude=[], multiple_of=1)
    assert dict(plan) == dict(elrt.plan_ranks(plain, max_macs=0.5, exclude=[], multiple_of=1))
    low_rank = elrt.factorize(model, plan)
    assert elrt.count_costs(low_rank).macs <= 0.5 * elrt.count_costs(model).macs
    assert elrt.count_costs(low_rank).params == low_rank.count_params()


class Weighted(Subclassed):
    def build(self, input_shape):
        self.conv.build(input_shape)
        self.scale = self.add_weight(shape=(4,), name="scale")

    def call(self, inputs):
        return self.conv(inputs) * self.scale


def test_weights_of_a_model_or_block_beside_those_of_its_layers():
    model = Weighted()
    model(np.zeros((1, 6, 6, 2), "float32"))
    costs = elrt.count_costs(model, input_shape=(6, 6, 2))
    assert costs.params == model.count_params() == 9 * 8 + 4 + 4 and costs.macs == 16 * 9 * 8


def test_models_made_for_a_number_of_examples():
    inputs = keras.Input(batch_shape=(4, 8, 8))
    x = layers.Conv1D(8, 3, padding="same", name="conv")(inputs)
    model = keras.Model(inputs, layers.Dense(5)(keras.ops.reshape(x, (4, 64))))
    assert elrt.count_costs(model).macs == 8 * 3 * 8 * 8 + 64 * 5
    assert {row.output_shape[0] for row in elrt.count_costs(model).layers} == {1}
    stateful = keras.Sequential([inputs, layers.LSTM(6, stateful=True)])
    stateless = keras.Sequential([keras.Input((8, 8)), layers.LSTM(6)])
    assert elrt.count_costs(stateful).macs == elrt.count_costs(stateless).macs
    assert elrt.plan_ranks(model, fraction=0.5, exclude=[], multiple_of=1).costs["conv"]["macs"] == 8 * 3 * 8 * 8


def test_subclassed_model_with_a_given_shape():
    model = Subclassed()
    model(np.zeros((1, 6, 6, 2), "float32"))
    assert elrt.count_costs(model, input_shape=(6, 6, 2)).macs == 16 * 9 * 8


@pytest.mark.backends
def test_open_size_needs_a_shape_and_a_failing_trace_restores_keras():
    model = keras.Sequential([keras.Input((None, None, 2)), layers.Conv2D(4, 3)])
    with pytest.raises(ValueError, match="Expected `input_shape`.* leaves its input size open"):
        elrt.count_costs(model)
    with pytest.raises(ValueError, match="Expected `input_shape`, because .* is not known"):
        elrt.count_costs(keras.Sequential([layers.Conv2D(4, 3)]))
    with pytest.raises(ValueError, match="all sizes known. Received: input_shape=8"):
        elrt.count_costs(model, input_shape=8)
    with pytest.raises(ValueError, match=r"all sizes known. Received: input_shape=\(None, 6, 2\)"):
        elrt.count_costs(model, input_shape=(None, 6, 2))
    for shape in ((6, 6, 3), (6, 2)):
        with pytest.raises(ValueError, match=r"one example of '.*', \(None, None, 2\). Received: input_shape=\(6, "):
            elrt.count_costs(model, input_shape=shape)
    with pytest.raises(ValueError, match="Expected a Keras model. Received: model=None"):
        elrt.count_costs(None)
    assert elrt.count_costs(model, input_shape=(6, 6, 2)).macs == 16 * 9 * 8
    original = keras.layers.Layer.__call__
    with pytest.raises(Exception, match="."):
        elrt.count_costs(model, input_shape=(1, 1, 2))
    assert keras.layers.Layer.__call__ is original


@pytest.mark.parametrize("name, published", [("resnet20", 40.55), ("resnet56", 125.49)])
def test_published_macs(name, published):
    costs = elrt.count_costs(elrt.models.build(name))
    assert round(costs.macs / 1e6, 2) == published
    assert "total" in str(costs) and f"{costs.macs:,}" in str(costs)


def test_several_inputs_have_their_own_shapes():
    inputs = [keras.Input((4,)), keras.Input((6,))]
    model = keras.Model(inputs, layers.Dense(2)(layers.Concatenate()(inputs)), name="two")
    assert elrt.count_costs(model).macs == 20
    with pytest.raises(ValueError, match=r"for a model with several inputs. Received: input_shape=\(4,\), model='two'"):
        elrt.count_costs(model, input_shape=(4,))


def test_statistics_inside_a_wrapper_are_no_parameters():
    inside = keras.Sequential([keras.Input((5, 8)), layers.TimeDistributed(layers.BatchNormalization())])
    assert elrt.count_costs(inside).params == 16


def test_an_axis_merged_into_the_batch_counts():
    inputs = keras.Input((5, 12, 12, 16))  # frames of a video
    frames = keras.ops.reshape(inputs, (-1, 12, 12, 16))
    maps = layers.Conv2D(32, 3, padding="same", use_bias=False, name="conv")(frames)
    outputs = layers.Dense(24, use_bias=False, name="dense")(layers.GlobalAveragePooling2D()(maps))
    model = keras.Model(inputs, keras.ops.reshape(outputs, (-1, 5, 24)))
    dense = 5 * (144 * 9 * 16 * 32 + 32 * 24)
    assert elrt.count_costs(model).macs == dense
    plan = {"conv": ("tucker2", (8, 16)), "dense": ("svd", 8)}
    low_rank = elrt.factorize(model, plan)
    low = 5 * (144 * (16 * 8 + 9 * 8 * 16 + 16 * 32) + 8 * (32 + 24))
    assert elrt.count_costs(low_rank).macs == low
    plan = elrt.plan_ranks(model, max_macs=0.4, exclude=[])
    planned = sum(costs["planned_macs"] for costs in plan.costs.values())
    assert planned == elrt.count_costs(elrt.factorize(model, plan)).macs <= 0.4 * dense
    assert elrt.count_costs(elrt.merge(low_rank)).macs == dense


def test_what_other_threads_call_meanwhile_is_not_counted():
    """Calls layers in other threads, as a data pipeline or another count does."""
    model = keras.Sequential([keras.Input((8, 8, 8)), *(layers.Conv2D(16, 3, padding="same") for _ in range(6))])
    beside = keras.Sequential([keras.Input((8, 8, 3)), layers.Rescaling(2.0), layers.Conv2D(3, 1)])
    expected, stop, others = elrt.count_costs(model), threading.Event(), []
    original = keras.layers.Layer.__call__

    def call_and_count():
        while not stop.is_set():
            beside(np.ones((1, 8, 8, 3), "float32"))
            others.append(elrt.count_costs(beside).macs)

    thread = threading.Thread(target=call_and_count)
    thread.start()
    try:
        found = [elrt.count_costs(model) for _ in range(8)]
    finally:
        stop.set()
        thread.join()
    assert [(costs.macs, len(costs.layers)) for costs in found] == [(expected.macs, 6)] * 8
    assert set(others) == {64 * 9} and keras.layers.Layer.__call__ is original
