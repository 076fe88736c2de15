"""Training steps that are compiled several to a call, against Keras' own steps."""

import keras
import pytest

import elrt_keras as elrt
from benchmarks.variants import random_batch

if keras.backend.backend() != "jax":
    pytest.skip("JAX alone compiles several steps into a call", allow_module_level=True)

from benchmarks.device_steps import compiled_steps


def small_model():
    keras.utils.set_random_seed(0)
    penalty = elrt.regularizers.BY_NAME["dso"](0.1)
    layers = (
        elrt.layers.Tucker2Conv2D(6, 3, ranks=(2, 3), factor_regularizer=penalty),
        keras.layers.BatchNormalization(),
        keras.layers.Flatten(),
        keras.layers.Dense(3, activation="softmax"),
    )
    return keras.Sequential([keras.Input((8, 8, 4)), *layers])


def test_a_call_of_three_steps_trains_what_three_batches_do():
    call = compiled_steps({"small": small_model()}, 6, 3)["small"]  # has been called once
    model = small_model()
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True), "categorical_crossentropy")
    losses = [float(model.train_on_batch(*random_batch(model, 6))) for _ in range(9)]
    assert call() == pytest.approx(losses[5], rel=1e-4)
    assert call() == pytest.approx(losses[8], rel=1e-4)
    assert losses[8] < losses[5] - 1e-3
