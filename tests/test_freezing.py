"""Freezing factors in turn, on every backend and with every optimizer; the rest of the model always trains."""

import keras
import numpy as np
import pytest
from common import random_array, to_numpy

import elrt_keras as elrt

pytestmark = pytest.mark.backends


def small(optimizer="sgd", **options):
    keras.utils.set_random_seed(1)
    conv = {"padding": "same", "factor_regularizer": "dso", **options}
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            elrt.layers.Tucker2Conv2D(8, 3, ranks=(2, 4), name="tucker", **conv),
            elrt.layers.SpatialSVDConv2D(8, 3, ranks=4, name="svd", **conv),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4, activation="softmax", name="head"),
        ]
    )
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=keras.backend.backend() == "jax")
    return model


def path_of(weight):
    return "/".join(weight.path.split("/")[-2:])


class Watch(keras.callbacks.Callback):
    """Records which weights an epoch changed."""

    def on_train_begin(self, logs=None):
        self.changed = []

    def on_epoch_begin(self, epoch, logs=None):
        self._before = [to_numpy(weight) for weight in self.model.weights]

    def on_epoch_end(self, epoch, logs=None):
        pairs = zip(self._before, self.model.weights)
        self.changed.append({path_of(w) for before, w in pairs if np.any(before != to_numpy(w))})


def fit(model, *callbacks, epochs=5, initial_epoch=0):
    x, y = random_array(8, 6, 6, 3), np.arange(8) % 4
    options = {"epochs": epochs, "initial_epoch": initial_epoch, "batch_size": 4, "shuffle": False, "verbose": 0}
    return model.fit(x, y, callbacks=list(callbacks), **options)


CORES = {"tucker/core", "svd/vertical"}
OTHERS = {"tucker/factor_in", "tucker/factor_out", "svd/horizontal"}
ALWAYS = {"norm/gamma", "head/kernel", "norm/moving_mean"}


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-2),
        lambda: keras.optimizers.AdamW(1e-2, clipnorm=1.0),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
    ],
    ids=["sgd", "adamw", "loss_scale"],
)
def test_cores_and_other_factors_take_turns(optimizer):
    model, watch = small(optimizer()), Watch()
    names = {path_of(factor) for layer in model.layers[:2] for factor in layer.factors}
    assert names == CORES | OTHERS
    fit(model, elrt.callbacks.FactorFreezing(), watch)
    for epoch, changed in enumerate(watch.changed):
        trained, frozen = (CORES, OTHERS) if epoch % 2 == 0 else (OTHERS, CORES)
        assert trained | ALWAYS <= changed and not frozen & changed, epoch
    assert all(factor.trainable for layer in model.layers[:2] for factor in layer.factors)
    fit(model, watch, epochs=1)
    assert CORES | OTHERS <= watch.changed[0]


def test_turns_of_several_epochs_and_a_start_in_between():
    model, watch = small(), Watch()
    fit(model, elrt.callbacks.FactorFreezing(2), watch, epochs=7, initial_epoch=1)
    turns = ["core" if CORES <= changed else "other" for changed in watch.changed]
    assert turns == ["core", "other", "other", "core", "core", "other"]


def test_a_step_is_that_of_the_variables_that_train():
    """Compares an epoch of each turn with an epoch in which the same factors are frozen by hand from the start."""
    model = small(keras.optimizers.SGD(0.05))
    fit(model, elrt.callbacks.FactorFreezing(), epochs=2)
    expected = small(keras.optimizers.SGD(0.05))
    for epoch in range(2):
        for layer in expected.layers[:2]:
            for index, factor in enumerate(layer.factors):
                factor.trainable = (index == layer.format.core_index) == (epoch == 0)
        expected.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy", jit_compile=model.jit_compile)
        fit(expected, epochs=1)
    for one, two in zip(model.weights, expected.weights, strict=True):
        np.testing.assert_allclose(to_numpy(one), to_numpy(two), rtol=1e-5, atol=1e-6)


def test_a_step_is_compiled_once_for_each_turn():
    model, made = small(), []
    make = model.make_train_function
    model.make_train_function = lambda force=False: (made.append(force), make(force))[1]
    fit(model, elrt.callbacks.FactorFreezing(), epochs=6)
    assert made.count(True) == 2


def test_what_the_user_froze_stays_frozen():
    model, watch = small(), Watch()
    model.get_layer("tucker").factors[0].trainable = False
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=keras.backend.backend() == "jax")
    fit(model, elrt.callbacks.FactorFreezing(), watch, epochs=2)
    assert all("tucker/factor_in" not in changed for changed in watch.changed)
    assert not model.get_layer("tucker").factors[0].trainable


def test_a_taught_model_trains_its_student_in_turns():
    student = small()
    taught = elrt.Taught(student, small())
    taught.compile("sgd", "sparse_categorical_crossentropy", jit_compile=keras.backend.backend() == "jax")
    before = [to_numpy(factor) for factor in student.get_layer("tucker").factors]
    fit(taught, elrt.callbacks.FactorFreezing(), epochs=1)
    moved = [np.any(a != to_numpy(b)) for a, b in zip(before, student.get_layer("tucker").factors)]
    assert moved == [False, True, False]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="epochs"):
        elrt.callbacks.FactorFreezing(0)
    with pytest.raises(ValueError, match="without averaged weights. Received: 'sgd.*' with use_ema"):
        fit(small(keras.optimizers.SGD(0.1, use_ema=True)), elrt.callbacks.FactorFreezing())
    model = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="Expected a model with low-rank layers"):
        model.fit(np.zeros((4, 6, 6, 3)), np.zeros((4, 4)), callbacks=[elrt.callbacks.FactorFreezing()], verbose=0)
