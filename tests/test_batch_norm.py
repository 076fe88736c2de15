"""Fused batch normalisation computes the same as the stock layer, and only its time differs."""

import keras
import numpy as np
import pytest
from common import random_examples
from hypothesis import given
from hypothesis import strategies as st

import elrt_keras as elrt

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"


def network(seed=0, channels=8, **arguments):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 7, 3))
    x = keras.layers.Conv2D(channels, 3, name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="bn", **arguments)(x)
    nested = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.BatchNormalization(momentum=0.7)])
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(keras.ops.relu(nested(x)))))


def trained(model, images, targets, steps=3, **arguments):
    """Trains some steps of gradient descent; returns the weights, with statistics, and the outputs."""
    model.compile(keras.optimizers.SGD(0.5, momentum=0.9), "mse", **arguments)
    for _ in range(steps):
        model.train_on_batch(images, targets)
    return [*model.get_weights(), model.predict(images, verbose=0)]


def batch(seed, size):
    rng = np.random.default_rng(seed)
    return rng.normal(3, 5, (size, 6, 7, 3)).astype("float32"), rng.normal(size=(size, 2)).astype("float32")


@random_examples(15 if ON_TENSORFLOW else 2)  # elsewhere both are the stock layers
@given(
    seed=st.integers(0, 99),
    size=st.sampled_from([1, 2, 9]),
    arguments=st.fixed_dictionaries(
        {
            "momentum": st.sampled_from([0.0, 0.9, 0.99]),
            "epsilon": st.sampled_from([1e-6, 1e-3, 0.3]),
            "center": st.booleans(),
            "scale": st.booleans(),
        }
    ),
)
def test_training_is_that_of_the_stock_layers(seed, size, arguments):
    images, targets = batch(seed, size)
    stock = trained(network(seed, **arguments), images, targets)
    fused = trained(elrt.fuse_batch_norm(network(seed, **arguments)), images, targets)
    for one, other in zip(stock, fused, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)


def test_one_step_against_the_formula():
    keras.utils.set_random_seed(1)
    layer = keras.layers.BatchNormalization(momentum=0.75, epsilon=1e-2)
    model = elrt.fuse_batch_norm(keras.Sequential([keras.Input((4, 5, 4)), layer]))
    x = np.random.default_rng(1).normal(2, 3, (6, 4, 5, 4)).astype("float32")
    outputs = keras.ops.convert_to_numpy(model(x, training=True))
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(outputs, (x - mean) / np.sqrt(variance + 1e-2), atol=1e-5)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer.moving_mean), mean / 4, rtol=1e-5)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer.moving_variance), 0.75 + variance / 4, rtol=1e-5)


@pytest.mark.tensorflow
def test_the_step_holds_one_operation_for_each_layer():
    import tensorflow as tf

    def operations(model):
        graph = tf.function(lambda x: model(x, training=True)).get_concrete_function(tf.TensorSpec((4, 6, 7, 3)))
        return [operation.type for operation in graph.graph.get_operations()]

    assert operations(elrt.fuse_batch_norm(network())).count("FusedBatchNormV3") == 2
    assert "FusedBatchNormV3" not in operations(network())


@pytest.mark.tensorflow
@pytest.mark.parametrize("change", ["frozen", "axis", "float64", "rank", "channels", "synchronized"])
def test_layers_that_the_kernel_does_not_cover_run_as_before(change):
    import tensorflow as tf

    shape = {"rank": (6, 4), "channels": (6, 7, 6)}.get(change, (6, 7, 4))
    layer = keras.layers.BatchNormalization(
        axis=1 if change == "axis" else -1,
        dtype="float64" if change == "float64" else None,
        synchronized=change == "synchronized",
    )
    model = elrt.fuse_batch_norm(keras.Sequential([keras.Input(shape), layer]))
    layer.trainable = change != "frozen"
    dtype = "float64" if change == "float64" else "float32"
    graph = tf.function(lambda x: model(x, training=True)).get_concrete_function(tf.TensorSpec((4, *shape), dtype))
    assert "FusedBatchNormV3" not in [operation.type for operation in graph.graph.get_operations()]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_keeps_statistics_in_float32(policy):
    if policy == "mixed_float16" and not ON_TENSORFLOW:
        pytest.skip("16-bit convolutions on a CPU: tried on TensorFlow alone")
    layer = keras.layers.BatchNormalization(momentum=0.0, dtype=policy)
    model = elrt.fuse_batch_norm(keras.Sequential([keras.Input((4, 5, 4), dtype=policy.split("_")[1]), layer]))
    x = np.random.default_rng(1).normal(20, 3, (6, 4, 5, 4)).astype("float32")
    outputs = model(keras.ops.cast(x, policy.split("_")[1]), training=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == policy.split("_")[1]
    rounded = keras.ops.convert_to_numpy(keras.ops.cast(keras.ops.cast(x, policy.split("_")[1]), "float32"))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer.moving_variance), rounded.var((0, 1, 2)), rtol=1e-3)
    assert keras.backend.standardize_dtype(layer.moving_mean.dtype) == "float32"


@pytest.mark.backends
def test_saved_cloned_and_loaded_models_are_stock(tmp_path):
    images, targets = batch(0, 4)
    model = elrt.fuse_batch_norm(network())
    trained(model, images, targets)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(model.predict(images, verbose=0), loaded.predict(images, verbose=0), atol=1e-6)
    for other in (loaded, keras.models.clone_model(model), elrt.factorize(model, {"conv": ("svd", 2)})):
        layer = other.get_layer("bn")
        assert type(layer) is keras.layers.BatchNormalization and "call" not in vars(layer)


@pytest.mark.backends
def test_a_low_rank_model_trains_fused():
    images, targets = batch(3, 8)
    low_rank = [elrt.factorize(network(4), {"conv": ("svd", 2)}) for _ in range(2)]
    stock = trained(low_rank[0], images, targets)
    for one, other in zip(stock, trained(elrt.fuse_batch_norm(low_rank[1]), images, targets), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)


def test_other_objects_are_refused():
    with pytest.raises(ValueError, match="Expected a Keras model. Received: model=<"):
        elrt.fuse_batch_norm(keras.layers.BatchNormalization())
