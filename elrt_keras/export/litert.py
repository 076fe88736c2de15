"""LiteRT (TFLite) export, checked against Keras before the file appears."""

import dataclasses
import os
import tempfile

import keras
import numpy as np

from elrt_keras.costs import count_costs

# float32 convolutions summed in another order: a few units in the last place of outputs of order one.
_TOLERANCE = 1e-4
_EXAMPLES = 4


@dataclasses.dataclass(frozen=True)
class LiteRTReport:
    """What was exported and how close it is.

    Attributes:
        path: the file.
        size_bytes: its size.
        max_difference: largest absolute difference to the Keras model's outputs on the check inputs.
        macs: multiply-accumulates of one example.
    """

    path: str
    size_bytes: int
    max_difference: float
    macs: int


def to_litert(model, path, quantization=None, representative_data=None):
    """Writes a model as a LiteRT file with float32 weights and batch size 1, after comparing it with Keras.

    Args:
        model: a built Keras model with one input of known shape and one output, on the TensorFlow backend.
        path: the `.tflite` file; replaced atomically.
        quantization: `None`; the quantised kinds are not there yet.
        representative_data: array of example inputs `(N, …)`, used for the check; random pixels in 0–255 otherwise.

    Returns:
        A `LiteRTReport`.

    Raises:
        ValueError: for another quantization, another backend, a model with an open input size, an unwritable path, or
            outputs that differ from Keras' by more than 1e-4 of the largest output; no file is left then.
        ImportError: without the `litert` extra.

    Example:

    >>> model = elrt_keras.models.build("resnet20", input_shape=(8, 8, 1))
    >>> # elrt_keras.export.to_litert(model, "resnet20.tflite")
    """
    _check(model, path, quantization)
    examples = _examples(model, representative_data)
    expected = np.concatenate([keras.ops.convert_to_numpy(model(x[None], training=False)) for x in examples])
    with tempfile.TemporaryDirectory() as folder:
        content = _convert(model, folder)
    actual = np.concatenate([_run(content, x[None]) for x in examples])
    difference = float(np.max(np.abs(actual - expected)))
    limit = _TOLERANCE * max(1.0, float(np.max(np.abs(expected))))
    if not difference <= limit:
        raise ValueError(
            f"Expected the LiteRT outputs within {limit:.1e} of Keras'. Received: a difference of {difference:.1e}"
        )
    _write(path, content)
    return LiteRTReport(str(path), len(content), difference, count_costs(model).macs)


def _check(model, path, quantization):
    if quantization is not None:
        raise ValueError(f"Expected quantization=None. Received: quantization={quantization!r}")
    if keras.backend.backend() != "tensorflow":
        raise ValueError(f"LiteRT export needs the TensorFlow backend. Received: backend {keras.backend.backend()!r}")
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(f"Expected a built Keras model. Received: model={model!r}")
    if len(model.inputs) != 1 or len(model.outputs) != 1 or None in model.inputs[0].shape[1:]:
        shapes = [tuple(tensor.shape) for tensor in model.inputs]
        raise ValueError(f"Expected one input of known shape and one output. Received: inputs of shapes {shapes}")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ValueError(f"Expected a path in a folder that can be written. Received: path={str(path)!r}")


def _examples(model, representative_data):
    shape = tuple(model.inputs[0].shape[1:])
    if representative_data is None:
        return np.random.default_rng(0).uniform(0, 255, (_EXAMPLES, *shape)).astype("float32")
    examples = np.asarray(representative_data[:_EXAMPLES], dtype="float32")
    if examples.shape[1:] != shape:
        raise ValueError(f"Expected representative_data of shape (N, {shape}). Received: {examples.shape}")
    return examples


def _convert(model, folder):
    """The model as LiteRT bytes, by way of a SavedModel in `folder` with a batch size of 1."""
    import tensorflow as tf

    shape = (1, *model.inputs[0].shape[1:])
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serve",
        lambda image: model(image, training=False),
        input_signature=[keras.InputSpec(shape=shape, dtype="float32", name="image")],
    )
    archive.write_out(folder, verbose=False)
    return tf.lite.TFLiteConverter.from_saved_model(folder).convert()


def _run(content, inputs):
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError("Running a LiteRT model needs `pip install elrt_keras[litert]`.") from error
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], inputs)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def _write(path, content):
    folder = os.path.dirname(os.path.abspath(path))
    with tempfile.NamedTemporaryFile("wb", dir=folder, suffix=".tmp", delete=False) as file:
        file.write(content)
    os.replace(file.name, path)
