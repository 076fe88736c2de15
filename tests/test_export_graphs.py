"""SavedModel and ONNX export: the files run in other runtimes and agree with Keras; failures leave no file."""

import os

import keras
import numpy as np
import pytest

import elrt_keras as elrt
from elrt_keras.atomic import move_folder
from elrt_keras.export import checks
from elrt_keras.litert import INPUT, Interface
from elrt_keras.litert.examples import take_inputs

pytestmark = pytest.mark.tensorflow
IMAGES = np.random.default_rng(3).uniform(0, 255, (5, 12, 12, 3)).astype("float32")


@pytest.fixture(scope="module")
def model():
    dense = elrt.models.build("resnet20", input_shape=(12, 12, 3))
    return elrt.factorize(dense, elrt.plan_ranks(dense, max_macs=0.4))


def test_outputs_that_are_no_numbers_are_not_close():
    with pytest.raises(ValueError, match="Received: a difference of nan over 4 examples"):
        checks.require_close(checks.Comparison(4, np.nan, np.nan, None, None, None), 0.1, 0.05)


def test_an_accuracy_may_rise_and_not_fall():
    checks.require_close(checks.Comparison(4, 0.0, 0.0, 1.0, accuracy=0.75, keras_accuracy=0.5), 0.1, 0.05)
    with pytest.raises(ValueError, match="Received: 50.00% against 75.00% over 4 examples"):
        checks.require_close(checks.Comparison(4, 0.0, 0.0, 1.0, accuracy=0.5, keras_accuracy=0.75), 0.1, 0.05)


def test_the_limit_of_examples_counts_over_all_batches():
    taken = take_inputs(
        [np.full((3, 2), value) for value in (1, 2, 3)], Interface({INPUT: (2,)}, {INPUT: "float32"}, {}), limit=4
    )
    np.testing.assert_array_equal(taken[:, 0], [1, 1, 1, 2])


@pytest.mark.thorough
def test_onnx_runs_in_onnx_runtime_at_any_batch_size(model, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    labels = model.predict(IMAGES, verbose=0).argmax(1)
    report = elrt.export.to_onnx(model, tmp_path / "model.onnx", evaluation_data=(IMAGES, labels))
    session = runtime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: IMAGES})
    np.testing.assert_allclose(got, model.predict(IMAGES, verbose=0), atol=1e-5)
    assert report.accuracy == report.keras_accuracy == 1.0 and report.examples == 5
    assert report.size_bytes == os.path.getsize(report.path) and report.macs == elrt.count_costs(model).macs


def test_saved_model_runs_in_tensorflow_at_any_batch_size(model, tmp_path):
    import tensorflow as tf

    path = tmp_path / "saved"
    path.mkdir()  # an empty folder is accepted
    neighbour = path.with_name(f"{path.name}.tmp")
    neighbour.mkdir()
    (neighbour / "precious").write_text("data")
    report = elrt.export.to_saved_model(model, path)
    signature = tf.saved_model.load(str(path)).signatures["serving_default"]
    assert signature.structured_input_signature[1]["image"].shape.as_list() == [None, 12, 12, 3]
    got = signature(image=tf.constant(IMAGES))["scores"]
    np.testing.assert_allclose(got, model.predict(IMAGES, verbose=0), atol=1e-5)
    assert report.examples == 16 and report.accuracy is None
    (tmp_path / "other").mkdir()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert report.size_bytes == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_what_onnx_cannot_take_is_named(tmp_path):
    pytest.importorskip("onnxruntime")
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, keras.ops.linalg.eigh(inputs[..., 0])[0])
    with pytest.raises(ValueError, match="Expected a model that ONNX can take.*SelfAdjointEig"):
        elrt.export.to_onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", [elrt.export.to_onnx, elrt.export.to_saved_model])
