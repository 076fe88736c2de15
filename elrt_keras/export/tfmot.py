"""Quantisation-aware training, pruning, weight clustering and their combinations, with tfmot.

Each function takes a Keras 3 model (low-rank or not) or a tf_keras model. It returns a tf_keras model to compile and
train further. `strip` removes everything that only training needs, and `to_litert` exports the result.
"""

from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np

from elrt_keras.checks import int_in, number_in, one_of
from elrt_keras.export.calibration import calibrate
from elrt_keras.export.legacy import copied, import_optional, import_tf_keras, to_tf_keras
from elrt_keras.litert import interface
from elrt_keras.litert.examples import take_inputs

if TYPE_CHECKING:
    import tf_keras

PRESERVE = (None, "sparsity", "clusters", "both")
_WRAPPED = ("Conv1D", "Conv2D", "Conv3D", "Dense")  # by pruning and clustering
_CALIBRATION_EXAMPLES = 128
# Activations that tfmot 0.8.1 supports (the last is its own, before batch-norm). It raises an error for others.
_ACTIVATIONS = {"linear", "relu", "swish", "gelu", "softmax", "sigmoid", "tanh", "NoOpActivation"}


def quantization_aware(
    model: "keras.Model | tf_keras.Model",
    preserve: Literal["sparsity", "clusters", "both"] | None = None,
    representative_data: Any = None,
) -> "tf_keras.Model":
    """Makes a tf_keras model that computes with int8 rounding of weights and activations, for fine-tuning.

    Rescaling and normalisation of images, channel by channel, become fixed 1×1 depthwise convolutions, so that they are
    quantised too. Layers stay float if tfmot cannot quantise them or their activation (such as ELU).
    `to_litert(…, quantization="int8")` exports the model and then needs no representative data.

    Args:
        model: a built Keras 3 or tf_keras model; a pruned or clustered one only after `strip`.
        preserve: `"sparsity"`, `"clusters"` or `"both"`: the property that training keeps, for a stripped model that
            was pruned or clustered before.
        representative_data: example inputs as for `to_litert`; 128 are used. Activations start with the ranges of these
            examples. Without them all ranges start at −6 to 6 and adapt over thousands of steps.

    Raises:
        ValueError: as in `to_tf_keras`; for an unknown `preserve`, or layers that are already wrapped for training.
        ImportError: without the `optimize` extra.

    Example:

    >>> model = elrt_keras.models.build("resnet20", input_shape=(8, 8, 1))
    >>> # aware = elrt_keras.export.quantization_aware(model)
    >>> # aware.compile("sgd", "categorical_crossentropy"); aware.fit(…)
    """
    one_of(preserve, PRESERVE, "preserve")
    tfmot, tf_keras, model = _prepared(model)
    quantization, combined = tfmot.quantization.keras, tfmot.experimental.combine
    schemes = {
        None: lambda: quantization.default_8bit.Default8BitQuantizeScheme(),
        "sparsity": lambda: combined.Default8BitPrunePreserveQuantizeScheme(),
        "clusters": lambda: combined.Default8BitClusterPreserveQuantizeScheme(),
        "both": lambda: combined.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=True),
    }
    scheme = schemes[preserve]()
    registry = _by_activation(scheme)
    source = copied(model)  # the clone shares all layers that are not annotated

    def annotated(layer):
        layer = _as_convolution(layer, tf_keras)
        supported = registry.supports(layer) or _is_folded(layer, source, tf_keras)
        return quantization.quantize_annotate_layer(layer) if supported else layer

    clone = tf_keras.models.clone_model(source, clone_function=annotated)
    aware = quantization.quantize_apply(clone, scheme)
    for layer in aware.layers:
        layer.finalize_state()  # tfmot sets weights without this call, and an adapted Normalization would be reset
        if isinstance(layer, quantization.QuantizeWrapper) and not layer.trainable:
            _freeze(layer)
    if representative_data is not None:
        calibrate(aware, model, np.asarray(take_inputs(representative_data, interface(model), _CALIBRATION_EXAMPLES)))
    return aware


