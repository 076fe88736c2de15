"""Exports of models with several inputs and outputs, variable sizes, and operations that need help in ONNX."""

import keras
import numpy as np
import pytest
from common import random_array, thorough_but, to_numpy

import elrt_keras as elrt
from elrt_keras import litert

pytestmark = pytest.mark.tensorflow
layers = keras.layers
COUNT = 12


def two_by_two(structure="dict"):
    """Builds a model from an image and a text to an age and classes."""
    image, words = keras.Input((12, 12, 3), name="picture"), keras.Input((6,), dtype="int32", name="words")
    x = layers.Conv2D(16, 3, activation="relu", name="conv")(image)
    text = layers.GlobalAveragePooling1D()(layers.Embedding(20, 8)(words))
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), text])
    heads = {"classes": layers.Dense(4, name="head")(x), "age": layers.Dense(1, name="years")(x)}
    outputs = heads if structure == "dict" else list(heads.values())
    inputs = {"picture": image, "words": words} if structure == "dict" else [image, words]
    return keras.Model(inputs, outputs, name="both")


def examples(count=COUNT):
    random = np.random.default_rng(0)
    images = random.uniform(0, 1, (count, 12, 12, 3)).astype("float32")
    return {"picture": images, "words": random.integers(0, 20, (count, 6))}


EXPORTS = {
    "litert": (elrt.export.to_litert, "model.tflite", {}),
    "int8": (elrt.export.to_litert, "model.tflite", {"quantization": "int8", "representative_data": examples()}),
    "onnx": (elrt.export.to_onnx, "model.onnx", {}),
    "saved_model": (elrt.export.to_saved_model, "model", {}),
}


def runner_of(kind, path):
    """Opens the file as a function from `{name: batch}` to `{name: batch}`."""
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_outputs()]
        types = {one.name: "int32" if "int32" in one.type else "float32" for one in session.get_inputs()}
        return lambda batch: dict(zip(names, session.run(None, {n: batch[n].astype(types[n]) for n in types})))
    if kind == "saved_model":
        import tensorflow as tf

        signature = tf.saved_model.load(str(path)).signatures["serving_default"]
        return lambda batch: signature(
            picture=tf.constant(batch["picture"]), words=tf.constant(batch["words"].astype("int32"))
        )
    return litert.Runner(path)


@pytest.mark.parametrize("structure", thorough_but(("dict",), ["dict", "list"]))
@pytest.mark.parametrize("kind", EXPORTS)
def test_files_take_and_give_several_tensors_by_name(kind, structure, tmp_path):
    export, name, options = EXPORTS[kind]
    model, batch = two_by_two(structure), examples()
    low = elrt.factorize(model, {"conv": ("tucker2", (3, 8))}, factor_initializer="decomposed")
    report = export(low, tmp_path / name, evaluation_data=batch, **options)
    assert report.examples == COUNT and report.agreement is None and report.accuracy is None
    assert report.input_dtype == "float32, int32" and report.macs == elrt.count_costs(low).macs
    outputs = runner_of(kind, tmp_path / name)(batch)
    names = ("age", "classes") if structure == "dict" else ("years", "head")
    assert set(outputs) == set(names)
    expected = low(batch if structure == "dict" else list(batch.values()))
    expected = [expected["age"], expected["classes"]] if structure == "dict" else [expected[1], expected[0]]
    for one, other in zip(names, map(to_numpy, expected)):
        limit = 0.3 if kind == "int8" else 1e-5
        np.testing.assert_allclose(np.asarray(outputs[one]), other, atol=limit * max(1, np.abs(other).max()))


@pytest.mark.parametrize(
    "data, message",
    [
        ({"picture": np.ones((2, 12, 12, 3))}, r"\['picture', 'words'\]. Received: a dict of \['picture'\]"),
        (np.ones((2, 12, 12, 3)), r"\['picture', 'words'\]. Received: a ndarray"),
        ({**examples(2), "words": np.ones((3, 6))}, r"picture \(N, 12, 12, 3\), words \(N, 6\). Received: "),
        ((examples(2), np.ones(2)), "one vector of scores, to use labels; without labels"),
    ],
)
def test_examples_of_other_ends_are_refused(data, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        elrt.export.to_onnx(two_by_two(), tmp_path / "model.onnx", evaluation_data=data)
    assert not list(tmp_path.iterdir())


def test_class_names_of_several_outputs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one input and one output. Received: 'both' with 2 and 2"):
        elrt.export.to_litert(two_by_two(), tmp_path / "model.tflite", class_names=["a"])


def fully_convolutional():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(16, 3, padding="same", activation="gelu", name="conv")(inputs)
    return keras.Model(inputs, layers.Conv2D(2, 1, name="mask")(x))


@pytest.mark.parametrize("kind", ["litert", "onnx", "saved_model"])
def test_open_sizes_are_closed_by_input_shape(kind, tmp_path):
    export, name, _ = EXPORTS[kind]
    model = fully_convolutional()
    with pytest.raises(ValueError, match="pass `input_shape`. Received: {'image': \\(None, None, 3\\)}"):
        export(model, tmp_path / name)
    with pytest.raises(ValueError, match="'image', .*Received: input_shape=\\(8, 8\\)"):
        export(model, tmp_path / name, input_shape=(8, 8))
    report = export(model, tmp_path / name, input_shape=(8, 10, 3), input_range=(0, 1))
    assert report.macs == 80 * (27 * 16 + 32)


@pytest.mark.parametrize("activation", thorough_but(("gelu",), ["gelu", "silu", "mish", "hard_silu", "selu"]))
def test_activations_go_to_onnx(activation, tmp_path):
    model = keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(4, 3, activation=activation), layers.Flatten()])
    images = random_array(4, 6, 6, 3)
    assert elrt.export.to_onnx(model, tmp_path / "m.onnx", evaluation_data=images).rms_difference < 1e-5


