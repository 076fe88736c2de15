"""LiteRT export: the file runs, agrees with Keras, holds built-in operators only; failures leave no file."""

import keras
import numpy as np
import pytest

import elrt_keras as elrt

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="LiteRT export needs TensorFlow")
interpreter_module = pytest.importorskip("ai_edge_litert.interpreter")


@pytest.fixture(scope="module")
def model():
    dense = elrt.models.build("resnet20", input_shape=(16, 16, 3))
    return elrt.factorize(dense, elrt.plan_ranks(dense, max_macs=0.4))


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("litert") / "model.tflite"
    return elrt.export.to_litert(model, path), path


def test_outputs_equal_keras_on_other_inputs(model, exported):
    _, path = exported
    images = np.random.default_rng(7).uniform(0, 255, (5, 16, 16, 3)).astype("float32")
    classify = interpreter_module.Interpreter(str(path)).get_signature_runner()
    got = np.concatenate([next(iter(classify(image=image[None]).values())) for image in images])
    # Probabilities from float32 sums in another order: 1e-5 is some tens of units in the last place of 1.
    np.testing.assert_allclose(got, model.predict(images, verbose=0), atol=1e-5)


def test_report(model, exported):
    report, path = exported
    assert report.size_bytes == path.stat().st_size and report.path == str(path)
    assert report.macs == elrt.count_costs(model).macs
    assert 0 <= report.max_difference < 1e-5


def test_only_built_in_operators_and_batch_norm_folded(exported):
    interpreter = interpreter_module.Interpreter(str(exported[1]))
    operators = [detail["op_name"] for detail in interpreter._get_ops_details()]
    assert set(operators) <= {
        *("CONV_2D", "ADD", "MUL", "PAD", "AVERAGE_POOL_2D", "MEAN", "FULLY_CONNECTED", "SOFTMAX", "DELEGATE"),
    }
    assert operators.count("MUL") <= 1  # the input normalisation; batch-norm went into the convolutions


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"quantization": "int4"}, "Received: quantization='int4'"),
        ({"representative_data": np.zeros((2, 8, 8, 3))}, r"shape \(N, \(16, 16, 3\)\)"),
    ],
)
def test_bad_arguments_leave_no_file(model, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        elrt.export.to_litert(model, tmp_path / "model.tflite", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_and_open_input_size(model, tmp_path):
    with pytest.raises(ValueError, match="folder that can be written"):
        elrt.export.to_litert(model, tmp_path / "none" / "model.tflite")
    open_size = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(2, 3)])
    with pytest.raises(ValueError, match="known shape"):
        elrt.export.to_litert(open_size, tmp_path / "model.tflite")


def test_a_model_that_disagrees_is_an_error_and_no_file(tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(1, 1, kernel_initializer="ones")])
    model.layers[0].kernel.assign(np.full((1, 1, 1, 1), np.nan))
    with pytest.raises(ValueError, match="Received: a difference of nan"):
        elrt.export.to_litert(model, tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []
