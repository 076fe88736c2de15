"""LiteRT export: the file runs, agrees with Keras, holds built-in operators only; failures leave no file."""

import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from common import thorough_but

import elrt_keras as elrt
from elrt_keras import litert

IMAGES = np.random.default_rng(1).uniform(0, 255, (32, 16, 16, 3)).astype("float32")
BUILT_IN = {"CONV_2D", "ADD", "MUL", "PAD", "AVERAGE_POOL_2D", "MEAN", "FULLY_CONNECTED", "SOFTMAX"}

pytestmark = pytest.mark.tensorflow
interpreter_module = pytest.importorskip("ai_edge_litert.interpreter")


@pytest.fixture(scope="module")
def model():
    dense = elrt.models.build("resnet8", input_shape=(16, 16, 3))
    return elrt.factorize(dense, elrt.plan_ranks(dense, max_macs=0.4))


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("litert") / "model.tflite"
    return elrt.export.to_litert(model, path), path


@pytest.mark.thorough
def test_a_conversion_says_nothing(capfd):
    model = elrt.models.build("resnet8", input_shape=(8, 8, 1))
    capfd.readouterr()  # drops the messages that TensorFlow writes at its start
    litert.model_to_litert(model)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("call", [litert.require_runtime, lambda: litert.Runner(b"")])
def test_a_missing_runtime_is_named_with_its_remedy(call, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "ai_edge_litert"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(ImportError, match="Expected LiteRT: `pip install ai-edge-litert`"):
        call()


def test_outputs_equal_keras_on_other_inputs(model, exported):
    _, path = exported
    images = np.random.default_rng(7).uniform(0, 255, (5, 16, 16, 3)).astype("float32")
    classify = interpreter_module.Interpreter(str(path)).get_signature_runner()
    got = np.concatenate([next(iter(classify(image=image[None]).values())) for image in images])
    # Float32 sums in another order: 1e-5 is some tens of units in the last place of 1.
    np.testing.assert_allclose(got, model.predict(images, verbose=0), atol=1e-5)


def test_report(model, exported):
    report, path = exported
    assert report.size_bytes == path.stat().st_size and report.path == str(path)
    assert report.macs == elrt.count_costs(model).macs
    assert 0 <= report.max_difference < 1e-5


def test_only_built_in_operators_and_batch_norm_folded(model, exported):
    report, path = exported
    # The interpreter's own list of operators; its XNNPACK delegate adds to it.
    details = interpreter_module.Interpreter(str(path))._get_ops_details()
    assert {detail["op_name"] for detail in details} - {"DELEGATE"} == set(report.operators) <= BUILT_IN
    assert report.operators["MUL"] == 1  # the input's rescaling; batch-norm went into the convolutions
    low_rank = [layer for layer in model.layers if isinstance(layer, elrt.layers.FactorizedLayer)]
    dense = [layer for layer in model.layers if type(layer) is keras.layers.Conv2D]
    assert report.operators["CONV_2D"] == 3 * len(low_rank) + len(dense)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"quantization": "int4"}, "Received: quantization='int4'"),
        ({"quantization": "int8"}, "Expected representative_data.*Received: representative_data=None"),
        ({"representative_data": np.zeros((2, 8, 8, 3))}, r"shape \(N, 16, 16, 3\). Received: \(2, 8, 8, 3\)"),
        ({"representative_data": []}, "Received: none"),
        ({"representative_data": np.full((2, 16, 16, 3), np.nan)}, "finite numbers"),
        ({"io_dtype": "int8"}, "Received: io_dtype='int8', quantization=None"),
        ({"io_dtype": "int4", "quantization": "int8", "representative_data": IMAGES}, "Received: io_dtype='int4'"),
        ({"class_names": ["cat", "dog"]}, "Expected 10 class_names.*Received: 2"),
        ({"class_names": list(range(10))}, "Expected class_names of one line of text each"),
        ({"class_names": "abcdefghij"}, "class_names as a list of str. Received: class_names='abcdefghij'"),
        ({"class_names": 10}, "class_names as a list of str. Received: class_names=10"),
        ({"class_names": ["two\nlines"] * 10}, "Expected class_names of one line of text each"),
        ({"input_range": (1, 0)}, r"Expected input_range as \(lowest, highest\). Received: input_range=\(1, 0\)"),
        ({"input_range": 255}, "Received: input_range=255"),
        ({"evaluation_data": (IMAGES, np.zeros(64))}, r"Expected labels of shape \(32,\).*Received: \(64,\)"),
        ({"evaluation_data": (IMAGES, np.zeros((32, 2, 2)))}, r"for 32 examples;.*Received: \(32, 2, 2\)"),
        ({"evaluation_data": (IMAGES[:0], np.zeros(0))}, "Received: none"),
        ({"tolerance": 0.0, "quantization": "float16"}, "Expected outputs within 0.0e"),
    ],
)
def test_bad_arguments_leave_no_file(model, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        elrt.export.to_litert(model, tmp_path / "model.tflite", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
@pytest.mark.parametrize("pack", [lambda x: {"only": x}, lambda x: [x]], ids=["dict", "list"])
def test_one_output_may_come_in_a_structure(tmp_path, pack):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Flatten()(elrt.layers.SVDConv2D(4, 3, ranks=2)(inputs))
    model = keras.Model(inputs, pack(keras.layers.Dense(5)(x)))
    assert elrt.export.to_litert(model, tmp_path / "model.tflite").max_difference < 1e-2
    assert elrt.export.to_saved_model(model, tmp_path / "saved").max_difference < 1e-2


def test_a_second_output_is_named_in_the_refusal():
    inputs = keras.Input((4, 4, 1))
    two = keras.Model(inputs, [keras.layers.Flatten()(inputs), keras.layers.ReLU()(inputs)])
    with pytest.raises(
        ValueError, match=r"Received: inputs of shapes \[.*\], outputs of \[\(None, 16\), \(None, 4, 4, 1\)\]"
    ):
        elrt.export.to_tf_keras(two)


def test_missing_folder_and_open_input_size(model, tmp_path):
    with pytest.raises(ValueError, match="folder that can be written"):
        elrt.export.to_litert(model, tmp_path / "none" / "model.tflite")
    open_size = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(2, 3)])
    with pytest.raises(ValueError, match="known shape"):
        elrt.export.to_litert(open_size, tmp_path / "model.tflite")


