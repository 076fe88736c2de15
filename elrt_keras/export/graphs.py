"""SavedModel and ONNX export, compared with Keras before the files are written.

Models with a mixed precision policy are exported in float32.
"""

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import keras

from elrt_keras.atomic import Path, check_file, check_folder, move_folder, write_file
from elrt_keras.checks import int_in
from elrt_keras.export import checks
from elrt_keras.export.onnx_bytes import to_onnx_bytes
from elrt_keras.export.onnx_twins import with_twins
from elrt_keras.graph.calls import InputShape
from elrt_keras.graph.costs import count_costs
from elrt_keras.litert import INPUT, for_inference, interface
from elrt_keras.litert.convert import plain_errors, save_archive
from elrt_keras.litert.examples import check_batches, check_range


@dataclasses.dataclass(frozen=True)
class GraphReport(checks.Comparison):
    """Report of an export: a `Comparison` with Keras, and the following attributes.

    Attributes:
        path: the file or folder.
        size_bytes: its size.
        macs: multiply-accumulates of one example.
        input_dtype: type of the input: the type of the model for integers, else float32; for several inputs their types
            in order, separated by commas.
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
    input_shape: InputShape | None = None,
    tolerance: float = 1e-4,
    max_accuracy_drop: float = checks.MAX_ACCURACY_DROP,
) -> GraphReport:
    """Writes a TensorFlow SavedModel, after comparing it with Keras. Its signature maps `image` to `scores`.

    `image` has shape `(batch, …)`. Several inputs or outputs keep their names in the model.

    Args:
        model: a built Functional or Sequential Keras model, on the TensorFlow backend.
        path: the folder; must be new or empty.
        evaluation_data, max_examples, input_range, input_shape, tolerance, max_accuracy_drop: as for `to_litert`.

    Returns:
        A `GraphReport`.

    Raises:
        ValueError: as in `to_litert`; then no folder is written.

    Example:

    >>> model = elrt_keras.models.build("resnet20", input_shape=(8, 8, 1))
    >>> # report = elrt_keras.export.to_saved_model(model, "resnet20")
    """
    import tensorflow as tf

    check_folder(path)
    checks.check_limits(tolerance=tolerance, max_accuracy_drop=max_accuracy_drop)
    ends, examples = _prepare(model, evaluation_data, max_examples, input_range, input_shape, "SavedModel export")
    with tempfile.TemporaryDirectory() as temporary:
        folder = os.path.join(temporary, "saved_model")
        with plain_errors(model, "SavedModel"), for_inference(model):
            save_archive(model, folder, None, ends)
        signature = tf.saved_model.load(folder).signatures["serving_default"]

        def run(batch):
            by_name = batch if isinstance(batch, Mapping) else {INPUT: batch}
            outputs = signature(**{name: tf.constant(inputs) for name, inputs in by_name.items()})
            return _only({name: output.numpy() for name, output in outputs.items()})

        comparison = _compared(model, run, examples, ends)
        checks.require_close(comparison, tolerance, max_accuracy_drop)
        move_folder(folder, path)
    return _report(model, path, comparison, ends, input_shape)


def to_onnx(
    model: keras.Model,
    path: Path,
    *,
    evaluation_data: Any = None,
    max_examples: int | None = None,
    input_range: tuple[float, float] = (0.0, 255.0),
    input_shape: InputShape | None = None,
    opset: int | None = None,
    tolerance: float = 1e-4,
    max_accuracy_drop: float = checks.MAX_ACCURACY_DROP,
) -> GraphReport:
    """Writes an ONNX file with tf2onnx, after running it with ONNX Runtime and comparing it with Keras.

    The input and the output are called `image` and `scores`. Several inputs or outputs keep their names in the model.

    Args:
        model: a built Functional or Sequential Keras model, on the TensorFlow backend.
        path: the `.onnx` file; replaced atomically.
        opset: int, the version of the ONNX operators; `None` for the default of tf2onnx.
        evaluation_data, max_examples, input_range, input_shape, tolerance, max_accuracy_drop: as for `to_litert`.

    Returns:
        A `GraphReport`.

    Raises:
        ValueError: as in `to_litert`; then no file is written.
        ImportError: without the `onnx` extra.

    Example:

    >>> model = elrt_keras.models.build("resnet20", input_shape=(8, 8, 1))
    >>> # report = elrt_keras.export.to_onnx(model, "resnet20.onnx")
    """
    check_file(path)
    checks.check_limits(tolerance=tolerance, max_accuracy_drop=max_accuracy_drop)
    if opset is not None:
        opset = int_in(opset, "[1, inf)", "opset")
    ends, examples = _prepare(model, evaluation_data, max_examples, input_range, input_shape, "ONNX export")
    checks.check_weights(model, "ONNX export")
    try:
        import onnxruntime
        import tf2onnx  # noqa: F401  (only to check that it is installed)
    except ImportError as error:
        raise ImportError(
            f"Expected the `onnx` extra: `pip install 'elrt_keras[onnx]'`. Received: no package {error.name!r}"
        ) from error
    with plain_errors(model, "ONNX"):
        convertible = with_twins(model)
    with plain_errors(model, "ONNX"), for_inference(convertible):
        content = to_onnx_bytes(convertible, ends, opset)
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(batch):
        outputs = session.run(list(ends.outputs), batch if isinstance(batch, Mapping) else {INPUT: batch})
        return _only(dict(zip(ends.outputs, outputs)))

    comparison = _compared(model, run, examples, ends)
    checks.require_close(comparison, tolerance, max_accuracy_drop)
    write_file(path, content)
    return _report(model, path, comparison, ends, input_shape)


def _prepare(model, evaluation_data, max_examples, input_range, input_shape, what):
    """Checks the arguments of an export. Returns `(Interface, batches)`."""
    checks.check_model(model, what)
    check_range(input_range)
    ends = interface(model, input_shape)
    return ends, check_batches(evaluation_data, ends, input_range, max_examples)


def _only(outputs):
    return outputs if len(outputs) > 1 else outputs.popitem()[1]


def _compared(model, run, examples, ends):
    with for_inference(model):
        return checks.compare(model, run, examples, ends)


def _report(model, path, comparison, ends, input_shape):
    size = sum(
        os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names
    ) or os.path.getsize(path)
    with for_inference(model):
        macs = count_costs(model, input_shape).macs
    return GraphReport(
        **dataclasses.asdict(comparison),
        path=str(path),
        size_bytes=size,
        macs=macs,
        input_dtype=", ".join(ends.dtypes.values()),
    )
