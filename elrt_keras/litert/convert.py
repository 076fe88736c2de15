"""Keras models and chains of convolutions as LiteRT bytes."""

import contextlib
import logging
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import keras
import numpy as np

from elrt_keras.formats.chain import Shape, Stage
from elrt_keras.graph.calls import InputShape
from elrt_keras.graph.private import held_layers
from elrt_keras.litert.interface import INPUT, OUTPUT, Interface, interface, only_output, outputs_of
from elrt_keras.litert.shared import shared

if TYPE_CHECKING:
    import tf_keras

QUANTIZATIONS = (None, "float16", "dynamic_int8", "int8")
Examples: TypeAlias = np.ndarray | Mapping[str, np.ndarray]
Quantization: TypeAlias = Literal["float16", "dynamic_int8", "int8"]


def model_to_litert(
    model: "keras.Model | tf_keras.Model",
    quantization: Quantization | None = None,
    calibration: Examples | None = None,
    io_dtype: str = "float32",
    input_shape: InputShape | None = None,
) -> bytes:
    """A Keras model as LiteRT bytes for one example at a time; batch-norm goes into the convolutions.

    What computes in half precision over float32 weights is converted to float32.

    Args:
        model: a built Keras model with known inputs, on the TensorFlow backend; or a tf_keras model with one input and
            one output.
        quantization: one of `QUANTIZATIONS`.
        calibration: example inputs `(N, …)`, or `{name: (N, …)}` of several inputs, of the types of the `Interface`;
            `"int8"` needs them unless the model knows its ranges.
        io_dtype: type of inputs and outputs: `"float32"`; with `"int8"` quantisation also `"int8"` or `"uint8"`.
        input_shape: as of `interface`.

    Raises:
        ValueError: for a model that cannot be converted, with the converter's reason; for a full disk.
    """
    import tensorflow as tf

    # By way of a SavedModel: the converter's other entry, concrete functions, loses the weights of Keras models.
    with (
        tempfile.TemporaryDirectory() as folder,
        _quiet_converter(),
        plain_errors(model, "LiteRT"),
        for_inference(model),
    ):
        ends = interface(model, input_shape)
        save_archive(model, folder, 1, ends)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["serving_default"])
        examples = None if calibration is None else _calls(calibration, ends)
        _set_quantization(converter, quantization, examples, io_dtype)
        return converter.convert()


def _calls(calibration, ends):
    """The inputs of a call each, by name, one example at a time."""
    by_name = calibration if isinstance(calibration, Mapping) else {INPUT: calibration}
    count = len(next(iter(by_name.values())))
    return [{name: by_name[name][number][None] for name in ends.inputs} for number in range(count)]


def for_inference(model: "keras.Model | tf_keras.Model") -> contextlib.AbstractContextManager[None]:
    """Within it a model lacks what only training needs: half precision over float32 weights, penalties of outputs.

    Not every converter takes a graph with these; outputs are compared in float32. Threads that export one model share
    the context.
    """
    return shared(id(model), lambda: _for_inference(model))


@contextlib.contextmanager
def _for_inference(model):
    layers = [model, *held_layers(model)] if isinstance(model, keras.Model) else []
    policies = [(layer, _policy(layer)) for layer in layers if layer.compute_dtype != layer.variable_dtype]
    mixed = [(layer, policy) for layer, policy in policies if policy.quantization_mode is None]
    penalised = [(layer, layer.activity_regularizer) for layer in layers if layer.activity_regularizer is not None]
    try:
        for layer, _ in mixed:
            layer.dtype_policy = layer.variable_dtype
        for layer, _ in penalised:
            layer.activity_regularizer = None
        yield
    finally:
        for layer, policy in mixed:
            layer.dtype_policy = policy
        for layer, penalty in penalised:
            layer.activity_regularizer = penalty


def _policy(layer):
    policy = layer.dtype_policy
    return policy[layer.path] if isinstance(policy, keras.dtype_policies.DTypePolicyMap) else policy


@contextlib.contextmanager
def plain_errors(model: "keras.Model | tf_keras.Model", what: str) -> Iterator[None]:
    """Around saving and converting a model: whatever their parts raise becomes a `ValueError` with the reason."""
    import tensorflow as tf

    try:
        yield
    except (OSError, tf.errors.ResourceExhaustedError) as error:
        raise ValueError(f"Cannot write a temporary copy of the model. Received: {model.name!r}: {error}") from error
    except Exception as error:
        raise ValueError(
            f"Expected a model that {what} can take. Received: {model.name!r}: {_reason(error)}"
        ) from error


