"""Conversion of a Keras 3 model to tf_keras, which tensorflow-model-optimization needs."""

import importlib
import inspect
import itertools
import numbers
from types import ModuleType
from typing import TYPE_CHECKING

import keras
import numpy as np

from elrt_keras.conversion import expand
from elrt_keras.conversion.merge import is_low_rank
from elrt_keras.export.checks import check_model
from elrt_keras.graph.nodes import replayed
from elrt_keras.graph.paths import is_container, iterate_sublayers
from elrt_keras.graph.separable import is_separable
from elrt_keras.graph.view import View
from elrt_keras.litert import for_inference, only_output

if TYPE_CHECKING:
    import tf_keras

_TOLERANCE = 1e-5
# Arguments that are dropped: they hold Keras 3 objects, and the weights are copied anyway.
_LEFT_BEHIND = ("_initializer", "_regularizer", "_constraint")
# Activations with the same name but different functions: x/6 + 1/2 in Keras 3, x/5 + 1/2 in tf_keras.
_OTHER_FUNCTIONS = {"hard_sigmoid"}
_OPERATIONS = {"Add", "Subtract", "Multiply", "Maximum", "Minimum", "Concatenate"}  # of keras.ops, which become layers
# Operations of a tensor and a number, as functions that return scale and offset. `first`: the number comes first.
_WITH_NUMBER = {
    "Add": lambda number, first: (1.0, number),
    "Subtract": lambda number, first: (-1.0, number) if first else (1.0, -number),
    "Multiply": lambda number, first: (number, 0.0),
}


def to_tf_keras(model: keras.Model) -> "tf_keras.Model":
    """Converts a model to tf_keras, with the same names and weights. Low-rank layers are expanded to their chains.

    Nested models are unfolded, because tensorflow-model-optimization does not take them. Regularizers and constraints
    are dropped. The result is not compiled.

    Args:
        model: a built Functional or Sequential Keras 3 model with one input and one output, on the TensorFlow backend.

    Returns:
        A `tf_keras.Model` whose outputs equal the model's to 1e-5 of the largest. This is checked on random inputs.

    Raises:
        ValueError: for a layer that tf_keras does not have, or outputs that differ.
        ImportError: without the `optimize` extra.

    Example:

    >>> model = elrt_keras.models.build("resnet20", input_shape=(8, 8, 1))
    >>> # legacy = elrt_keras.export.to_tf_keras(model)
    """
    tf_keras = import_tf_keras()
    check_model(model, "tf_keras conversion", simple=True)
    if not is_container(model):
        raise ValueError(f"Expected a Functional or Sequential Keras model. Received: a {type(model).__name__}")
    if any(is_low_rank(layer) for _, layer in iterate_sublayers(model)):
        model = expand(model)
    twins = {}  # id of a layer → its tf_keras twin, so that shared layers stay shared
    first = model.inputs[0]
    inputs = tf_keras.Input(first.shape[1:], name=first.name, dtype=first.dtype)
    legacy = tf_keras.Model(inputs, _replayed(View(model), model, inputs, twins), name=model.name)
    for layer, twin in twins.values():
        if twin.weights:
            twin.set_weights(layer.get_weights())
    _check_equal(model, legacy)
    return legacy


def _replayed(view, model, inputs, twins):
    """Runs a Keras 3 model's graph on a symbolic tensor of tf_keras. Returns its output."""
    graph = replayed(model)
    tensors = {id(graph.inputs[0]): inputs}

    def translate(value):
        return tensors[id(value)] if isinstance(value, keras.KerasTensor) else value

    for layer, args, kwargs, outputs in graph.calls:
        args, kwargs = keras.tree.map_structure(translate, (args, kwargs))
        tensors[id(outputs)] = _called(view, layer, args, kwargs, twins)
    return tensors[id(graph.outputs[0])]


def _called(view, layer, args, kwargs, twins):
    if isinstance(layer, keras.layers.InputLayer):
        return args[0]
    inner = layer if is_container(layer) else None if is_separable(layer) else view.opening(layer).graph
    if inner is not None:
        return _replayed(view, inner, args[0], twins)
    if not isinstance(layer, keras.layers.Layer):
        return _operated(layer, args, twins)
    if id(layer) not in twins:
        twins[id(layer)] = (layer, _twin(layer, _unused(layer.name, twins)))
    options = {name: value for name, value in kwargs.items() if name not in ("training", "mask")}
    return twins[id(layer)][1](*args, **options)


def _unused(name, twins):
    """Returns the name. If layers of two nested models share it, a number is added."""
    names = {twin.name for _, twin in twins.values()}
    numbered = (f"{name}_{number}" for number in itertools.count(1))
    return name if name not in names else next(one for one in numbered if one not in names)


