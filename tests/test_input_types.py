"""Exports of models with integer inputs, such as words of a text: the files have inputs of that type."""

import keras
import numpy as np
import pytest

import elrt_keras as elrt
from elrt_keras import litert

pytestmark = pytest.mark.tensorflow

WORDS = 1000
TEXTS = np.random.default_rng(0).integers(256, WORDS, (24, 16))  # beyond what a byte holds


def text_classifier(dtype="int32"):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((16,), dtype=dtype),
            keras.layers.Embedding(WORDS, 24),
            keras.layers.Conv1D(32, 3, activation="relu", name="conv"),
            keras.layers.GlobalMaxPooling1D(),
            keras.layers.Dense(4, name="head"),
        ]
    )


@pytest.mark.parametrize("dtype", ["int32", pytest.param("int64", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_words_stay_whole_numbers_in_litert(tmp_path, dtype, quantization):
    model = text_classifier(dtype)
    low = elrt.factorize(model, {"conv": ("svd", 8)}, factor_initializer="decomposed")
    path = tmp_path / "model.tflite"
    report = elrt.export.to_litert(low, path, quantization, TEXTS, evaluation_data=TEXTS, input_range=(0, WORDS - 1))
    runner = litert.Runner(path)
    assert report.input_dtype == runner.input_dtypes["image"] == dtype
    expected = low.predict(TEXTS, verbose=0)
    tolerance = 1e-5 if quantization is None else 0.1 * np.abs(expected).max()
    np.testing.assert_allclose(runner(TEXTS), expected, atol=tolerance)


def test_words_stay_whole_numbers_in_other_files(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = text_classifier()
    for export, name in ((elrt.export.to_saved_model, "saved"), (elrt.export.to_onnx, "model.onnx")):
        assert export(model, tmp_path / name, evaluation_data=TEXTS).input_dtype == "int32"
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (image,) = session.get_inputs()
    outputs = session.run(None, {image.name: TEXTS.astype("int32")})[0]
    np.testing.assert_allclose(outputs, model.predict(TEXTS, verbose=0), atol=1e-5)


def test_bytes_stay_bytes(tmp_path):
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(8, 3), keras.layers.Flatten(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((6, 6, 3), dtype="uint8"), *layers])
    images = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3))
    report = elrt.export.to_litert(model, tmp_path / "model.tflite", evaluation_data=images)
    assert report.input_dtype == "uint8" and report.rms_difference < 1e-5


def test_random_inputs_are_whole_numbers_of_the_range(tmp_path):
    report = elrt.export.to_litert(text_classifier(), tmp_path / "model.tflite", input_range=(0, WORDS))
    assert report.examples == 16 and report.rms_difference < 1e-5


@pytest.mark.parametrize(
    "texts, received", [(TEXTS + 0.5, r"\.5"), (TEXTS * 2.0**40, r"e\+1"), (np.full((2, 16), np.nan), "NaN")]
)
def test_numbers_of_another_type_are_refused(tmp_path, texts, received):
    with pytest.raises(ValueError, match=f"(input type, int32|finite numbers).*Received: .*{received}"):
        elrt.export.to_litert(text_classifier(), tmp_path / "model.tflite", evaluation_data=texts)


@pytest.mark.thorough
def test_ranks_for_a_latency(monkeypatch, tmp_path):
    monkeypatch.setenv("ELRT_CACHE_DIR", str(tmp_path))
    plan = elrt.plan_ranks(text_classifier(), max_latency=1.0, exclude=[], quantization="int8")
    assert plan.latency["dense"] > 0
