"""`recompute=True`: the same training, with the chain run a second time for the gradient."""

import keras
import numpy as np
import pytest
from common import random_array, thorough_but, to_numpy

import elrt_keras as elrt

pytestmark = pytest.mark.backends

LAYERS = {
    "tucker2": lambda **options: elrt.layers.Tucker2Conv2D(6, 3, (2, 3), padding="same", **options),
    "composed": lambda **options: elrt.layers.Tucker2Conv2D(6, 3, (2, 3), execution="compose", **options),
    "cp": lambda **options: elrt.layers.CPConv2D(6, 3, 5, strides=2, activation="relu", **options),
    "dense": lambda **options: elrt.layers.LowRankDense(6, 2, **options),
}


def trained(make, recompute, dtype="float32", eagerly=False):
    keras.utils.set_random_seed(1)
    layer = make(recompute=recompute, dtype=dtype, factor_regularizer=elrt.regularizers.DoubleSoftOrthogonality(0.1))
    model = keras.Sequential([keras.Input((8, 8, 4)), layer, keras.layers.GlobalAveragePooling2D()])
    before = [to_numpy(weight) for weight in model.weights]
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", jit_compile=False, run_eagerly=eagerly)
    model.fit(random_array(16, 8, 8, 4), random_array(16, 6, seed=1), epochs=3, batch_size=8, shuffle=False, verbose=0)
    return before, [to_numpy(weight) for weight in model.weights]


@pytest.mark.parametrize(
    "dtype, eagerly",
    thorough_but([("float32", False)], [("float32", False), ("float32", True), ("mixed_bfloat16", False)]),
)
@pytest.mark.parametrize("name", thorough_but(("tucker2",), LAYERS))
def test_it_trains_to_the_same_weights(name, dtype, eagerly):
    (before, one), (_, other) = (trained(LAYERS[name], recompute, dtype, eagerly) for recompute in (False, True))
    # The same operations in the same precision; compilers may fuse them otherwise.
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    for start, a, b in zip(before, one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
        assert np.abs(a - start).max() > 1e-3


def gradient_counting_runs(layer, inputs, monkeypatch):
    """Counts the runs of the chain for one gradient, forward and backward."""
    runs, run = [], layer._run_way
    monkeypatch.setattr(layer, "_run_way", lambda *arguments: (runs.append(1), run(*arguments))[1])
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(inputs, training=True))
        assert all(gradient is not None for gradient in tape.gradient(loss, [w.value for w in layer.trainable_weights]))
    else:
        keras.ops.sum(layer(inputs, training=True)).backward()
        assert all(weight.value.grad is not None for weight in layer.trainable_weights)
    return len(runs)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX traces once and recomputes compiled")
@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_runs_the_chain_again(name, monkeypatch):
    inputs = keras.ops.convert_to_tensor(random_array(2, 8, 8, 4))
    for recompute, expected in ((False, 1), (True, 2)):
        layer = LAYERS[name](recompute=recompute)
        layer.build(inputs.shape)
        assert gradient_counting_runs(layer, inputs, monkeypatch) == expected


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX")
@pytest.mark.parametrize("name", LAYERS)
def test_jax_marks_the_chain_for_it(name):
    import jax

    for recompute in (False, True):
        layer = LAYERS[name](recompute=recompute)
        layer.build((2, 8, 8, 4))

        def loss(values, layer=layer):
            outputs, _ = layer.stateless_call(values, [], np.ones((2, 8, 8, 4), "float32"), training=True)
            return outputs.sum()

        traced = str(jax.make_jaxpr(jax.grad(loss))([weight.value for weight in layer.trainable_weights]))
        assert ("remat" in traced or "checkpoint" in traced) == recompute


@pytest.mark.parametrize("training", [False, True])
def test_outputs_are_those_without_it(training):
    inputs = random_array(2, 8, 8, 4)
    one, other = (LAYERS["tucker2"](recompute=recompute) for recompute in (False, True))
    for layer in (one, other):
        layer.build(inputs.shape)
    other.set_weights(one.get_weights())
    np.testing.assert_array_equal(to_numpy(one(inputs, training=training)), to_numpy(other(inputs, training=training)))


def test_factorize_passes_it_on():
    model = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(6, 3, name="conv")])
    assert elrt.factorize(model, {"conv": ("tucker2", 2)}, recompute=True).get_layer("conv").recompute
    assert not elrt.factorize(model, {"conv": ("tucker2", 2)}).get_layer("conv").recompute