def prune(
    model: "keras.Model | tf_keras.Model",
    sparsity: float = 0.5,
    begin_step: int = 0,
    end_step: int = 1000,
    frequency: int = 100,
) -> "tf_keras.Model":
    """Makes a tf_keras model whose smallest weights are set to zero step by step during training.

    Training needs the callback `tensorflow_model_optimization.sparsity.keras.UpdatePruningStep()`. Convolutions and
    dense layers are pruned. Depthwise, separable and transposed convolutions, frozen layers, and layers in nested
    tf_keras models stay unchanged.

    Args:
        model: a built Keras 3 or tf_keras model, which does not change.
        sparsity: float in (0, 1): the part of each layer's weights that is zero at the end.
        begin_step, end_step, frequency: ints: weights are set to zero from `begin_step` to `end_step`, every
            `frequency` training steps. The part of zeros grows by a cubic polynomial (Zhu and Gupta, arXiv 1710.01878).

    Raises:
        ValueError: as in `to_tf_keras`; for a sparsity out of range, or layers that are already wrapped for training.
        ImportError: without the `optimize` extra.

    Example:

    >>> model = elrt_keras.models.build("resnet20", input_shape=(8, 8, 1))
    >>> # pruned = elrt_keras.export.prune(model, sparsity=0.5, end_step=2000)
    """
    number_in(sparsity, "(0, 1)", "sparsity")
    tfmot, tf_keras, model = _prepared(model)
    schedule = tfmot.sparsity.keras.PolynomialDecay(
        initial_sparsity=0.0, final_sparsity=sparsity, begin_step=begin_step, end_step=end_step, frequency=frequency
    )
    return _wrapped(model, tf_keras, lambda layer: tfmot.sparsity.keras.prune_low_magnitude(layer, schedule))


def cluster(
    model: "keras.Model | tf_keras.Model", clusters: int = 16, preserve_sparsity: bool = False
) -> "tf_keras.Model":
    """Makes a tf_keras model in which each layer has only `clusters` different weights. Training moves them together.

    Convolutions and dense layers are clustered. Layers with fewer weights than clusters, and those that `prune` leaves
    out, stay unchanged.

    Args:
        model: a built Keras 3 or tf_keras model; to combine clustering with pruning, a stripped one.
        clusters: int ≥ 2.
        preserve_sparsity: whether zeros stay zeros.

    Raises:
        ValueError: as in `to_tf_keras`; for fewer than two clusters, or layers that are already wrapped for training.
        ImportError: without the `optimize` extra.

    Example:

    >>> model = elrt_keras.models.build("resnet20", input_shape=(8, 8, 1))
    >>> # clustered = elrt_keras.export.cluster(model, clusters=16)
    """
    int_in(clusters, "[2, inf)", "clusters")
    tfmot, tf_keras, model = _prepared(model)
    # The function with `preserve_sparsity` has no public name. The guide of tfmot imports it from here.
    from tensorflow_model_optimization.python.core.clustering.keras.experimental.cluster import cluster_weights

    start = tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS

    def clustered(layer):
        if min(weight.shape.num_elements() for weight in layer.trainable_weights if len(weight.shape) > 1) < clusters:
            return layer
        return cluster_weights(layer, int(clusters), start, preserve_sparsity=preserve_sparsity)

    return _wrapped(model, tf_keras, clustered)


def _prepared(model):
    tfmot, tf_keras = import_optional("tensorflow_model_optimization"), import_tf_keras()
    if not isinstance(model, tf_keras.Model):
        return tfmot, tf_keras, to_tf_keras(model)
    if wrapped := wrappers(model):
        raise ValueError(
            "Expected a model that is not yet wrapped for training; call `strip` after pruning and clustering, and "
            f"quantise last. Received: {wrapped[0].name!r}, a {type(wrapped[0]).__name__}"
        )
    return tfmot, tf_keras, copied(model)  # a copy, so that the original's layers are not trained


def _wrapped(model, tf_keras, wrap):
    """Copies a model and wraps its trainable convolutions and dense layers."""
    kinds = [getattr(tf_keras.layers, name) for name in _WRAPPED]

    def wrapped(layer):
        return wrap(layer) if type(layer) in kinds and layer.trainable else layer

    return tf_keras.models.clone_model(model, clone_function=wrapped)