def test_the_opset_is_the_one_asked_for(tmp_path):
    import onnx

    model = keras.Sequential([keras.Input((6,)), layers.Dense(4)])
    elrt.export.to_onnx(model, tmp_path / "m.onnx", opset=13)
    assert {one.version for one in onnx.load(tmp_path / "m.onnx").opset_import if not one.domain} == {13}
    for opset in (0, "13"):
        with pytest.raises(ValueError, match=f"Expected opset as an int of at least 1. Received: opset={opset!r}"):
            elrt.export.to_onnx(model, tmp_path / "m.onnx", opset=opset)


def test_numbers_that_are_not_finite_are_told_with_whose_they_are(tmp_path):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4, name="head")])
    model.get_layer("head").bias.assign([0, np.nan, 0, 0])
    with pytest.raises(ValueError, match="NaN or infinity in 'scores' of the Keras model, on 16 of 16 examples"):
        elrt.export.to_litert(model, tmp_path / "m.tflite")


def test_a_batch_that_is_a_dict_is_refused_for_one_input(tmp_path):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4)])
    data = [{"image": np.ones((2, 6)), "label": np.ones(2)}]
    with pytest.raises(ValueError, match=r"\(inputs, labels\). Received: a dict of \['image', 'label'\]"):
        elrt.export.to_litert(model, tmp_path / "m.tflite", evaluation_data=data)


def test_open_sizes_of_several_inputs_are_closed_by_name(tmp_path):
    image, other = keras.Input((None, None, 3), name="picture"), keras.Input((4,), name="other-one")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, padding="same")(image))
    model = keras.Model([image, other], layers.Dense(2)(layers.Concatenate()([x, other])))
    with pytest.raises(ValueError, match="`input_shape` as {name: shape}"):
        elrt.count_costs(model)
    with pytest.raises(ValueError, match="Expected {name: shape}"):
        elrt.count_costs(model, (4, 5, 3))
    with pytest.raises(ValueError, match=r"names of inputs among \['picture', 'other-one'\]"):
        elrt.count_costs(model, {"image": (4, 5, 3)})
    with pytest.raises(
        ValueError, match=r"one example of 'picture', \(None, None, 3\). Received: input_shape=\(4, 5\)"
    ):
        elrt.count_costs(model, {"picture": (4, 5)})
    shapes = {"picture": (4, 5, 3)}
    assert elrt.count_costs(model, shapes).macs == 20 * 27 * 8 + 12 * 2
    with pytest.raises(ValueError, match=r"names of inputs among \['picture', 'other_one'\]"):
        elrt.export.to_onnx(model, tmp_path / "m.onnx", input_shape={"image": (4, 5, 3)})
    assert elrt.export.to_onnx(model, tmp_path / "m.onnx", input_shape=shapes).macs == 20 * 27 * 8 + 12 * 2


@pytest.mark.thorough
def test_what_keras_cannot_quantise_says_what_to_do():
    model = keras.Sequential([keras.Input((8,)), elrt.layers.LowRankDense(8, ranks=2), layers.Dense(3)])
    before = to_numpy(model(np.ones((1, 8))))
    with pytest.warns(UserWarning, match=r"`elrt_keras.expand\(model\)` makes them.*a LowRankDense, which stays"):
        model.quantize("int8")
    np.testing.assert_allclose(to_numpy(model(np.ones((1, 8)))), before, atol=0.1)
    stock = elrt.expand(keras.Sequential([keras.Input((8,)), elrt.layers.LowRankDense(8, ranks=2)]))
    stock.quantize("int8")
    assert {layer.quantization_mode for layer in stock.layers} == {"int8"}