def test_failures_leave_nothing(model, tmp_path, function):
    with pytest.raises(ValueError, match="folder that can be written. Received: path=.*none"):
        function(model, tmp_path / "none" / "model")
    with pytest.raises(ValueError, match="Expected a built Keras model"):
        function("model", tmp_path / "model")
    with pytest.raises(ValueError, match=r"Expected examples of shape \(N, 12, 12, 3\)"):
        function(model, tmp_path / "model", evaluation_data=IMAGES[:, 1:])
    wrong = (IMAGES, model.predict(IMAGES, verbose=0).argmax(1))
    with pytest.raises(ValueError, match="max_accuracy_drop"):
        function(model, tmp_path / "model", evaluation_data=wrong, max_accuracy_drop=-0.1)
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("data")
    with pytest.raises(ValueError, match="Received: path=.*full.*, a folder"):
        function(model, full)
    assert [entry.name for entry in tmp_path.iterdir()] == ["full"] and (full / "precious").read_text() == "data"


def test_a_file_and_a_folder_are_not_taken_for_one_another(model, tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("data")
    folder.mkdir()
    # The path is refused before the model is read.
    with pytest.raises(ValueError, match="with nothing, or an empty folder. Received: path=.*file', a file"):
        elrt.export.to_saved_model("model", file)
    with pytest.raises(ValueError, match="path of a file. Received: path=.*folder', a folder"):
        elrt.export.to_onnx("model", folder)
    with pytest.raises(ValueError, match="path of a file. Received: path=.*folder', a folder"):
        elrt.export.to_litert(model, folder)
    assert file.read_text() == "data"


def test_a_folder_that_cannot_be_put_in_its_place_leaves_its_neighbours(tmp_path):
    source, full = tmp_path / "source", tmp_path / "full"
    for folder in (source, full, tmp_path / "full.tmp"):
        folder.mkdir()
        (folder / "precious").write_text("data")
    with pytest.raises(ValueError, match="Cannot write a folder. Received: path=.*full'"):
        move_folder(source, full)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "full.tmp", *3 * ["precious"], "source"]


@pytest.mark.parametrize("limit", [0, -1, 2.5, "3"])
def test_a_limit_without_examples_is_refused_before_the_work(tmp_path, limit):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=f"max_examples as an int of at least 1. Received: max_examples={limit!r}"):
        elrt.export.to_litert(model, tmp_path / "m.tflite", max_examples=limit)


def test_labels_that_are_no_outputs_are_refused(model, tmp_path):
    labels = np.full(len(IMAGES), 99)
    with pytest.raises(ValueError, match="Expected labels from 0 to .*without labels.* Received: labels from 99 to 99"):
        elrt.export.to_saved_model(model, tmp_path / "model", evaluation_data=(IMAGES, labels))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limits", [{"tolerance": float("nan")}, {"tolerance": -1}, {"max_accuracy_drop": "5%"}])
def test_limits_that_are_none_are_refused_before_the_work(tmp_path, limits):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    ((name, value),) = limits.items()
    for export in (elrt.export.to_litert, elrt.export.to_saved_model, elrt.export.to_onnx):
        with pytest.raises(ValueError, match=f"Expected {name} as a number of at least 0. Received: {name}={value!r}"):
            export(model, tmp_path / "model", **limits)
    assert not list(tmp_path.iterdir())


def test_examples_that_a_model_does_not_take_are_told(tmp_path):
    layers = keras.layers
    model = keras.Sequential([keras.Input((20,), dtype="int32"), layers.Embedding(50, 8), layers.Conv1D(8, 3)])
    with pytest.raises(ValueError, match="set evaluation_data or input_range. Received: indices.* is not in"):
        elrt.export.to_saved_model(model, tmp_path / "model")
    assert elrt.export.to_litert(model, tmp_path / "model.tflite", input_range=(0, 49)).rms_difference < 1e-6
    (result,) = elrt.export.benchmark_litert(tmp_path / "model.tflite", runs=2)  # with valid word numbers
    assert result.median_ms > 0


@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("invert", [True, False])
def test_normalisation_goes_to_onnx(tmp_path, adapted, invert):
    pytest.importorskip("onnxruntime")
    statistics = {} if adapted else {"mean": [120.0, 110, 100], "variance": [2500.0, 3600, 4900]}
    normalization = keras.layers.Normalization(**statistics, invert=invert)
    if adapted:
        normalization.adapt(IMAGES)
    chain = [normalization, elrt.layers.Tucker2Conv2D(8, 3, ranks=2), keras.layers.Flatten(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input(IMAGES.shape[1:]), *chain])
    report = elrt.export.to_onnx(model, tmp_path / "model.onnx", evaluation_data=IMAGES)
    assert report.rms_difference < 1e-5
