"""LiteRT (TFLite) export, compared with Keras before the file is written."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras

from elrt_keras import litert
from elrt_keras.atomic import Path, check_file, write_file
from elrt_keras.checks import one_of
from elrt_keras.export import checks
from elrt_keras.export.tfmot import is_quantization_aware, strip, wrappers
from elrt_keras.graph.calls import InputShape
from elrt_keras.graph.costs import count_costs
from elrt_keras.graph.paths import is_of_tf_keras
from elrt_keras.litert.convert import Quantization
from elrt_keras.litert.examples import check_batches, check_range, take_inputs
from elrt_keras.litert.metadata import with_metadata

if TYPE_CHECKING:
    import tf_keras

IO_DTYPES = ("float32", "int8", "uint8")
_CALIBRATION_EXAMPLES = 500
_CHECK_EXAMPLES = 16


@dataclasses.dataclass(frozen=True)
class LiteRTReport(checks.Comparison):
    """Report of an export: a `Comparison` with Keras, and the following attributes.

    Attributes:
        path: the file.
        quantization: the requested quantisation.
        input_dtype: type of the input in the file: the type of the model for integers, else `io_dtype`; for several
            inputs their types in order, separated by commas.
        size_bytes: size of the file.
        macs: multiply-accumulates of one example; `None` for a tf_keras model.
        operators: dict, number of each operator.
    """

    path: str
    quantization: str | None
    input_dtype: str
    size_bytes: int
    macs: int | None
    operators: dict[str, int]


def to_litert(
    model: "keras.Model | tf_keras.Model",
    path: Path,
    quantization: Quantization | None = None,
    representative_data: Any = None,
    *,
    evaluation_data: Any = None,
    max_examples: int | None = None,
    class_names: Sequence[str] | None = None,
    input_range: tuple[float, float] = (0.0, 255.0),
    io_dtype: Literal["float32", "int8", "uint8"] = "float32",
    input_shape: InputShape | None = None,
    tolerance: float | None = None,
    max_accuracy_drop: float = checks.MAX_ACCURACY_DROP,
) -> LiteRTReport:
    """Writes a model as a LiteRT file with batch size 1, after running it and comparing it with Keras.

    Batch-norm is folded into the convolutions. A low-rank layer becomes its chain of plain convolutions. The file has
    one signature, from `image` to `scores`; several inputs or outputs keep their names in the model. The metadata of a
    file with one input hold its range and the class names. A model with a mixed precision policy is exported and
    compared in float32.

    Args:
        model: a built Functional or Sequential Keras model, on the TensorFlow backend; or a tf_keras model with one
            input and one output, from `quantization_aware`, `prune` or `cluster` (the latter two are stripped).
        path: the `.tflite` file; replaced atomically.
        quantization: `None` (float32); `"float16"` (weights); `"dynamic_int8"` (weights int8 per channel, activations
            quantised at run time); `"int8"` (weights and activations int8; the ranges of activations are measured on
            `representative_data`). A quantisation-aware model contains its ranges and always becomes int8.
        representative_data: example inputs: an array `(N, …)`, a `tf.data.Dataset` or another iterable of batches,
            which may be `(inputs, labels)`; several inputs are dicts `{name: array}`. At most 500 are used.
        evaluation_data: examples for the check, such as the test set: `(inputs, labels)`, or batches of such tuples.
            Labels are class numbers or one-hot, for a single score 0 or 1. Labels are optional. The default is 16
            examples of `representative_data`, or random ones.
        max_examples: int, maximum number of examples of `evaluation_data` to use.
        class_names: list of str, one per output.
        input_range: `(lowest, highest)` value of an input, for the metadata and for random examples.
        io_dtype: type of the input and the output in the file; `"int8"` and `"uint8"` only with `quantization="int8"`.
            An integer input, such as the words of a text, keeps its own type.
        input_shape: shape of one example or `{input name: shape}`, for a model that leaves sizes open.
        tolerance: float, accepted root mean square of the differences from Keras' outputs, relative to these outputs;
            `None` for 1e-4 (float32), 0.02 (float16), 0.3 (dynamic_int8), 0.5 (int8).
        max_accuracy_drop: float, the largest accepted drop of the accuracy on `evaluation_data` below that of Keras.

    Returns:
        A `LiteRTReport`.

    Raises:
        ValueError: for arguments out of range, int8 without representative data, another backend, a model with an open
            input size or a layer that LiteRT cannot take, a path that cannot be written, or outputs too far from those
            of Keras. Then no file is written, and an existing file stays.
        ImportError: without the `litert` extra.

    Example:

    >>> model = elrt_keras.models.build("resnet20", input_shape=(8, 8, 1))
    >>> # report = elrt_keras.export.to_litert(model, "resnet20.tflite")
    """
    litert.require_runtime()
    if is_of_tf_keras(model) and wrappers(model):
        model = strip(model)
        quantization = "int8" if quantization is None and is_quantization_aware(model) else quantization
    _check(model, path, quantization, representative_data, io_dtype, class_names, input_shape)
    check_range(input_range)
    tolerance = checks.TOLERANCES[quantization] if tolerance is None else tolerance
    checks.check_limits(tolerance=tolerance, max_accuracy_drop=max_accuracy_drop)
    ends = litert.interface(model, input_shape)
    calibration = None
    if representative_data is not None:
        calibration = take_inputs(representative_data, ends, _CALIBRATION_EXAMPLES)
    if io_dtype != "float32" and calibration is not None:
        calibration = _each(calibration, lambda inputs: _spanning(inputs, input_range))
    if evaluation_data is None and calibration is not None:
        evaluation_data = _each(calibration, lambda inputs: inputs[:_CHECK_EXAMPLES])
    examples = check_batches(evaluation_data, ends, input_range, max_examples)
    content = litert.model_to_litert(model, quantization, calibration, io_dtype, input_shape)
    if len(ends.inputs) == 1:
        content = with_metadata(content, model.name, ends.inputs[litert.INPUT], input_range, class_names)
    runner = litert.Runner(content)
    with litert.for_inference(model):
        comparison = checks.compare(model, runner, examples, ends)
        macs = None if is_of_tf_keras(model) else count_costs(model, input_shape).macs
    checks.require_close(comparison, tolerance, max_accuracy_drop)
    write_file(path, content)
    return LiteRTReport(
        **dataclasses.asdict(comparison),
        path=str(path),
        quantization=quantization,
        input_dtype=", ".join(runner.input_dtypes[name] for name in ends.inputs),
        size_bytes=len(content),
        macs=macs,
        operators=dict(litert.operators(content)),
    )


def _check(model, path, quantization, representative_data, io_dtype, class_names, input_shape):
    one_of(quantization, litert.QUANTIZATIONS, "quantization")
    checks.check_model(model, "LiteRT export", legacy=True)
    checks.check_weights(model, "LiteRT export")
    aware = is_quantization_aware(model)
    if aware and quantization != "int8":
        raise ValueError(f"Expected quantization='int8' for a quantisation-aware model. Received: {quantization!r}")
    if quantization == "int8" and representative_data is None and not aware:
        raise ValueError(
            "Expected representative_data, some hundred example inputs, to measure the ranges of activations for "
            "quantization='int8'. Received: representative_data=None"
        )
    if one_of(io_dtype, IO_DTYPES, "io_dtype") != "float32" and quantization != "int8":
        raise ValueError(
            "Expected io_dtype='float32' unless quantization='int8'. "
            f"Received: io_dtype={io_dtype!r}, quantization={quantization!r}"
        )
    if class_names is not None and not litert.interface(model, input_shape).is_simple:
        raise ValueError(
            "Expected class_names for a model with one input and one output. "
            f"Received: {model.name!r} with {len(model.inputs)} and {len(model.outputs)}"
        )
    outputs = model.outputs[0].shape[-1]
    if isinstance(class_names, str) or not isinstance(class_names, (Sequence, type(None))):
        raise ValueError(f"Expected class_names as a list of str. Received: class_names={class_names!r}")
    if class_names is not None and len(class_names) != outputs:
        raise ValueError(f"Expected {outputs} class_names, one per output. Received: {len(class_names)}")
    if class_names is not None and not all(isinstance(n, str) and n.splitlines() == [n] for n in class_names):
        raise ValueError(f"Expected class_names of one line of text each. Received: {list(class_names)}")
    check_file(path)


def _each(inputs, function):
    """Applies a function to a single input, or to each of several."""
    return {name: function(one) for name, one in inputs.items()} if isinstance(inputs, Mapping) else function(inputs)


def _spanning(calibration, input_range):
    """Puts both ends of the range into the examples, so that integer inputs cover the whole range."""
    calibration = calibration.copy()
    calibration[0].flat[0], calibration[0].flat[-1] = input_range
    return calibration
