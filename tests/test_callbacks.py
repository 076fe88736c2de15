"""The schedule changes compiled training steps; the logger reports the same errors as NumPy."""

import csv

import keras
import numpy as np
import pytest
from common import matrices, random_array, to_numpy

import elrt_keras as elrt

pytestmark = pytest.mark.backends


def tiny(regularizer, stock=False):
    """Builds a model whose loss is only the penalty: the data loss has weight zero, and the weights stay constant."""
    if stock:
        layer = keras.layers.Conv2D(3, 3, kernel_initializer="zeros", kernel_regularizer=regularizer)
    else:
        layer = elrt.layers.Tucker2Conv2D(3, 3, 2, factor_regularizer=regularizer, factor_initializer="he_normal")
    model = keras.Sequential([keras.Input((6, 6, 4)), layer, keras.layers.GlobalAveragePooling2D()])
    model.compile(keras.optimizers.SGD(0.0), loss=lambda y, p: 0.0 * keras.ops.sum(p, axis=-1))
    return model


def fit(model, callbacks, **arguments):
    arguments = {"epochs": 3, **arguments}
    x, y = random_array(8, 6, 6, 4), random_array(8, 3)
    return model.fit(x, y, batch_size=4, verbose=0, callbacks=callbacks, **arguments).history["loss"]


def penalty_at_one(model):
    layer = model.layers[0]
    if isinstance(layer, elrt.layers.FactorizedConv):
        found = matrices(layer)
    else:
        found = [to_numpy(layer.kernel).reshape(-1, layer.filters)]
    total = 0.0
    for m in found:
        gram = m.T @ m if m.shape[0] >= m.shape[1] else m @ m.T
        total += np.sum((gram - np.eye(len(gram))) ** 2) / len(gram)
    return total


@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize("schedule", [{0: 0.0, 1: 2.0, 2: 0.5}, lambda epoch: [0.0, 2.0, 0.5][epoch]])
def test_schedule_takes_effect_inside_fit(stock, schedule):
    model = tiny(elrt.regularizers.SoftOrthogonality(1.0), stock)
    validation = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: validation.append(logs["val_loss"]))
    held_out = random_array(4, 6, 6, 4), random_array(4, 3)
    losses = fit(model, [elrt.callbacks.RegularizationSchedule(schedule), note], validation_data=held_out)
    expected = np.array([0.0, 2.0, 0.5]) * penalty_at_one(model)
    assert expected[1] > 0.1
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(validation, expected, rtol=1e-4, atol=1e-6)


def test_layers_inside_other_layers_are_scheduled_and_logged():
    regularizer = elrt.regularizers.SoftOrthogonality(1.0)
    inner = elrt.layers.Tucker2Conv2D(3, 3, 2, factor_regularizer=regularizer, name="inner")
    model = keras.Sequential([keras.Input((2, 6, 6, 4)), keras.layers.TimeDistributed(inner), keras.layers.Flatten()])
    model.compile("sgd", "mse")
    logger = elrt.callbacks.OrthogonalityLogger()
    images, targets = random_array(4, 2, 6, 6, 4), np.zeros((4, model.output_shape[-1]), "float32")
    model.fit(images, targets, verbose=0, callbacks=[elrt.callbacks.RegularizationSchedule({0: 0.25}), logger])
    assert regularizer.strength == 0.25
    assert [name.rpartition("inner/")[2] for name in logger.per_factor] == ["factor_in", "factor_out"]


def test_a_schedule_sets_the_variable_whatever_was_loaded_into_it():
    regularizer = elrt.regularizers.SoftOrthogonality(2.0)
    model = tiny(regularizer)
    regularizer.strength_variable.assign(0.0)  # as PyTorch's load_state_dict does
    losses = fit(model, [elrt.callbacks.RegularizationSchedule({0: 2.0})], epochs=1)
    np.testing.assert_allclose(losses, [2 * penalty_at_one(model)], rtol=1e-4)


def test_a_resumed_fit_takes_the_strength_of_its_epoch():
    model = tiny(elrt.regularizers.SoftOrthogonality(1.0))
    losses = fit(model, [elrt.callbacks.RegularizationSchedule({0: 7.0, 4: 3.0})], initial_epoch=5, epochs=6)
    np.testing.assert_allclose(losses, [3 * penalty_at_one(model)], rtol=1e-4)


