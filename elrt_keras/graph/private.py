"""The two private names of Keras that have no public counterpart, used here alone.

| name | why | upstream |
|---|---|---|
| `Layer._flatten_layers` | all layers that a layer holds, at any depth | none filed |
| `tensor._keras_mask` | the mask that a symbolic tensor carries | none filed |
"""

from typing import Any

import keras


def held_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Lists all layers that a layer holds, at any depth, without itself."""
    return layer._flatten_layers(include_self=False)


def mask_of(tensor: Any) -> Any:
    """Returns the mask that a tensor carries, or `None`."""
    return getattr(tensor, "_keras_mask", None)
