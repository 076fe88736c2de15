"""A taught model learns from labels, penalties and teacher by the formula, and otherwise behaves as the student."""

import keras
import numpy as np
import pytest
from common import random_array, to_numpy
from scipy.special import rel_entr, softmax

import elrt_keras as elrt

pytestmark = pytest.mark.backends
CLASSES = 5


def classifier(strength=0.0, activation="softmax", classes=CLASSES, size=8, seed=0, dropout=0.0):
    """A low-rank classifier with penalties on its factors and on its whole kernels, and with batch-norm."""
    keras.utils.set_random_seed(seed)
    layer = elrt.layers.Tucker2Conv2D(
        6,
        3,
        ranks=(2, 3),
        factor_initializer="he_normal",
        factor_regularizer=elrt.regularizers.DoubleSoftOrthogonality(strength) if strength else None,
        kernel_regularizer=keras.regularizers.L2(strength) if strength else None,
    )
    head = keras.layers.Dense(classes, activation=activation)
    body = [
        layer,
        keras.layers.BatchNormalization(),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dropout(dropout),
    ]
    return keras.Sequential([keras.Input((size, size, 3)), *body, head])


def examples(count=8, seed=0):
    # An offset for each channel, which pooling does not change.
    images = random_array(count, 8, 8, 3, seed=seed) + random_array(count, 1, 1, 3, seed=seed + 1)
    return images, np.eye(CLASSES, dtype="float32")[np.random.default_rng(seed).integers(CLASSES, size=count)]


def softened(outputs, temperature, from_logits=False):
    outputs = to_numpy(outputs)
    return softmax((outputs if from_logits else np.log(outputs)) / temperature, axis=-1)


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("weight, temperature", [(1.0, 1.0), (0.3, 4.0)])
def test_the_loss_is_that_of_the_formula(from_logits, weight, temperature):
    activation = None if from_logits else "softmax"
    student, teacher = classifier(0.1, activation), classifier(7.0, activation, seed=1, dropout=0.5)
    images, labels = examples()
    taught = elrt.Taught(student, teacher, weight, temperature, from_logits)
    taught.compile(keras.optimizers.SGD(0.0), keras.losses.CategoricalCrossentropy(from_logits=from_logits))
    outputs, targets = to_numpy(student(images, training=True)), to_numpy(teacher(images, training=False))
    probabilities = softmax(outputs, axis=-1) if from_logits else outputs
    cross_entropy = -np.mean(np.sum(labels * np.log(probabilities), axis=-1))
    divergence = np.mean(
        np.sum(
            rel_entr(softened(targets, temperature, from_logits), softened(outputs, temperature, from_logits)), axis=-1
        )
    )
    penalties = sum(float(loss) for loss in student.losses)
    assert divergence > 0.01 and penalties > 0.05
    expected = cross_entropy + penalties + weight * temperature**2 * divergence
    history = taught.fit(images, labels, batch_size=8, epochs=2, verbose=0, validation_data=(images, labels)).history
    np.testing.assert_allclose(history["loss"][0], expected, rtol=1e-5)
    np.testing.assert_allclose(history["loss"][1], expected, rtol=1e-5)  # no part of the teacher's loss remains
    outputs = to_numpy(student(images, training=False))
    probabilities = softmax(outputs, axis=-1) if from_logits else outputs
    # Take the second epoch: its batch-norm averages differ from those of the first.
    cross_entropy = -np.mean(np.sum(labels * np.log(probabilities), axis=-1))
    np.testing.assert_allclose(history["val_loss"][1], cross_entropy + penalties, rtol=1e-5)


def test_the_student_learns_and_the_teacher_stays():
    student, teacher = classifier(0.01), classifier(seed=1)
    before, of_teacher = student.get_weights(), teacher.get_weights()
    images, labels = examples(16)
    taught = elrt.Taught(student, teacher, temperature=2.0)
    taught.compile(keras.optimizers.SGD(0.05), "categorical_crossentropy", metrics=["accuracy"])
    losses = taught.fit(images, labels, batch_size=8, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert all(np.abs(one - two).max() > 0 for one, two in zip(before, student.get_weights()))
    for one, two in zip(of_teacher, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(taught.predict(images, verbose=0), student.predict(images, verbose=0))
    assert taught.trainable_variables == student.trainable_variables


def test_a_saved_one_goes_on_exactly(tmp_path):
    images, labels = examples(16)
    taught = elrt.Taught(classifier(0.01), classifier(seed=1), 0.5, 3.0)
    taught.compile(keras.optimizers.SGD(0.05, momentum=0.9), "categorical_crossentropy")
    taught.fit(images, labels, batch_size=8, verbose=0, shuffle=False)
    taught.save(tmp_path / "taught.keras")
    loaded = keras.models.load_model(tmp_path / "taught.keras")
    assert (loaded.weight, loaded.temperature, loaded.from_logits) == (0.5, 3.0, False)
    for model in (taught, loaded):
        model.fit(images, labels, batch_size=8, verbose=0, shuffle=False)
    for one, two in zip(taught.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_callbacks_see_the_student_alone():
    taught = elrt.Taught(classifier(0.1), classifier(7.0, seed=1))
    taught.compile(keras.optimizers.SGD(0.0), "categorical_crossentropy")
    logger = elrt.callbacks.OrthogonalityLogger()
    schedule = elrt.callbacks.RegularizationSchedule({0: 0.5})
    taught.fit(*examples(), verbose=0, callbacks=[logger, schedule])
    assert logger.per_factor.keys() == elrt.callbacks.factor_errors(taught.student).keys()
    strengths = [float(model.layers[0].factor_regularizer.strength) for model in (taught.student, taught.teacher)]
    assert strengths == [0.5, 7.0]


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: (classifier(), "resnet56"), "Expected a Keras model. Received: model='resnet56'"),
        (lambda: (None, classifier()), "Expected a Keras model. Received: model=None"),
        (lambda: (classifier(), classifier(classes=4)), r"output_shape of the student, \(None, 5\).*\(None, 4\)"),
        (lambda: (classifier(), classifier(size=9)), r"input_shape of the student, \(None, 8, 8, 3\).*9, 9, 3"),
        (lambda: [classifier()] * 2, "its own weights.*which share weights"),
        (lambda: (classifier(), classifier(), 0.0), "weight=0.0"),
        (lambda: (classifier(), classifier(), 1.0, 0.0), "temperature=0.0"),
        (lambda: (classifier(), classifier(), 1.0, float("nan")), "temperature=nan"),
    ],
)
def test_what_cannot_be_taught_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        elrt.Taught(*make())


@pytest.mark.tensorflow
def test_the_config_keeps_every_argument():
    taught = elrt.Taught(classifier(activation=None), classifier(activation=None), 0.5, 3.0, True, name="school")
    again = elrt.Taught.from_config(taught.get_config())
    assert (again.weight, again.temperature, again.from_logits, again.name) == (0.5, 3.0, True, "school")
    assert [model.name for model in (again.student, again.teacher)] == [taught.student.name, taught.teacher.name]


@pytest.mark.tensorflow
def test_a_teacher_that_takes_any_size_fits():
    inputs = keras.Input((None, None, 3))
    outputs = keras.layers.Dense(CLASSES, activation="softmax")(keras.layers.GlobalAveragePooling2D()(inputs))
    taught = elrt.Taught(classifier(), keras.Model(inputs, outputs))
    taught.compile("sgd", "categorical_crossentropy")
    assert np.isfinite(taught.train_on_batch(*examples()))
