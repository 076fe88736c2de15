"""Accuracies of exports: labels of every usual form are counted, and other targets are refused."""

import keras
import numpy as np
import pytest
from common import thorough_but

import elrt_keras as elrt

pytestmark = pytest.mark.tensorflow

COUNT, CLASSES = 12, 3
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(-1, 1, (COUNT, 4, 4, 3)).astype("float32")
NUMBERS = RANDOM.integers(0, CLASSES, COUNT)
ONE_HOT = np.eye(CLASSES)[NUMBERS]


def model_of(*last):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), *last])


@pytest.fixture(scope="module")
def classifier():
    return model_of(keras.layers.Dense(CLASSES))


def accuracy_of(model, labels, tmp_path, export=elrt.export.to_litert):
    report = export(model, tmp_path / "model", evaluation_data=(IMAGES, labels))
    assert report.examples == COUNT and report.accuracy == report.keras_accuracy
    return report.accuracy


FORMS = {
    "numbers": NUMBERS,
    "a column": NUMBERS[:, None],
    "whole floats": NUMBERS.astype("float32"),
    "a list": list(NUMBERS),
    "one-hot": ONE_HOT,
    "smoothed": 0.9 * ONE_HOT + 0.1 / CLASSES,
}


@pytest.mark.parametrize(
    "form",
    thorough_but(("a column",), FORMS),
)
def test_classes_in_every_form(classifier, tmp_path, form):
    expected = np.mean(classifier.predict(IMAGES, verbose=0).argmax(1) == NUMBERS)
    assert accuracy_of(classifier, FORMS[form], tmp_path) == pytest.approx(expected)


@pytest.mark.parametrize(
    "labels, received",
    [
        (np.ones((COUNT, CLASSES)), "sum 1"),
        (np.array([[1, 0, 1]] * COUNT), "sum 1"),
        (np.array([[2, -1, 0]] * COUNT), "sum 1"),
        (RANDOM.standard_normal((COUNT, CLASSES)), "sum 1"),
        (np.full(COUNT, 0.5), "class numbers"),
        (np.full(COUNT, -1), "from -1 to -1"),
        (np.full(COUNT, np.nan), "labels from 0 to 2"),
        (np.full((COUNT, CLASSES), np.nan), "sum 1"),
        (np.eye(4)[NUMBERS], r"one-hot \(12, 3\).*Received: \(12, 4\)"),
        (np.zeros((COUNT, 4, 4)), r"Received: \(12, 4, 4\)"),
        (["cat"] * COUNT, "class numbers"),
    ],
    ids=[
        "several",
        "multi-label",
        "negative",
        "targets",
        "halves",
        "-1",
        "NaN",
        "NaN rows",
        "4 classes",
        "masks",
        "names",
    ],
)
@pytest.mark.parametrize("export", [elrt.export.to_litert, elrt.export.to_saved_model])
def test_targets_that_are_no_classes_are_refused(classifier, tmp_path, labels, received, export):
    with pytest.raises(ValueError, match=f"(?s){received}") as refused:
        accuracy_of(classifier, labels, tmp_path, export)
    assert "without labels" in str(refused.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("activation", thorough_but(("sigmoid",), ["sigmoid", None]))
def test_one_output_is_judged_by_0_and_1(tmp_path, activation):
    model = model_of(keras.layers.Dense(1, activation=activation))
    outputs = model.predict(IMAGES, verbose=0)[:, 0]
    labels = (np.arange(COUNT) % 2).astype("float32")
    positive = outputs > (0.5 if activation else 0)
    assert 0 < positive.mean() < 1
    for form in (labels, labels[:, None]):
        assert accuracy_of(model, form, tmp_path) == pytest.approx(np.mean(positive == labels))
    with pytest.raises(ValueError, match="labels from 0 to 1"):
        accuracy_of(model, 2 * labels, tmp_path)


def test_maps_are_not_judged_by_labels(tmp_path):
    model = model_of(keras.layers.Reshape((4, 4, 3)))
    with pytest.raises(ValueError, match=r"one vector of scores.*Received: outputs of shape \(4, 4, 3\)"):
        accuracy_of(model, NUMBERS, tmp_path)
    assert elrt.export.to_litert(model, tmp_path / "model", evaluation_data=IMAGES).accuracy is None


def test_examples_in_a_tuple_are_refused(classifier, tmp_path):
    for arguments in ({"representative_data": tuple(IMAGES)}, {"evaluation_data": tuple(IMAGES)}):
        with pytest.raises(ValueError, match="a tuple is .inputs, labels.*Received: a tuple of 12 examples"):
            elrt.export.to_litert(classifier, tmp_path / "model", **arguments)
    # One example with its label is a batch of one.
    report = elrt.export.to_litert(classifier, tmp_path / "model", evaluation_data=[(IMAGES[0], NUMBERS[:1])])
    assert report.examples == 1
