"""Constructor arguments of layers, as plain Python for a config or as objects for a copy."""

import contextlib
from typing import Any

import keras
import numpy as np


def serialized(argument: str, value: Any) -> Any:
    """Returns an argument as plain Python. The name of the argument tells its type."""
    if argument == "activation":
        return keras.activations.serialize(value)
    for kind in ("initializer", "regularizer", "constraint"):
        if argument.endswith(kind):
            return getattr(keras, f"{kind}s").serialize(value)
    return value


def plain(value: Any) -> Any:
    """Returns NumPy numbers, also inside a tuple, as Python numbers. Other values are returned unchanged."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    return value.item() if isinstance(value, np.generic) else value


def copy_arguments(layer: keras.layers.Layer) -> dict[str, Any]:
    """Returns the config of a layer for a copy in the same process, with its activation function as an object.

    A config cannot name every activation: a lambda, a function of the backend or a callable object could not be found
    again, and Keras may refuse to write it. A custom layer may have an attribute `activation` that is no argument; its
    config stays unchanged.
    """
    activation = vars(layer).get("activation")  # a recurrent layer has it in its cell
    if not callable(activation) or isinstance(activation, keras.layers.Layer):
        return layer.get_config()
    with _linear(layer):
        neutral = layer.get_config()
    if neutral.get("activation") != keras.activations.serialize(keras.activations.linear):
        return layer.get_config()
    try:
        config = layer.get_config()
    except (AttributeError, TypeError, ValueError):  # Keras raises these for an activation that it cannot write
        config = neutral
    return {**config, "activation": activation}


@contextlib.contextmanager
def _linear(layer):
    activation, layer.activation = layer.activation, keras.activations.linear
    try:
        yield
    finally:
        layer.activation = activation