def _operated(operation, args, twins):
    """Runs an operation of `keras.ops` through the layer of tf_keras that computes it."""
    if id(operation) not in twins:  # the suffix keeps the name different from those of layers
        twins[id(operation)] = (operation, _operation_twin(operation, args, _unused(f"{operation.name}_op", twins)))
    tensors = [value for value in args if not isinstance(value, numbers.Real)]
    return twins[id(operation)][1](tensors if len(tensors) > 1 else tensors[0])


def _operation_twin(operation, args, own_name):
    """Makes the layer of tf_keras that computes an operation, with the name `own_name`."""
    tf_keras, name = import_tf_keras(), type(operation).__name__
    is_number = [isinstance(value, numbers.Real) for value in args]
    if any(is_number) and name in _WITH_NUMBER:
        scale, offset = _WITH_NUMBER[name](float(args[0 if is_number[0] else 1]), is_number[0])
        return tf_keras.layers.Rescaling(scale, offset, name=own_name)
    # Compared by name, because `is_keras_tensor` raises an error for values that are no tensors.
    if name not in _OPERATIONS or any(type(value).__name__ != "KerasTensor" for value in keras.tree.flatten(args)):
        raise ValueError(f"Expected layers and operations that tf_keras has as layers. Received: keras.ops, {name}")
    options = {"axis": operation.axis} if name == "Concatenate" else {}
    return getattr(tf_keras.layers, name)(**options, name=own_name)


def _twin(layer, name):
    """Makes the tf_keras layer of the same class and arguments, called `name`, without weights."""
    tf_keras = import_tf_keras()
    kind = getattr(tf_keras.layers, type(layer).__name__, None)
    if kind is None or type(layer).__module__.split(".")[0] != "keras":
        raise ValueError(f"Expected layers that tf_keras has. Received: {layer.name!r}, a {type(layer).__name__}")
    known = {name for base in kind.__mro__ if "__init__" in vars(base) for name in inspect.signature(base).parameters}
    config = layer.get_config()
    if isinstance(layer, keras.layers.LeakyReLU):
        config["alpha"] = config["negative_slope"]  # its name in tf_keras
    options = {
        name: value
        for name, value in config.items()
        if name in known and name != "dtype" and not name.endswith(_LEFT_BEHIND)
    }
    activation = options.get("activation")
    if not isinstance(activation, (str, type(None))):
        raise ValueError(f"Expected activations of Keras by name. Received: {layer.name!r}, {activation}")
    if activation in _OTHER_FUNCTIONS:
        raise ValueError(f"Expected activations that are equal in tf_keras. Received: {layer.name!r}, {activation!r}")
    try:
        return kind(**{"trainable": layer.trainable, **options, "name": name})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected layers that tf_keras can make. Received: {layer.name!r}, a {type(layer).__name__}: {error}"
        ) from error


def _check_equal(model, legacy):
    examples, expected = _examples(model)
    difference = np.max(np.abs(np.asarray(legacy(examples, training=False)) - expected))
    limit = _TOLERANCE * max(1.0, float(np.max(np.abs(expected))))
    if not difference <= limit:
        raise ValueError(
            f"Expected outputs of tf_keras within {limit:.1e} of Keras 3's. Received: a difference of {difference:.1e}"
        )


def _examples(model):
    """Random inputs that a model takes, and its outputs. The inputs are pixels, or numbers up to 1 if pixels fail."""
    import tensorflow as tf

    random = np.random.default_rng(0).uniform(0, 1, (4, *model.inputs[0].shape[1:]))
    for highest in (255, 1):
        examples = (highest * random).astype("float32")
        try:
            with for_inference(model):
                outputs = keras.ops.convert_to_numpy(only_output(model, examples))
        except tf.errors.InvalidArgumentError:  # indices of an Embedding
            if highest == 1:
                raise
            continue
        if np.all(np.isfinite(outputs)):
            return examples, outputs
    raise ValueError("Expected a model of finite outputs on random inputs from 0 to 1. Received: NaN or infinity")


def copied(model: "tf_keras.Model") -> "tf_keras.Model":
    """Copies a tf_keras model: new layers with the same weights.

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


def import_tf_keras() -> ModuleType:
    """Imports the module `tf_keras`. If it is missing, the `ImportError` names the extra to install."""
    return import_optional("tf_keras")


def import_optional(name: str) -> ModuleType:
    """Imports a module of the extra `optimize`. If it is missing, the `ImportError` names the extra to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"Expected the `optimize` extra: `pip install 'elrt_keras[optimize]'`. Received: no package {name!r}"
        ) from error