def test_a_strength_set_by_hand_reaches_compiled_steps():
    for argument in ("factor_regularizer", "kernel_regularizer"):
        regularizer = elrt.regularizers.SoftOrthogonality(np.float32(1.0))
        layer = elrt.layers.Tucker2Conv2D(4, 3, 2, factor_initializer="ones", **{argument: regularizer})
        model = keras.Sequential([keras.Input((6, 6, 4)), layer, keras.layers.GlobalAveragePooling2D()])
        model.compile(keras.optimizers.SGD(0.0), "mse")
        images, targets = np.zeros((2, 6, 6, 4), "float32"), np.zeros((2, 4), "float32")
        penalty = model.evaluate(images, targets, verbose=0)
        assert penalty > 1.0
        regularizer.strength = np.float64(0.5)
        assert model.evaluate(images, targets, verbose=0) == pytest.approx(penalty / 2, rel=1e-5)


def test_a_schedule_reaches_every_weight_of_stock_and_custom_layers():
    class Scaled(keras.layers.Layer):
        def build(self, input_shape):
            self.scale = self.add_weight(shape=(4, 4), regularizer=regularizers[2])

        def call(self, inputs):
            return keras.ops.matmul(inputs, self.scale)

    regularizers = [elrt.regularizers.SoftOrthogonality(1.0) for _ in range(4)]
    model = keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            keras.layers.SeparableConv2D(4, 3, pointwise_regularizer=regularizers[0]),
            keras.layers.DepthwiseConv2D(3, depthwise_regularizer=regularizers[1]),
            Scaled(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2, bias_regularizer="l2", kernel_regularizer=regularizers[3]),
        ]
    )
    model.compile(keras.optimizers.SGD(0.0), "mse")
    schedule = elrt.callbacks.RegularizationSchedule({0: 0.25})
    model.fit(np.zeros((2, 6, 6, 4), "float32"), np.zeros((2, 2), "float32"), verbose=0, callbacks=[schedule])
    assert [regularizer.strength for regularizer in regularizers] == [0.25] * 4


def test_numbers_of_numpy_are_numbers():
    schedule = elrt.callbacks.RegularizationSchedule({np.int64(0): np.float32(0.5), 1: np.int64(1)})
    model = tiny(elrt.regularizers.SpectralIsometry(0.1, power_iterations=np.int64(3)))
    fit(model, [schedule], epochs=2)
    assert model.layers[0].factor_regularizer.strength == 1.0
    assert elrt.callbacks.StableRankStopping(tolerance=np.float32(0.5)).tolerance == 0.5


@pytest.mark.parametrize(
    "schedule, message",
    [
        ({}, r"dict of epoch.*Received: schedule=\{\}"),
        (0.1, "Received: schedule=0.1"),
        ({5: 0.1}, "starts at epoch 0"),
        ({0: -0.1}, r"number of at least 0. Received: schedule\[0\]=-0.1"),
        ({0: float("nan")}, "at least 0"),
        ({-1: 0.1, 0: 0.1}, "Expected epoch as an int of at least 0. Received: epoch=-1"),
        ({0: 0.1, 1.5: 0.2}, "Expected epoch as an int of at least 0. Received: epoch=1.5"),
    ],
)
def test_bad_schedules(schedule, message):
    with pytest.raises(ValueError, match=message):
        elrt.callbacks.RegularizationSchedule(schedule)


@pytest.mark.parametrize("value", [None, "strong"])
def test_a_schedule_that_gives_no_number(value):
    with pytest.raises(ValueError, match=f"a schedule that returns a number. Received: {value!r} at epoch 3"):
        elrt.callbacks.RegularizationSchedule(lambda epoch: value).strength(3)


@pytest.mark.parametrize("model", [None, "runs/digits"])
def test_factor_errors_are_those_of_a_model(model):
    with pytest.raises(ValueError, match=f"Expected a Keras model. Received: model={model!r}"):
        elrt.callbacks.factor_errors(model)


def test_schedule_without_a_regularizer_is_an_error():
    with pytest.raises(ValueError, match="Expected a model with an orthogonality regularizer"):
        fit(tiny(None), [elrt.callbacks.RegularizationSchedule({0: 1.0})])


def test_logger_reports_what_numpy_finds(tmp_path):
    model = tiny(elrt.regularizers.SoftOrthogonality(0.1))
    logger = elrt.callbacks.OrthogonalityLogger()
    fit(model, [logger, keras.callbacks.CSVLogger(tmp_path / "h.csv")], epochs=2)
    errors = []
    for m in matrices(model.layers[0]):
        gram = m.T @ m if m.shape[0] >= m.shape[1] else m @ m.T
        errors.append(np.linalg.norm(gram - np.eye(len(gram))) / np.sqrt(len(gram)))
    name = model.layers[0].name
    assert list(logger.per_factor) == [f"{name}/factor_in", f"{name}/factor_out"]
    np.testing.assert_allclose([values[-1] for values in logger.per_factor.values()], errors, rtol=1e-4)
    rows = list(csv.DictReader((tmp_path / "h.csv").open()))
    assert len(rows) == 2
    assert float(rows[1]["orthogonality_error_mean"]) == pytest.approx(np.mean(errors), rel=1e-4)
    assert float(rows[1]["orthogonality_error_max"]) == pytest.approx(max(errors), rel=1e-4)


