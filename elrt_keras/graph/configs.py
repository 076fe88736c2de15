"""Constructor arguments of layers: as plain Python for a config, and as objects for a copy."""

import contextlib
from typing import Any

import keras
import numpy as np


def serialized(argument: str, value: Any) -> Any:
    """An argument as plain Python, by what its name says it is."""
    if argument == "activation":
        return keras.activations.serialize(value)
    for kind in ("initializer", "regularizer", "constraint"):
        if argument.endswith(kind):
            return getattr(keras, f"{kind}s").serialize(value)
    return value


def plain(value: Any) -> Any:
    """A number of NumPy, also in a tuple, as Python's; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    return value.item() if isinstance(value, np.generic) else value


def copy_arguments(layer: keras.layers.Layer) -> dict[str, Any]:
    """The config of a layer for a copy in the same process, with its activation function as it is.

    A lambda, a backend's own function or an object that can be called could not be found again by what a config says of
    it, if Keras can write one at all. A custom layer may keep a function as `activation` that no argument of this name
    stands for; what its config says is left as it is.
    """
    activation = vars(layer).get("activation")  # of a recurrent layer it is the cell's
    if not callable(activation) or isinstance(activation, keras.layers.Layer):
        return layer.get_config()
    with _linear(layer):
        neutral = layer.get_config()
    if neutral.get("activation") != keras.activations.serialize(keras.activations.linear):
        return layer.get_config()
    try:
        config = layer.get_config()
    except (AttributeError, TypeError, ValueError):  # Keras' complaints about what it cannot write
        config = neutral
    return {**config, "activation": activation}


@contextlib.contextmanager
def _linear(layer):
    activation, layer.activation = layer.activation, keras.activations.linear
    try:
        yield
    finally:
        layer.activation = activation
