"""Observation of layer calls while a model runs."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras


@contextlib.contextmanager
def replaced_calls(
    layers: Iterable[keras.layers.Layer],
    replacement: Callable[[keras.layers.Layer, Callable[..., Any]], Callable[..., Any]],
) -> Iterator[None]:
    """Context in which layers run a replacement instead of their `call`, wherever a model calls them.

    Args:
        layers: the layers; duplicates count once.
        replacement: function of a layer and its `call` that returns the function to run instead.
    """
    distinct = list({id(layer): layer for layer in layers}.values())
    # An instance may have its own `call`, such as the one that `fuse_batch_norm` sets.
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
