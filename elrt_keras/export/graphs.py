"""SavedModel and ONNX export, checked against Keras before the files appear.

Models with a mixed precision policy are exported as what they compute in float32.
"""

import dataclasses
import os
import tempfile
from typing import Any

import keras

from elrt_keras.atomic import Path, check_file, check_folder
from elrt_keras.graph.costs import count_costs
from elrt_keras.export import checks
from elrt_keras.export.examples import check_batches, check_range
from elrt_keras.export.files import move_folder, write_file
from elrt_keras.export.litert import check_model, check_weights
from elrt_keras.export.onnx_twins import with_twins
from elrt_keras.litert.convert import INPUT, OUTPUT, for_inference, input_dtype, plain_errors, save_archive


@dataclasses.dataclass(frozen=True)
class GraphReport(checks.Comparison):
    """What was exported and how close it is: a `Comparison`, and

    Attributes:
        path: the file or folder.
        size_bytes: its size.
        macs: multiply-accumulates of one example.
        input_dtype: type of the input: the model's own if that is one of whole numbers, else float32.
    """

    path: str
    size_bytes: int
    macs: int
    input_dtype: str


def to_saved_model(
    model: keras.Model,
    path: Path,
    *,
    evaluation_data: Any = None,
    max_examples: int | None = None,
    input_range: tuple[float, float] = (0.0, 255.0),
    tolerance: float = 1e-4,
    max_accuracy_drop: float = checks.MAX_ACCURACY_DROP,
) -> GraphReport:
    """Writes a TensorFlow SavedModel with one signature, from `image` `(batch, …)` to `scores`, compared with Keras.

    Args:
        model: a built Keras model with one input of known shape and one output, on the TensorFlow backend.
        path: the folder; must be new or empty.
        evaluation_data, max_examples, input_range, tolerance, max_accuracy_drop: as for `to_litert`.

    Returns:
        A `GraphReport`.

    Raises:
        ValueError: as `to_litert`; no folder is left then.

    Example:

    >>> model = elrt_keras.models.build("resnet20", input_shape=(8, 8, 1))
    >>> # report = elrt_keras.export.to_saved_model(model, "resnet20")
    """
    import tensorflow as tf

    check_folder(path)
    checks.check_limits(tolerance=tolerance, max_accuracy_drop=max_accuracy_drop)
    examples = _prepare(model, evaluation_data, max_examples, input_range, "SavedModel export")
    with tempfile.TemporaryDirectory() as temporary:
        folder = os.path.join(temporary, "saved_model")
        with plain_errors(model, "SavedModel"), for_inference(model):
            save_archive(model, folder, batch_size=None)
        signature = tf.saved_model.load(folder).signatures["serving_default"]

        def run(batch):
            return signature(**{INPUT: tf.constant(batch)})[OUTPUT].numpy()

        comparison = _compared(model, run, examples)
        checks.require_close(comparison, tolerance, max_accuracy_drop)
        move_folder(folder, path)
    return _report(model, path, comparison)


def to_onnx(
    model: keras.Model,
    path: Path,
    *,
    evaluation_data: Any = None,
    max_examples: int | None = None,
    input_range: tuple[float, float] = (0.0, 255.0),
    tolerance: float = 1e-4,
    max_accuracy_drop: float = checks.MAX_ACCURACY_DROP,
) -> GraphReport:
    """Writes an ONNX file (`keras.Model.export`), run with ONNX Runtime and compared with Keras.

    Args:
        model: a built Keras model with one input of known shape and one output, on the TensorFlow backend.
        path: the `.onnx` file; replaced atomically.
        evaluation_data, max_examples, input_range, tolerance, max_accuracy_drop: as for `to_litert`.

    Returns:
        A `GraphReport`.

    Raises:
        ValueError: as `to_litert`; no file is left then.
        ImportError: without the `onnx` extra.

    Example:

    >>> model = elrt_keras.models.build("resnet20", input_shape=(8, 8, 1))
    >>> # report = elrt_keras.export.to_onnx(model, "resnet20.onnx")
    """
    check_file(path)
    checks.check_limits(tolerance=tolerance, max_accuracy_drop=max_accuracy_drop)
    examples = _prepare(model, evaluation_data, max_examples, input_range, "ONNX export")
    check_weights(model, "ONNX export")
    try:
        import onnxruntime
        import tf2onnx  # noqa: F401  (Keras imports it while exporting; told here what to install)
    except ImportError as error:
        raise ImportError("ONNX export needs `pip install 'elrt_keras[onnx]'`.") from error
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "model.onnx")
        signature = [keras.InputSpec(shape=(None, *model.inputs[0].shape[1:]), dtype=input_dtype(model), name=INPUT)]
        with plain_errors(model, "ONNX"):
            convertible = with_twins(model)
        with plain_errors(model, "ONNX"), for_inference(convertible):
            convertible.export(file, format="onnx", input_signature=signature, verbose=False)
            with open(file, "rb") as exported:
                content = exported.read()
            session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    comparison = _compared(model, lambda batch: session.run(None, {name: batch})[0], examples)
    checks.require_close(comparison, tolerance, max_accuracy_drop)
    write_file(path, content)
    return _report(model, path, comparison)


def _prepare(model, evaluation_data, max_examples, input_range, what):
    check_model(model, what)
    check_range(input_range)
    shape, outputs = (tuple(tensor.shape[1:]) for tensor in (model.inputs[0], model.outputs[0]))
    return check_batches(evaluation_data, shape, outputs, input_range, max_examples, input_dtype(model))


def _compared(model, run, examples):
    with for_inference(model):
        return checks.compare(model, run, examples)


def _report(model, path, comparison):
    size = sum(
        os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names
    ) or os.path.getsize(path)
    return GraphReport(
        **dataclasses.asdict(comparison),
        path=str(path),
        size_bytes=size,
        macs=count_costs(model).macs,
        input_dtype=input_dtype(model),
    )
