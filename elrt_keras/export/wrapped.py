"""What tensorflow-model-optimization wraps around the layers of tf_keras models: recognised, and taken off."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras
    import tf_keras


def import_tf_keras() -> ModuleType:
    """The module `tf_keras`; an `ImportError` says what to install."""
    return _imported("tf_keras")


def import_tfmot() -> ModuleType:
    """The module `tensorflow_model_optimization`; an `ImportError` says what to install."""
    return _imported("tensorflow_model_optimization")


def _imported(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError("This needs `pip install 'elrt_keras[optimize]'`.") from error


def is_quantization_aware(model: "keras.Model | tf_keras.Model") -> bool:
    """Whether a model knows the ranges of its activations (see `quantization_aware`)."""
    return any(type(layer).__name__ in ("QuantizeWrapper", "QuantizeWrapperV2") for layer in model.layers)


def wrappers(model: "keras.Model | tf_keras.Model") -> list:
    """The layers of a model that tensorflow-model-optimization has put around others."""
    return [layer for layer in model.layers if type(layer).__module__.startswith("tensorflow_model_optimization.")]


def strip(model: "tf_keras.Model") -> "tf_keras.Model":
    """The model without what pruning and clustering added for training: plain tf_keras layers, the weights as trained.

    A quantisation-aware model comes back as it is, since its layers are what the export quantises.

    Args:
        model: a tf_keras model of `prune` or `cluster`.

    Raises:
        ValueError: for a model that is not of tf_keras.
        ImportError: without the `optimize` extra.

    Example:

    >>> # pruned = elrt_keras.export.strip(elrt_keras.export.prune(model))
    """
    tfmot, tf_keras = import_tfmot(), import_tf_keras()
    if not isinstance(model, tf_keras.Model):
        raise ValueError(f"Expected a tf_keras model. Received: model={model!r}")
    if is_quantization_aware(model):
        return model
    # tfmot calls the same layers anew; a copy has each layer called once, so that it has one output.
    return copied(tfmot.clustering.keras.strip_clustering(tfmot.sparsity.keras.strip_pruning(model)))


def copied(model: "tf_keras.Model") -> "tf_keras.Model":
    """A tf_keras model of its own layers, with the weights of another.

    Raises:
        ValueError: for a layer that cannot be made from its configuration.
    """
    try:
        copy = import_tf_keras().models.clone_model(model)
    except (NotImplementedError, TypeError) as error:  # a custom layer without `get_config`
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"Expected layers that can be made from their configuration. Received: {reason}") from error
    copy.set_weights(model.get_weights())
    return copy
