"""Checks of all exports: of the model that is to be exported, and of how close the exported one is to it."""

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

# Largest accepted RMS difference of the outputs, relative to their RMS, by quantisation. float32 sums in another order;
# the others catch models that went wrong (saturated, NaN), not the loss of a good quantisation, which labels judge.
TOLERANCES: dict[str | None, float] = {None: 1e-4, "float16": 0.02, "dynamic_int8": 0.3, "int8": 0.5}
MAX_ACCURACY_DROP = 0.05


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two models on the same examples.

    Attributes:
        examples: how many.
        max_difference: largest absolute difference of an output.
        rms_difference: root mean square of the differences, relative to that of the Keras outputs; of several outputs
            the largest.
        agreement: part of the examples with the same largest score; `None` where there is one number only, or several
            outputs.
        accuracy, keras_accuracy: of both models; `None` without labels. A single output means class 1 above 0.5, or
            above 0 if some of Keras' outputs are no probabilities.
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
    """Runs `model` (Keras) and `run` on the same examples.

    Args:
        run: function of a batch of inputs that returns its outputs: an array, or `{output name: array}`.
        batches: iterable of `(inputs, labels)`; labels are class numbers or `None`.
        ends: the inputs and outputs of the model.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: for examples that the model does not take, and outputs that are not finite, with whose they are.
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
    # Of several outputs no one is judged by scores.
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
    """Refuses limits of `require_close` that are none, before the work that they judge.

    Raises:
        ValueError: for anything but a number of at least 0.
    """
    for name, limit in limits.items():
        number_in(limit, "[0, inf]", name)  # infinite: no limit


def _outputs(model, inputs):
    import tensorflow as tf

    try:
        return [keras.ops.convert_to_numpy(one).astype("float64") for one in outputs_of(model, inputs)]
    except tf.errors.InvalidArgumentError as error:
        # Around TensorFlow's own words Keras puts what it called, and the terminal's codes for bold.
        reason = str(error.message).rpartition("}} ")[2].partition(" [Op:")[0]
        raise ValueError(
            f"Expected examples that the model takes; evaluation_data and input_range say which. Received: {reason}"
        ) from error


def require_close(comparison: Comparison, tolerance: float, max_accuracy_drop: float) -> None:
    """Refuses an export that is too far from its Keras model.

    Raises:
        ValueError: with what was measured.
    """
    if not comparison.rms_difference <= tolerance:
        raise ValueError(
            f"Expected outputs within {tolerance:.1e} of Keras' (RMS, relative; `tolerance`). "
            f"Received: a difference of {comparison.rms_difference:.1e} over {comparison.examples} examples"
        )
    if comparison.accuracy is None:
        return
    # With one accuracy there is the other.
    drop = comparison.keras_accuracy - comparison.accuracy  # pyright: ignore[reportOptionalOperand]
    if not drop <= max_accuracy_drop:
        raise ValueError(
            f"Expected an accuracy at most {max_accuracy_drop:.1%} below Keras' (`max_accuracy_drop`). Received: "
            f"{comparison.accuracy:.2%} against {comparison.keras_accuracy:.2%} over {comparison.examples} examples"
        )


def check_model(model: Any, what: str, legacy: bool = False, simple: bool = False) -> None:
    """Refuses a model that cannot be exported.

    Args:
        model: anything.
        what: what it is to be exported as, for messages.
        legacy: whether a tf_keras model can.
        simple: whether it must have one input of known shape and one output; a tf_keras model always must.

    Raises:
        ValueError: for another backend, or no such model.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(f"{what} needs the TensorFlow backend. Received: backend {keras.backend.backend()!r}")
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
    """Refuses a model whose weights themselves are half floats, which the converters do not take.

    Raises:
        ValueError: with their type.
    """
    types = {getattr(weight.dtype, "name", weight.dtype) for weight in model.weights} & {"float16", "bfloat16"}
    if types:
        raise ValueError(
            f"{what} takes weights in float32 (a policy such as 'mixed_float16' keeps them so). "
            f"Received: {model.name!r} with weights in {', '.join(sorted(types))}"
        )
