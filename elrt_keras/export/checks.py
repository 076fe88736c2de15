"""Checks of all exports: of the model before the export, and of the differences between both models after it."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from elrt_keras.checks import number_in
from elrt_keras.graph.paths import check_keras_model, is_of_tf_keras
from elrt_keras.litert import Interface, outputs_of

if TYPE_CHECKING:
    import tf_keras

# Largest accepted RMS difference of the outputs, relative to their RMS, by quantisation. In float32 only the order of
# sums differs. The other limits detect broken models (saturated, NaN). They do not measure the loss of a good
# quantisation, for which labels are needed.
TOLERANCES: dict[str | None, float] = {None: 1e-4, "float16": 0.02, "dynamic_int8": 0.3, "int8": 0.5}
MAX_ACCURACY_DROP = 0.05


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparison of two models on the same examples.

    Attributes:
        examples: number of examples.
        max_difference: largest absolute difference of an output.
        rms_difference: root mean square of the differences, relative to that of the Keras outputs; for several outputs
            the largest.
        agreement: part of the examples with the same largest score; `None` for a single score or several outputs.
        accuracy, keras_accuracy: accuracies of both models; `None` without labels. A single score means class 1 if it
            is above 0.5, or above 0 if some of Keras' outputs are no probabilities.
    """

    examples: int
    max_difference: float
    rms_difference: float
    agreement: float | None
    accuracy: float | None
    keras_accuracy: float | None


def compare(
    model: Callable[..., Any],
    run: Callable[[Any], Any],
    batches: Iterable[tuple[Any, np.ndarray | None]],
    ends: Interface,
) -> Comparison:
    """Runs `model` (Keras) and `run` on the same examples and compares their outputs.

    Args:
        model: the Keras model.
        run: function of a batch of inputs that returns its outputs: an array, or `{output name: array}`.
        batches: iterable of `(inputs, labels)`; labels are class numbers or `None`.
        ends: the inputs and outputs of the model.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: for examples that the model does not take, or outputs that are not finite; the message names the
            model.
    """
    expected, actual, all_labels = [], [], []
    for inputs, labels in batches:
        expected.append(_outputs(model, inputs))
        outputs = run(inputs)
        outputs = [outputs] if len(ends.outputs) == 1 else [outputs[name] for name in ends.outputs]
        actual.append([output.astype("float64") for output in outputs])
        if labels is not None:
            all_labels.append(labels)
    pairs = [(np.concatenate(one), np.concatenate(other)) for one, other in zip(zip(*expected), zip(*actual))]
    for name, pair in zip(ends.outputs, pairs):
        _require_finite(name, *pair)
    (expected, actual), *others = pairs
    # For several outputs the classes are not compared.
    is_scores = not others and expected.ndim > 1 and expected.shape[-1] > 1
    labels = np.concatenate(all_labels) if all_labels else None
    threshold = 0.5 if 0 <= expected.min() and expected.max() <= 1 else 0.0

    def accuracy(outputs):
        if labels is None:
            return None
        classes = outputs.argmax(-1) if outputs.shape[-1] > 1 else outputs[:, 0] > threshold
        return float(np.mean(classes == labels))

    return Comparison(
        examples=len(expected),
        max_difference=max(float(np.max(np.abs(one - other))) for one, other in pairs),
        rms_difference=max(_rms_difference(*pair) for pair in pairs),
        agreement=float(np.mean(actual.argmax(-1) == expected.argmax(-1))) if is_scores else None,
        accuracy=accuracy(actual),
        keras_accuracy=accuracy(expected),
    )


def _require_finite(name, expected, actual):
    for side, outputs in (("the Keras model", expected), ("the exported file", actual)):
        broken = [not np.all(np.isfinite(output)) for output in outputs]
        if any(broken):
            raise ValueError(
                f"Expected outputs of finite numbers. Received: NaN or infinity in {name!r} of {side}, "
                f"on {sum(broken)} of {len(broken)} examples"
            )