def save_archive(model: "keras.Model | tf_keras.Model", folder: str, batch_size: int | None, ends: Interface) -> None:
    """Writes a SavedModel with one signature, by the names of the ends, of a Keras 3 or a tf_keras model."""
    if not isinstance(model, keras.Model):
        _save_legacy(model, folder, batch_size, ends)
        return
    specs = {
        name: keras.InputSpec(shape=(batch_size, *shape), dtype=ends.dtypes[name], name=name)
        for name, shape in ends.inputs.items()
    }

    def serve(inputs):
        return dict(zip(ends.outputs, outputs_of(model, inputs)))

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", serve, input_signature=[specs if len(specs) > 1 else specs[INPUT]])
    archive.write_out(folder, verbose=False)


def _save_legacy(model, folder, batch_size, ends):
    import tensorflow as tf

    shape = (batch_size, *ends.inputs[INPUT])

    @tf.function(input_signature=[tf.TensorSpec(shape, ends.dtypes[INPUT], name=INPUT)])
    def serve(image):
        return {OUTPUT: only_output(model, image)}

    # Of the model only its weights: to be restored, it would have each of its layers traced on its own too, which those
    # of quantisation-aware training do not all take.
    module = tf.Module()
    module.weights = model.weights  # pyright: ignore[reportAttributeAccessIssue]
    tf.saved_model.save(module, folder, signatures={"serving_default": serve})


def _set_quantization(converter, quantization, examples, io_dtype):
    """`examples`: the inputs of a call each, as the converter wants them."""
    import tensorflow as tf

    if quantization is None:
        return
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization == "int8":
        converter.inference_input_type = converter.inference_output_type = tf.as_dtype(io_dtype)
        if examples is None:
            return  # the model's own fake quantisation says what the ranges are
        converter.representative_dataset = lambda: iter(examples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]


def _reason(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" :") and line != "in user code:"]
    telling = [line for line in lines if "op" in line.lower() and "error" in line.lower()] or lines
    return telling[0][:300] if telling else repr(error)


def _quiet_converter():
    """Keeps the converter's notes off the terminal, hundreds of lines; what it says in an error stays."""
    return shared("quiet converter", _quiet)


@contextlib.contextmanager
def _quiet():
    from absl import logging as absl_logging

    logger = logging.getLogger("tensorflow")
    level, verbosity = logger.level, absl_logging.get_verbosity()
    logger.setLevel(logging.ERROR)
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        with warnings.catch_warnings(), _without_stderr():
            # Calibration runs TensorFlow's own interpreter, which says that it is deprecated.
            warnings.filterwarnings("ignore", category=UserWarning, module="tensorflow.lite")
            yield
    finally:
        logger.setLevel(level)
        absl_logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _without_stderr():
    """Nothing is written to standard error, by TensorFlow's C++ neither."""
    try:
        terminal = os.dup(2)
    except OSError:  # a service or a windowed program may have none
        yield
        return
    _flush_stderr()
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        _flush_stderr()
        os.dup2(terminal, 2)
        os.close(terminal)


def _flush_stderr():
    with contextlib.suppress(ValueError, OSError):  # closed by the program
        if sys.stderr is not None:
            sys.stderr.flush()


def chain_to_litert(
    stages: Sequence[Stage], input_size: Shape, padding: str, quantization: Quantization | None = None, seed: int = 0
) -> bytes:
    """A chain of convolutions with random weights as LiteRT bytes, for timing.

    Args:
        stages: list of `formats.chain.Stage`, of a convolution or of a matrix (no spatial axes).
        input_size: spatial size of the input, such as `(height, width)`; `()` for a matrix.
        padding: as of a Keras convolution.
        quantization: one of `QUANTIZATIONS`; with `"int8"` input and output are int8 too, as inside a model.
        seed: int, of the weights and of the inputs that `"int8"` is calibrated with.
    """
    import tensorflow as tf

    random = np.random.default_rng(seed)

    def chain(image):
        for stage in stages:
            image = _apply(stage, image, padding, random)
        return image

    shape = (1, *input_size, stages[0].in_channels)
    function = tf.function(chain, input_signature=[tf.TensorSpec(shape, tf.float32)], autograph=False)
    with _quiet_converter():
        functions = [function.get_concrete_function()]
        converter = tf.lite.TFLiteConverter.from_concrete_functions(functions, trackable_obj=tf.Module())
        examples = [[random.standard_normal(shape, "float32")] for _ in range(2)]
        _set_quantization(converter, quantization, examples, "int8")
        return converter.convert()


def _apply(stage, image, padding, random):
    inputs, outputs = stage.in_channels, stage.out_channels
    channels = (inputs, outputs // inputs) if stage.depthwise else (inputs // stage.groups, outputs)
    shape = (*stage.kernel_size, *channels)
    kernel = random.standard_normal(shape, "float32") / np.float32(math.sqrt(math.prod(shape[:-1])))
    if not stage.kernel_size:
        return keras.ops.matmul(image, kernel)
    convolve = keras.ops.depthwise_conv if stage.depthwise else keras.ops.conv
    # A causal convolution is one with zeros in front, at the cost of "same".
    padding = "same" if padding == "causal" else padding
    return convolve(image, kernel, stage.strides, padding, "channels_last", stage.dilation_rate)
