"""Constructor arguments of layers: as plain Python for a config, and as objects for a copy or a low-rank twin."""

import contextlib
import inspect
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

if TYPE_CHECKING:
    from elrt_keras.layers.factorized import FactorizedLayer


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


def dense_arguments(layer_class: "type[FactorizedLayer]", layer: keras.layers.Layer) -> dict[str, Any]:
    """The constructor arguments that a low-rank layer takes over from a stock layer.

    Raises:
        ValueError: when `layer` is not of the stock class that `layer_class` stands for, has a kernel constraint, or
            is quantised.
    """
    stock = layer_class.stock_class
    if type(layer) is not stock:
        raise ValueError(
            f"{layer_class.__name__} takes over a keras.layers.{stock.__name__}. "
            f"Received: layer={getattr(layer, 'name', layer)!r} of type {type(layer).__name__}"
        )
    if layer.kernel_constraint is not None:
        raise ValueError(
            "A kernel constraint acts on the dense kernel and has no counterpart on its factors. "
            f"Received: layer={layer.name!r} with kernel_constraint={type(layer.kernel_constraint).__name__}"
        )
    if isinstance(layer.dtype_policy, keras.dtype_policies.QuantizedDTypePolicy):
        raise ValueError(
            "Expected a layer with weights that can be trained; quantise the low-rank model instead. "
            f"Received: layer={layer.name!r} with dtype={layer.dtype_policy.name!r}"
        )
    taken = {*inspect.signature(layer_class.__init__).parameters, "name", "trainable"}
    arguments = {name: value for name, value in copy_arguments(layer).items() if name in taken}
    return {**arguments, "dtype": layer.dtype_policy}