def _rms_difference(expected, actual):
    scale = np.sqrt(np.mean(expected**2))
    return float(np.sqrt(np.mean((actual - expected) ** 2)) / max(scale, np.finfo("float32").tiny))


def check_limits(**limits: Any) -> None:
    """Checks limits of `require_close`, before the work of the export.

    Raises:
        ValueError: for a limit that is no number of at least 0.
    """
    for name, limit in limits.items():
        number_in(limit, "[0, inf]", name)  # infinite: no limit


def _outputs(model, inputs):
    import tensorflow as tf

    try:
        return [keras.ops.convert_to_numpy(one).astype("float64") for one in outputs_of(model, inputs)]
    except tf.errors.InvalidArgumentError as error:
        # Keras adds the name of the operation and terminal codes for bold text around TensorFlow's message.
        reason = str(error.message).rpartition("}} ")[2].partition(" [Op:")[0]
        raise ValueError(
            f"Expected examples that the model takes; set evaluation_data or input_range. Received: {reason}"
        ) from error


def require_close(comparison: Comparison, tolerance: float, max_accuracy_drop: float) -> None:
    """Checks that an export is close enough to its Keras model.

    Raises:
        ValueError: if it is not; the message gives the difference.
    """
    if not comparison.rms_difference <= tolerance:
        raise ValueError(
            f"Expected outputs within {tolerance:.1e} of Keras' (RMS, relative; `tolerance`). "
            f"Received: a difference of {comparison.rms_difference:.1e} over {comparison.examples} examples"
        )
    if comparison.accuracy is None:
        return
    # Either both accuracies are known or none.
    drop = comparison.keras_accuracy - comparison.accuracy  # pyright: ignore[reportOptionalOperand]
    if not drop <= max_accuracy_drop:
        raise ValueError(
            f"Expected an accuracy at most {max_accuracy_drop:.1%} below Keras' (`max_accuracy_drop`). Received: "
            f"{comparison.accuracy:.2%} against {comparison.keras_accuracy:.2%} over {comparison.examples} examples"
        )


def check_model(model: Any, what: str, legacy: bool = False, simple: bool = False) -> None:
    """Checks that a model can be exported.

    Args:
        model: any value.
        what: name of the export, for messages.
        legacy: whether a tf_keras model is accepted.
        simple: whether it must have one input of known shape and one output; a tf_keras model always must.

    Raises:
        ValueError: for another backend, or a model that does not fulfil these conditions.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(f"Expected the TensorFlow backend for {what}. Received: backend {keras.backend.backend()!r}")
    is_known = isinstance(model, keras.Model) or is_of_tf_keras(model)
    if is_of_tf_keras(model) and not legacy:
        check_keras_model(model)
    if not is_known or not model.built or not getattr(model, "inputs", None):
        raise ValueError(f"Expected a built Keras model with known inputs. Received: model={model!r}")
    is_simple = len(model.inputs) == len(model.outputs) == 1 and None not in model.inputs[0].shape[1:]
    if (simple or is_of_tf_keras(model)) and not is_simple:
        shapes, outputs = ([tuple(tensor.shape) for tensor in tensors] for tensors in (model.inputs, model.outputs))
        raise ValueError(
            "Expected one input of known shape and one output. "
            f"Received: inputs of shapes {shapes}, outputs of {outputs}"
        )


def check_weights(model: "keras.Model | tf_keras.Model", what: str) -> None:
    """Refuses a model with weights in half precision, which the converters do not take.

    Raises:
        ValueError: for such a model; the message names the type.
    """
    types = {getattr(weight.dtype, "name", weight.dtype) for weight in model.weights} & {"float16", "bfloat16"}
    if types:
        raise ValueError(
            f"Expected weights in float32 for {what} (a policy such as 'mixed_float16' keeps them in float32). "
            f"Received: {model.name!r} with weights in {', '.join(sorted(types))}"
        )
