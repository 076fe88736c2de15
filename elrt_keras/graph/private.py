"""The private names of Keras that have no public counterpart, used here alone.

| name | why | upstream |
|---|---|---|
| `Layer._flatten_layers` | all layers that a layer holds, at any depth | none filed |
| `tensor._keras_mask` | the mask that a symbolic tensor carries | none filed |
| `Optimizer._trainable_variables`, `…_indices` | on JAX steps update all variables of an optimizer | none filed |
"""

from collections.abc import Sequence
from typing import Any

import keras


def held_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Lists all layers that a layer holds, at any depth, without itself."""
    return layer._flatten_layers(include_self=False)


def mask_of(tensor: Any) -> Any:
    """Returns the mask that a tensor carries, or `None`."""
    return getattr(tensor, "_keras_mask", None)


class OptimizedVariables:
    """The variables that a step of an optimizer updates: all that it was built for, or some of them.

    Args:
        optimizer: a built optimizer; what it knows of each variable, such as momentum, stays.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer):
        inner = getattr(optimizer, "inner_optimizer", None)
        built = [one for one in (optimizer, inner) if one is not None]
        self._all = [(one, list(one._trainable_variables), dict(one._trainable_variables_indices)) for one in built]

    def limit(self, variables: Sequence[keras.Variable]) -> None:
        """Has steps update these variables alone."""
        wanted = {id(variable) for variable in variables}
        for optimizer, known, indices in self._all:
            # In place, and as a plain list: Keras would take what is set or appended for the optimizer's own variables.
            list.clear(optimizer._trainable_variables)
            list.extend(optimizer._trainable_variables, [one for one in known if id(one) in wanted])
            # Places in the optimizer's lists, of momenta for one.
            kept = {key: index for key, index in indices.items() if id(known[index]) in wanted}
            optimizer._trainable_variables_indices.clear()
            optimizer._trainable_variables_indices.update(kept)
