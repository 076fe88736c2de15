"""Batch normalisation that trains as one operation on TensorFlow; Keras needs about ten."""

import functools

import keras

from elrt_keras.graph.paths import iterate_layers

# At other numbers of channels TensorFlow's kernel is slower on a CPU than the operations of Keras
# (`python -m benchmarks.measure batch_norm`).
_MULTIPLE_OF = 4
# Input types of the kernel. Its statistics are always float32.
_DTYPES = ("float32", "float16", "bfloat16")


def fuse_batch_norm(model: keras.Model) -> keras.Model:
    """Makes the batch-norm layers of a model train as one fused operation, on the TensorFlow backend.

    Keras composes

        y = gamma · (x − mean) / √(variance + epsilon) + beta,   mean and variance over batch, rows and columns

    from about ten operations, and about ten more for the gradient. Each of them reads and writes memory. TensorFlow has
    one operation for it. The results are the same to float32 rounding: outputs, statistics, their moving averages (with
    the biased variance) and gradients. `docs/performance.md` lists the time saved.

    The layers stay stock layers and are saved as such. A loaded or cloned model trains as Keras does, until this
    function is called again. Inference does not change. Cases that the kernel does not support, or computes more
    slowly, run as before: channels that are no multiple of 4, inputs other than `(batch, rows, columns, channels)` or
    not in float32, float16 or bfloat16, masks, `synchronized`, `renorm`. On JAX, which fuses by itself, and on PyTorch
    nothing changes.

    Args:
        model: A `keras.Model`; nested models are included.

    Returns:
        The same model.

    Raises:
        ValueError: if `model` is no Keras model.

    Example:
        >>> model = elrt_keras.fuse_batch_norm(elrt_keras.models.build("resnet20"))
        >>> model.compile("sgd", "categorical_crossentropy")

    Source: Ioffe and Szegedy 2015, arXiv 1502.03167.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"Expected a Keras model. Received: model={model!r}")
    if keras.backend.backend() == "tensorflow":
        for _, layer in iterate_layers(model):
            if type(layer) is keras.layers.BatchNormalization:
                layer.call = functools.partial(_call, layer)
    return model


def _call(layer, inputs, training=None, mask=None):
    """Computes the same as the layer's own `call`, with the fused kernel if it covers the case."""
    if not (training and layer.trainable and mask is None and _is_covered(layer, inputs)):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    channels = inputs.shape[-1:]
    gamma = layer.gamma if layer.scale else keras.ops.ones(channels)
    beta = layer.beta if layer.center else keras.ops.zeros(channels)
    outputs, mean, variance = _fused(inputs, gamma, beta, layer.epsilon)
    layer.moving_mean.assign(layer.moving_mean * layer.momentum + mean * (1 - layer.momentum))
    layer.moving_variance.assign(layer.moving_variance * layer.momentum + variance * (1 - layer.momentum))
    return keras.ops.cast(outputs, layer.compute_dtype)


def _is_covered(layer, inputs):
    is_last_axis = layer.axis in (-1, 3)
    is_plain = not (layer.synchronized or layer.renorm) and layer.variable_dtype == "float32"
    is_vectorized = len(inputs.shape) == 4 and inputs.shape[-1] % _MULTIPLE_OF == 0
    return is_vectorized and is_last_axis and is_plain and inputs.dtype in _DTYPES


def _fused(inputs, gamma, beta, epsilon):
    """Outputs, mean and biased variance."""
    import tensorflow as tf

    gamma, beta = (tf.convert_to_tensor(value) for value in (gamma, beta))
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
    )
    # The kernel returns the unbiased variance.
    count = tf.cast(tf.size(inputs) // tf.shape(inputs)[-1], "float32")
    return outputs, mean, variance * (count - 1) / count
