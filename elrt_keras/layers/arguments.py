"""The constructor arguments that a low-rank layer takes over from a stock one."""

import inspect
from typing import TYPE_CHECKING, Any

import keras

from elrt_keras.graph.configs import copy_arguments

if TYPE_CHECKING:
    from elrt_keras.layers.factorized import FactorizedLayer


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
