"""Conversion of Keras models and chains of convolutions to LiteRT bytes."""

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
    """Converts a Keras model to LiteRT bytes for a batch size of 1. Batch-norm is folded into the convolutions.

    Layers that compute in half precision with float32 weights are converted to float32.

    Args:
        model: a built Keras model with known inputs, on the TensorFlow backend; or a tf_keras model with one input and
            one output.
        quantization: one of `QUANTIZATIONS`.
        calibration: example inputs `(N, …)`, or `{name: (N, …)}` for several inputs, in the types of the `Interface`.
            `"int8"` needs them unless the model contains its ranges.
        io_dtype: type of inputs and outputs: `"float32"`; with `"int8"` quantisation also `"int8"` or `"uint8"`.
        input_shape: as in `interface`.

    Raises:
        ValueError: for a model that cannot be converted (the message has the converter's reason), or a full disk.
    """
    import tensorflow as tf

    # The conversion goes through a SavedModel: from concrete functions the converter loses the weights of Keras models.
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
    """Lists the inputs of one call per example, as `{name: array}`."""
    by_name = calibration if isinstance(calibration, Mapping) else {INPUT: calibration}
    count = len(next(iter(by_name.values())))
    return [{name: by_name[name][number][None] for name in ends.inputs} for number in range(count)]


def for_inference(model: "keras.Model | tf_keras.Model") -> contextlib.AbstractContextManager[None]:
    """Context that removes features of a model that only training needs: half precision, and penalties of outputs.

    Half precision means layers with float32 weights that compute in half precision. Some converters refuse graphs with
    these features, and outputs are compared in float32. Threads that export one model share the context.
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
    """Context around saving and converting a model: turns every exception into a `ValueError` with the reason."""
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
    """Writes a Keras 3 or tf_keras model as a SavedModel with one signature, with the names in `ends`."""
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

    # Only the weights of the model are attached. If the model itself were, TensorFlow would also trace each of its
    # layers by itself, and some layers of quantisation-aware training do not allow that.
    module = tf.Module()
    module.weights = model.weights  # pyright: ignore[reportAttributeAccessIssue]
    tf.saved_model.save(module, folder, signatures={"serving_default": serve})


def _set_quantization(converter, quantization, examples, io_dtype):
    """Sets the options of a converter. `examples`: list of the inputs of single calls, in the form it accepts."""
    import tensorflow as tf

    if quantization is None:
        return
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization == "int8":
        converter.inference_input_type = converter.inference_output_type = tf.as_dtype(io_dtype)
        if examples is None:
            return  # the fake quantisation of the model contains the ranges
        converter.representative_dataset = lambda: iter(examples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]


def _reason(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" :") and line != "in user code:"]
    telling = [line for line in lines if "op" in line.lower() and "error" in line.lower()] or lines
    return telling[0][:300] if telling else repr(error)


def _quiet_converter():
    """Hides the hundreds of lines that the converter prints. Its error messages stay."""
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
            # Calibration runs TensorFlow's own interpreter, which warns that it is deprecated.
            warnings.filterwarnings("ignore", category=UserWarning, module="tensorflow.lite")
            yield
    finally:
        logger.setLevel(level)
        absl_logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _without_stderr():
    """Suppresses all output to standard error, also from the C++ code of TensorFlow."""
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
    with contextlib.suppress(ValueError, OSError):  # the program may have closed it
        if sys.stderr is not None:
            sys.stderr.flush()


def chain_to_litert(
    stages: Sequence[Stage], input_size: Shape, padding: str, quantization: Quantization | None = None, seed: int = 0
) -> bytes:
    """Makes LiteRT bytes of a chain of convolutions with random weights, for timing.

    Args:
        stages: list of `formats.chain.Stage`, of a convolution or of a matrix (no spatial axes).
        input_size: spatial size of the input, such as `(height, width)`; `()` for a matrix.
        padding: as in a Keras convolution.
        quantization: one of `QUANTIZATIONS`; with `"int8"` input and output are int8 too, as inside a model.
        seed: int, seed of the weights and of the inputs that calibrate `"int8"`.
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
    # A causal convolution has all its zeros in front and costs the same as "same".
    padding = "same" if padding == "causal" else padding
    return convolve(image, kernel, stage.strides, padding, "channels_last", stage.dilation_rate)