def _as_convolution(layer, tf_keras):
    """Converts rescaling or normalisation of float images, channel by channel, to a 1×1 depthwise convolution.

    Any other layer is returned unchanged.
    """
    if not isinstance(layer, (tf_keras.layers.Rescaling, tf_keras.layers.Normalization)):
        return layer
    inputs = [tensor for node in layer.inbound_nodes for tensor in node.keras_inputs]
    channels = inputs[0].shape[-1]
    if any(one.shape.rank != 4 or one.shape[-1] != channels or not one.dtype.is_floating for one in inputs):
        return layer
    scale, offset = (np.asarray(value, "float32") for value in _scale_and_offset(layer, tf_keras))
    if any(value.size != 1 and (value.size != channels or value.shape[-1] != channels) for value in (scale, offset)):
        return layer
    scale, offset = (np.broadcast_to(value.reshape(-1), channels) for value in (scale, offset))
    return tf_keras.layers.DepthwiseConv2D(
        1,
        depthwise_initializer=tf_keras.initializers.Constant(scale.reshape(1, 1, channels, 1)),
        bias_initializer=tf_keras.initializers.Constant(offset.copy()),
        trainable=False,
        name=layer.name,
    )


def _scale_and_offset(layer, tf_keras):
    if isinstance(layer, tf_keras.layers.Rescaling):
        return layer.scale, layer.offset
    mean, deviation = layer.mean.numpy(), np.maximum(np.sqrt(layer.variance.numpy()), tf_keras.backend.epsilon())
    return (deviation, mean) if layer.invert else (1 / deviation, -mean / deviation)


def _name_of(activation):
    return getattr(activation, "__name__", type(activation).__name__)


def _by_activation(scheme):
    """Changes the registry of a scheme to support no layer with an activation that tfmot refuses. Returns it."""
    registry = scheme.get_quantize_registry()
    supports = registry.supports

    def supported(layer):
        activation = getattr(layer, "activation", None)
        return supports(layer) and (activation is None or _name_of(activation) in _ACTIVATIONS)

    registry.supports = supported
    scheme.get_quantize_registry = lambda: registry
    return registry


def _freeze(wrapper):
    """Freezes the weights of a wrapped layer that is not trainable.

    tfmot 0.8.1 lists every quantised weight as trainable, and has no public way to change this. A training step that
    changes the scale of pixels would ruin the model.
    """
    wrapper._non_trainable_weights.extend(wrapper._trainable_weights)
    wrapper._trainable_weights.clear()


def _is_folded(layer, model, tf_keras):
    """Reports if a layer is a batch-norm that tfmot folds into a convolution.

    The convolution must be linear, and the batch-norm the only layer that takes its output.
    """
    if not isinstance(layer, tf_keras.layers.BatchNormalization) or len(layer.inbound_nodes) != 1:
        return False
    source = layer.inbound_nodes[0].inbound_layers
    if not isinstance(source, (tf_keras.layers.Conv2D, tf_keras.layers.DepthwiseConv2D)):
        return False
    inputs = [one for other in model.layers for node in other.inbound_nodes for one in _listed(node.inbound_layers)]
    return source.activation is tf_keras.activations.linear and sum(one is source for one in inputs) == 1


def _listed(value):
    return value if isinstance(value, list) else [value]


def strip(model: "tf_keras.Model") -> "tf_keras.Model":
    """Removes everything that pruning and clustering added for training: returns plain tf_keras layers, as trained.

    A quantisation-aware model is returned unchanged, because the export needs its layers.

    Args:
        model: a tf_keras model of `prune` or `cluster`.

    Raises:
        ValueError: for a model that is not of tf_keras.
        ImportError: without the `optimize` extra.

    Example:

    >>> # pruned = elrt_keras.export.strip(elrt_keras.export.prune(model))
    """
    tfmot, tf_keras = import_optional("tensorflow_model_optimization"), import_tf_keras()
    if not isinstance(model, tf_keras.Model):
        raise ValueError(f"Expected a tf_keras model. Received: model={model!r}")
    if is_quantization_aware(model):
        return model
    # tfmot calls the same layers again. In a copy each layer is called once and has one output.
    return copied(tfmot.clustering.keras.strip_clustering(tfmot.sparsity.keras.strip_pruning(model)))


def is_quantization_aware(model: "keras.Model | tf_keras.Model") -> bool:
    """Reports if a model contains the ranges of its activations (see `quantization_aware`)."""
    return any(type(layer).__name__ in ("QuantizeWrapper", "QuantizeWrapperV2") for layer in model.layers)


def wrappers(model: "keras.Model | tf_keras.Model") -> list:
    """Lists the layers of a model that tensorflow-model-optimization wrapped around others."""
    return [layer for layer in model.layers if type(layer).__module__.startswith("tensorflow_model_optimization.")]
