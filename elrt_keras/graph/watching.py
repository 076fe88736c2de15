"""Calls of layers, watched while a model runs."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras


@contextlib.contextmanager
def replaced_calls(
    layers: Iterable[keras.layers.Layer],
    replacement: Callable[[keras.layers.Layer, Callable[..., Any]], Callable[..., Any]],
) -> Iterator[None]:
    """Within it layers run by other functions than their `call`, wherever a model calls them.

    Args:
        layers: the layers; one that comes twice counts once.
        replacement: function from a layer and its `call` to what runs in its place.
    """
    distinct = list({id(layer): layer for layer in layers}.values())
    # An instance may have a `call` of its own, such as that of `fuse_batch_norm`.
    own = {id(layer): vars(layer)["call"] for layer in distinct if "call" in vars(layer)}
    try:
        for layer in distinct:
            layer.call = replacement(layer, layer.call)
        yield
    finally:
        for layer in distinct:
            vars(layer).pop("call", None)
            if id(layer) in own:
                layer.call = own[id(layer)]
