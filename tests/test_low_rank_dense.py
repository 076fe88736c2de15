"""The low-rank dense layer: two matrix products that are equal to one."""

import keras
import numpy as np
import pytest
from common import EPS, gradients, random_array, random_examples, to_numpy
from hypothesis import given
from hypothesis import strategies as st

import elrt_keras as elrt

pytestmark = pytest.mark.backends

LowRankDense = elrt.layers.LowRankDense


def product(layer):
    first, second = (to_numpy(factor) for factor in layer.factors)
    return first @ second


@random_examples(60)
@given(
    leading=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    channels=st.integers(1, 8),
    units=st.integers(1, 8),
    fraction=st.sampled_from((0.25, 0.5, 1.0)),
    execution=st.sampled_from(("auto", "chain", "compose")),
)
def test_equals_one_product_with_the_composed_kernel(leading, channels, units, fraction, execution):
    layer = LowRankDense(units, fraction, execution=execution, activation="tanh", bias_initializer="ones")
    inputs = random_array(*leading, channels)
    outputs = to_numpy(layer(inputs))
    expected = np.tanh(inputs @ product(layer) + 1)
    assert outputs.shape == expected.shape == tuple(layer.compute_output_shape(inputs.shape))
    factors = [np.abs(to_numpy(factor)) for factor in layer.factors]
    magnitude = np.abs(inputs) @ factors[0] @ factors[1] + 1
    roundings = 2 * channels + layer.ranks[0] + 8  # tanh is 1-Lipschitz, and rounds a few times itself
    assert np.all(np.abs(outputs - expected) <= roundings * EPS["float32"] * magnitude)


@pytest.mark.parametrize("rank, macs", [(4, 4 * (32 + 16)), (16, 32 * 16)])
def test_auto_takes_the_cheaper_execution(rank, macs):
    layer = LowRankDense(16, rank)
    layer.build((None, 32))
    assert layer.compute_macs((1, 32)) == macs and layer.compute_macs((1, 5, 7, 32)) == 35 * macs
    assert layer.count_params() == rank * (32 + 16) + 16


@pytest.mark.tensorflow
def test_where_both_cost_the_same_the_chain_runs():
    layer = LowRankDense(12, 3)
    layer.build((None, 4))  # 3·(4 + 12) = 4·12
    assert layer.runs_chain


@pytest.mark.tensorflow
def test_every_place_of_a_sequence_is_counted():
    layer = LowRankDense(16, 4)
    layer.build((None, 5, 7, 32))
    assert layer.compute_activations((1, 5, 7, 32)) == 5 * 7 * (4 + 16)


def test_masks_pass_as_through_a_stock_layer():
    # Use a Sequential model: a functional copy would pass the mask on by itself.
    stack = [
        keras.Input((5,), dtype="int32"),
        keras.layers.Embedding(9, 4, mask_zero=True, embeddings_initializer="orthogonal"),
        keras.layers.Dense(6, name="fc"),
        keras.layers.LSTM(3),
    ]
    model = keras.Sequential(stack)
    low_rank = elrt.factorize(model, {"fc": ("svd", 1.0)}, factor_initializer="decomposed")
    words = np.array([[3, 1, 4, 0, 0], [1, 5, 0, 0, 0]])
    np.testing.assert_allclose(to_numpy(low_rank(words)), to_numpy(model(words)), atol=1e-5)


def test_from_dense_at_full_rank_and_truncated():
    dense = keras.layers.Dense(6, activation="relu", name="fc", kernel_regularizer="l2", bias_initializer="ones")
    inputs = random_array(5, 9)
    expected = to_numpy(dense(inputs))
    layer = LowRankDense.from_dense(dense, 1.0)
    assert layer.name == "fc" and layer.kernel_regularizer is not None
    np.testing.assert_allclose(to_numpy(layer(inputs)), expected, atol=1e-5)
    values = np.linalg.svd(to_numpy(dense.kernel), compute_uv=False)
    low = LowRankDense.from_dense(dense, 2)
    error = np.linalg.norm(product(low) - to_numpy(dense.kernel))
    assert error == pytest.approx(np.sqrt(np.sum(values[2:] ** 2)), rel=1e-5)
    with pytest.raises(ValueError, match="a keras.layers.Dense for LowRankDense. Received: layer='conv'"):
        LowRankDense.from_dense(keras.layers.Conv2D(2, 3, name="conv"), 1)


def test_penalties_and_gradients():
    layer = LowRankDense(
        6,
        3,
        kernel_regularizer=keras.regularizers.L2(0.3),
        factor_regularizer=elrt.regularizers.SoftOrthogonality(0.1),
        factor_initializer="glorot_uniform",
    )
    layer.build((None, 8))
    second = to_numpy(layer.factors[1])
    expected = 0.3 * np.sum(product(layer) ** 2) + 0.1 / 3 * np.sum((second @ second.T - np.eye(3)) ** 2)
    np.testing.assert_allclose(sum(map(to_numpy, layer.losses)), expected, rtol=1e-5)
    assert all(np.abs(g).max() > 0 for g in gradients(lambda: sum(layer.losses), layer.factors))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"ranks": 0}, "Received: ranks=0"),
        ({"ranks": 7}, "r of at most the full rank, 6, .*Received: ranks=7"),
        ({"ranks": (2, 2)}, r"1 entry in `ranks` of format 'svd', \(r\)"),
        ({"units": 0}, "units"),
        ({"execution": "fast"}, "Received: execution='fast'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LowRankDense(**{"units": 8, "ranks": 2, **arguments}).build((None, 6))
    with pytest.raises(ValueError, match="last axis.*Received"):
        LowRankDense(8, 2).build((None, None))


@pytest.mark.thorough
def test_learns_a_matrix_of_its_rank():
    keras.utils.set_random_seed(0)
    target = random_array(8, 2) @ random_array(2, 5, seed=1)
    inputs = random_array(256, 8, seed=2)
    model = keras.Sequential([keras.Input((8,)), LowRankDense(5, 2, use_bias=False)])
    model.compile(keras.optimizers.Adam(0.02), "mse")
    history = model.fit(inputs, inputs @ target, epochs=60, batch_size=64, verbose=0)
    assert history.history["loss"][-1] < 1e-3 * history.history["loss"][0]