def test_a_model_that_disagrees_is_an_error_and_no_file(tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(1, 1, kernel_initializer="ones")])
    model.layers[0].kernel.assign(np.full((1, 1, 1, 1), np.nan))
    with pytest.raises(ValueError, match="NaN or infinity in 'scores' of the Keras model"):
        elrt.export.to_litert(model, tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def trained():
    """Trains a small network to find the bright third of an image; returns it with such images."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(2)
    labels = random.integers(0, 3, 600)
    images = random.uniform(0, 130, (600, 12, 12, 3))
    for image, label in zip(images, labels):
        image[:, 4 * label : 4 * label + 4] += 110
    images = images.astype("float32")
    layers = [keras.Input((12, 12, 3)), keras.layers.Rescaling(1 / 127.5, -1)]
    for filters in (48, 96):
        convolution = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)
        layers += [convolution, keras.layers.BatchNormalization(), keras.layers.ReLU(), keras.layers.MaxPooling2D(2)]
    layers += [keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    dense = keras.Sequential(layers)
    model = elrt.factorize(dense, elrt.plan_ranks(dense, fraction=0.5, exclude=[]))
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(images[:500], labels[:500], epochs=6, verbose=0)
    assert np.mean(model.predict(images[500:], verbose=0).argmax(1) == labels[500:]) > 0.9
    return model, images, labels


KINDS = {
    None: (1.0, 1e-6),
    "float16": (0.7, 2e-3),  # 11 bits of weights
    "dynamic_int8": (0.6, 0.05),
    "int8": (0.6, 0.05),
}


@pytest.mark.parametrize("kind", thorough_but(("int8",), KINDS))
def test_kinds_keep_the_accuracy_and_shrink_the_file(trained, tmp_path, kind):
    model, images, labels = trained
    size, distance = KINDS[kind]
    given = {"representative_data": images[:100], "evaluation_data": (images[500:], labels[500:])}
    plain = elrt.export.to_litert(model, tmp_path / "plain.tflite")
    report = elrt.export.to_litert(model, tmp_path / "model.tflite", kind, **given)
    assert report.quantization == kind and report.examples == 100
    assert report.size_bytes <= size * plain.size_bytes
    assert report.rms_difference <= distance
    expected = model.predict(images[500:], verbose=0)
    classify = interpreter_module.Interpreter(report.path).get_signature_runner()
    got = np.concatenate([classify(image=image[None])["scores"] for image in images[500:]])
    assert report.keras_accuracy == pytest.approx(np.mean(expected.argmax(1) == labels[500:]))
    assert report.accuracy == pytest.approx(np.mean(got.argmax(1) == labels[500:]))
    assert report.agreement == pytest.approx(np.mean(got.argmax(1) == expected.argmax(1)))
    assert report.max_difference == pytest.approx(np.abs(got - expected).max(), rel=1e-3, abs=1e-6)
    assert report.accuracy > 0.9


@pytest.mark.parametrize("dtype", thorough_but(("int8",), ["int8", "uint8"]))
def test_integer_input_and_output(trained, tmp_path, dtype):
    model, images, labels = trained
    report = elrt.export.to_litert(model, tmp_path / "model.tflite", "int8", images[:100], io_dtype=dtype)
    interpreter = interpreter_module.Interpreter(report.path)
    details = interpreter.get_input_details()[0]
    assert details["dtype"] == interpreter.get_output_details()[0]["dtype"] == np.dtype(dtype)
    assert "DEQUANTIZE" not in report.operators
    scale, zero = details["quantization"]
    # The data cover the whole range of pixels, so a uint8 input takes raw pixels.
    low, high = (np.iinfo(dtype).min - zero) * scale, (np.iinfo(dtype).max - zero) * scale
    assert low == pytest.approx(0, abs=1e-3) and high == pytest.approx(255, abs=1e-3)
    classify = interpreter.get_signature_runner()
    pixels = (np.rint(images[500:]) + np.iinfo(dtype).min).astype(dtype)
    got = [int(classify(image=image[None])["scores"].argmax()) for image in pixels]
    assert np.mean(np.array(got) == labels[500:]) > 0.9


def as_dataset(images, labels):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((images, tf.one_hot(labels, 3))).batch(32)


FORMS = {
    "array": lambda images, labels: images,
    "pair": lambda images, labels: (images, labels),
    "dataset": as_dataset,
    "generator": lambda images, labels: lambda: ([image[None]] for image in images),
    "list of examples": lambda images, labels: list(images),
    "images and masks": lambda images, labels: [(images, images[..., 0] > 128)],
    "images and boxes": lambda images, labels: [(images, {"boxes": images[:, 0, :4], "classes": labels})],
}


@pytest.mark.thorough
@pytest.mark.parametrize("form", FORMS)
def test_representative_data_in_every_form_gives_the_same_file(trained, tmp_path, form):
    model, images, labels = trained
    paths = [tmp_path / "array.tflite", tmp_path / "other.tflite"]
    for path, data in zip(paths, (images[:64], FORMS[form](images[:64], labels[:64]))):
        elrt.export.to_litert(model, path, "int8", data)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.thorough
def test_evaluation_batches_are_limited(trained, tmp_path):
    model, images, labels = trained
    data = as_dataset(images, labels).repeat()
    report = elrt.export.to_litert(model, tmp_path / "m.tflite", evaluation_data=data, max_examples=70)
    assert report.examples == 70 and report.accuracy == report.keras_accuracy


@pytest.mark.thorough
def test_a_bad_quantisation_is_an_error_and_the_old_file_stays(trained, tmp_path):
    model, images, labels = trained
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")
    # Ranges of dark images cut the bright ones off.
    dark = images[:50] / 1000
    with pytest.raises(ValueError, match="max_accuracy_drop.*Received: .*over 600 examples"):
        elrt.export.to_litert(model, path, "int8", dark, evaluation_data=(images, labels), tolerance=10)
    with pytest.raises(ValueError, match="Expected outputs within 5.0e-01 of Keras'"):
        elrt.export.to_litert(model, path, "int8", dark, evaluation_data=images)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_what_litert_cannot_take_is_named(tmp_path):
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, keras.ops.linalg.eigh(inputs[..., 0])[0])
    with pytest.raises(ValueError, match="Expected a model that LiteRT can take.*SelfAdjointEig"):
        elrt.export.to_litert(model, tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", ["no model", keras.Sequential([keras.layers.Dense(2)])])
def test_what_is_no_built_model(tmp_path, model):
    with pytest.raises(ValueError, match="Expected a built Keras model with known inputs. Received: model="):
        elrt.export.to_litert(model, tmp_path / "model.tflite")


def fields(buffer, table):
    """Reads the positions of a flatbuffer table's fields by hand: `{field number: position}`."""
    number = lambda at, size, signed=False: int.from_bytes(buffer[at : at + size], "little", signed=signed)  # noqa: E731
    vtable = table - number(table, 4, signed=True)
    slots = range((number(vtable, 2) - 4) // 2)
    found = {slot: number(vtable + 4 + 2 * slot, 2) for slot in slots}
    return {slot: table + offset for slot, offset in found.items() if offset}


def follow(buffer, at):
    return at + int.from_bytes(buffer[at : at + 4], "little")


def test_metadata(trained, tmp_path):
    model, _, _ = trained
    names = ["left", "middle", "right: é"]
    path = tmp_path / "model.tflite"
    elrt.export.to_litert(model, path, class_names=names, input_range=(0, 255))
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode().splitlines() == names
    buffer = path.read_bytes()
    root = buffer.index(b"M001") - 4
    buffer = buffer[root:]
    text = lambda at: buffer[follow(buffer, at) + 4 :].split(b"\0")[0].decode()  # noqa: E731
    element = lambda at: follow(buffer, follow(buffer, at) + 4)  # noqa: E731  (the first of a vector of tables)
    numbers = lambda at: np.frombuffer(buffer, "<f4", 1, follow(buffer, at) + 4)[0]  # noqa: E731
    model_fields = fields(buffer, follow(buffer, 0))
    assert text(model_fields[0]) == model.name
    graph = fields(buffer, element(model_fields[3]))
    image, scores = (fields(buffer, element(graph[slot])) for slot in (2, 3))
    assert (text(image[0]), text(scores[0])) == ("image", "scores")
    stats = fields(buffer, follow(buffer, image[5]))
    assert (numbers(stats[1]), numbers(stats[0])) == (0, 255)
    assert text(fields(buffer, element(scores[6]))[0]) == "labels.txt"


@keras.saving.register_keras_serializable("test_litert")
class Failing(keras.layers.Layer):
    """Reports an output shape, but fails when called."""

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, inputs):
        raise RuntimeError("cannot compute")


def test_a_layer_that_fails_is_named_and_leaves_nothing(tmp_path):
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, Failing(name="failing")(inputs), name="mine")
    for function in (elrt.export.to_litert, elrt.export.to_saved_model, elrt.export.to_onnx):
        with pytest.raises(ValueError, match="Expected a model that .* can take. Received: 'mine': .*Failing.call"):
            function(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_as_readable_as_any_other(exported, tmp_path):
    (tmp_path / "other").write_text("")
    assert exported[1].stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.thorough
def test_a_full_disk_leaves_no_part(trained, tmp_path):
    model, _, _ = trained
    model.save(tmp_path / "model.keras")
    (tmp_path / "out").mkdir()
    program = (
        "import resource, keras, elrt_keras; model = keras.models.load_model('model.keras')\n"
        "write = elrt_keras.export.litert.write_file\n"
        "def limited(path, content):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); write(path, content)\n"
        "elrt_keras.export.litert.write_file = limited\n"
        "elrt_keras.export.to_litert(model, 'out/model.tflite')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert "ValueError: Cannot write" in done.stderr and "File too large" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