def test_penalty_drives_the_factors_to_orthonormality():
    layer = elrt.layers.Tucker2Conv2D(
        6, 3, 3, factor_initializer="he_normal", factor_regularizer=elrt.regularizers.DoubleSoftOrthogonality(1.0)
    )
    model = keras.Sequential([keras.Input((6, 6, 5)), layer, keras.layers.GlobalAveragePooling2D()])
    model.compile(keras.optimizers.SGD(0.05), "mse")
    x, y = random_array(16, 6, 6, 5), random_array(16, 6)
    before = max(elrt.callbacks.factor_errors(model).values())
    model.fit(x, y, epochs=60, batch_size=16, verbose=0)
    assert max(elrt.callbacks.factor_errors(model).values()) < 0.1 < before


def test_stable_rank_stopping():
    model = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(6, 3, name="conv"), keras.layers.Flatten()])
    model.compile(keras.optimizers.SGD(0.05), "mse")
    inputs, targets = random_array(8, 8, 8, 4), random_array(8, 216, seed=1)
    matrix = lambda: to_numpy(model.get_layer("conv").kernel).reshape(36, 6)  # noqa: E731

    def stable():
        values = np.linalg.svd(matrix(), compute_uv=False)
        return np.sum(values**2) / values[0] ** 2

    before = stable()
    stopping = elrt.callbacks.StableRankStopping("svd", tolerance=1e-9, exclude=[])
    history = model.fit(inputs, targets, epochs=1, verbose=0, callbacks=[stopping]).history
    assert history["stable_rank_mean"][0] == pytest.approx(stable(), rel=1e-4)
    assert history["stable_rank_change"][0] == pytest.approx(abs(stable() - before) / before, rel=1e-3)
    assert stopping.stopped_epoch is None
    means = model.fit(inputs, targets, epochs=2, verbose=0, callbacks=[stopping]).history
    first, second = means["stable_rank_mean"]
    assert means["stable_rank_change"][1] == pytest.approx(abs(second - first) / first, rel=1e-3)
    stopping = elrt.callbacks.StableRankStopping("svd", tolerance=10.0, exclude=[])
    assert len(model.fit(inputs, targets, epochs=5, verbose=0, callbacks=[stopping]).epoch) == 1
    assert stopping.stopped_epoch == 0
    with pytest.raises(ValueError, match="Received: tolerance=0"):
        elrt.callbacks.StableRankStopping(tolerance=0)
    with pytest.raises(ValueError, match="can be factorised"):
        model.fit(inputs, targets, verbose=0, callbacks=[elrt.callbacks.StableRankStopping()])


def test_keras_distiller_leaves_penalties_out():
    """Fails once Keras adds penalties; then the class in docs/training.md would add them twice."""
    teacher, student = (keras.Sequential([keras.Input((4, 4, 3))]) for _ in range(2))
    for model in (teacher, student):
        model.add(keras.layers.Conv2D(8, 3, name="body"))
        model.add(keras.layers.GlobalAveragePooling2D())
        model.add(keras.layers.Softmax())
    penalty = elrt.regularizers.DoubleSoftOrthogonality(1.0)
    plan = elrt.plan_ranks(student, fraction=0.5, exclude=[], multiple_of=1, break_even=False)
    student = elrt.factorize(student, plan, factor_regularizer=penalty)
    for factor in student.get_layer("body").factors:
        factor.assign(2.0 * factor)
    distiller = keras.distillation.Distiller(
        teacher, student, keras.distillation.FeatureDistillation(loss="kl_divergence")
    )
    distiller.compile("sgd", "sparse_categorical_crossentropy")
    images, labels = random_array(5, 4, 4, 3, seed=1, scale=0.1), np.arange(5)
    loss = distiller.compute_loss(images, labels, distiller(images, training=True))
    predicted, taught = to_numpy(student(images)), to_numpy(teacher(images))
    entropy = -np.log(predicted[np.arange(5), labels]).mean()
    divergence = (taught * np.log(taught / predicted)).sum(axis=1).mean()
    np.testing.assert_allclose(to_numpy(loss), 0.5 * entropy + 0.5 * divergence, rtol=1e-4)
    assert float(to_numpy(sum(student.losses))) > 1.0
