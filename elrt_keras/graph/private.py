"""Private names of Keras that have no public counterpart. Only this module uses them.

| name | why | upstream |
|---|---|---|
| `Layer._flatten_layers` | lists all layers that a layer holds, at any depth | none filed |
| `tensor._keras_mask` | holds the mask of a symbolic tensor | none filed |
| `Optimizer._trainable_variables`, `…_indices` | on JAX a step updates all variables of an optimizer | none filed |
"""

from collections.abc import Sequence
from typing import Any

import keras


def held_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Lists all layers that a layer holds, at any depth, without itself."""
    return layer._flatten_layers(include_self=False)


def mask_of(tensor: Any) -> Any:
    """Returns the mask of a tensor, or `None`."""
    return getattr(tensor, "_keras_mask", None)


class OptimizedVariables:
    """The variables that a step of an optimizer updates: all that it was built for, or a selection.

    Args:
        optimizer: a built optimizer. Its own state for each variable, such as momentum, stays.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer):
        inner = getattr(optimizer, "inner_optimizer", None)
        built = [one for one in (optimizer, inner) if one is not None]
        self._all = [(one, list(one._trainable_variables), dict(one._trainable_variables_indices)) for one in built]

    def limit(self, variables: Sequence[keras.Variable]) -> None:
        """Makes steps update only these variables."""
        wanted = {id(variable) for variable in variables}
        for optimizer, known, indices in self._all:
            # Changed in place, with the methods of `list`: Keras tracks what is set or appended as the optimizer's own
            # variables.
            list.clear(optimizer._trainable_variables)
            list.extend(optimizer._trainable_variables, [one for one in known if id(one) in wanted])
            # The values are indices into the optimizer's lists, such as that of the momenta.
            kept = {key: index for key, index in indices.items() if id(known[index]) in wanted}
            optimizer._trainable_variables_indices.clear()
            optimizer._trainable_variables_indices.update(kept)
