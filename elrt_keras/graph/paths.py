"""Paths of the layers of a model, nested models included."""

import collections.abc
import fnmatch
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from elrt_keras.checks import suggestion
from elrt_keras.graph.private import held_layers


def iterate_layers(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields all layers of a model that are not models themselves, as `(path, layer)`.

    The path of a layer is its name, preceded by the names of the nested models that hold it, or of the
    `TimeDistributed` that runs it: `"backbone/conv1"`. It is the key of the layer in a rank plan.
    """
    for layer in model.layers:
        yield from _layers_at(f"{prefix}{layer.name}", layer)


def _layers_at(path, layer):
    if isinstance(layer, keras.Model):
        yield from iterate_layers(layer, f"{path}/")
        return
    yield path, layer
    step = step_layer(layer)
    if step is not None:
        yield from _layers_at(f"{path}/{step.name}", step)


def iterate_sublayers(model: keras.Model) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields the same as `iterate_layers`, then the layers that other layers hold, with their Keras paths."""
    seen = set()
    for path, layer in iterate_layers(model):
        seen.add(id(layer))
        yield path, layer
    for layer in held_layers(model):
        if id(layer) not in seen and not isinstance(layer, keras.Model):
            yield layer.path or layer.name, layer


def own_weights(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Lists the weights of a layer without those of the layers that it holds."""
    held = {id(weight) for inner in held_layers(layer) for weight in inner.weights}
    return [weight for weight in layer.weights if id(weight) not in held]


def step_layer(layer: keras.layers.Layer) -> keras.layers.Layer | None:
    """Returns the layer or model that a `TimeDistributed` runs at every step; `None` for any other layer."""
    # Subclasses are left out, because they may use their layer in another way.
    return layer.layer if type(layer) is keras.layers.TimeDistributed else None


def matching(paths: Iterable[str], pattern: str) -> list[str]:
    """Lists the paths that match a shell-style pattern.

    A pattern that equals a path, brackets included, matches only this path. A pattern that matches a nested model
    matches all layers in it.

    Raises:
        ValueError: if the pattern is not a string.

    Example:

    >>> elrt_keras.graph.paths.matching(["conv1", "conv2", "head"], "conv*")
    ['conv1', 'conv2']
    >>> elrt_keras.graph.paths.matching(["stem", "backbone/conv1", "backbone/conv2"], "backbone")
    ['backbone/conv1', 'backbone/conv2']
    """
    if not isinstance(pattern, str):
        raise ValueError(f"Expected a name or pattern. Received: {pattern!r}")
    paths = list(paths)
    return [pattern] if pattern in paths else [path for path in paths if _stands_for(pattern, path)]


def _stands_for(pattern, path):
    parts = path.split("/")
    within = ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
    return any(one == pattern or fnmatch.fnmatchcase(one, pattern) for one in within)


def select(paths: Iterable[str], patterns: Any, argument: str) -> list[str]:
    """Lists the paths that match a name or pattern, or one of several, in the order of the paths.

    Args:
        paths: the paths of all layers.
        patterns: a string or an iterable of strings.
        argument: name of the user's argument, for messages.

    Raises:
        ValueError: for a pattern that matches nothing or is not a string.
    """
    paths = list(paths)
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, collections.abc.Iterable):
        raise ValueError(f"Expected a name or pattern, or a list of them. Received: {argument}={patterns!r}")
    matching_paths = set()
    for pattern in patterns:
        matches = matching(paths, pattern)
        if not matches:
            raise ValueError(
                f"Nothing matched. Expected a name or pattern among {paths}. "
                f"Received: {argument}={pattern!r}{suggestion(pattern, paths)}"
            )
        matching_paths.update(matches)
    return [path for path in paths if path in matching_paths]


def is_container(layer: keras.layers.Layer) -> bool:
    """Reports if a layer is a Functional or Sequential model, which can be rebuilt with other layers.

    A subclass with its own `call` does not count: its graph does not show what it computes.
    """
    kinds = (keras.Sequential, functional_class())
    return isinstance(layer, kinds) and type(layer).call in [kind.call for kind in kinds]


def check_keras_model(model: Any) -> None:
    """Checks that a value is a model of Keras 3.

    Raises:
        ValueError: for any other value, such as a model of tf_keras.
    """
    if is_of_tf_keras(model):
        raise ValueError(f"Expected a model of Keras 3. Received: {model.name!r}, a model of tf_keras")
    if not isinstance(model, keras.Model):
        raise ValueError(f"Expected a Keras model. Received: model={model!r}")


def is_of_tf_keras(model: Any) -> bool:
    """Reports if a model is one of tf_keras, whose classes have the same names as those of Keras."""
    return any(kind.__module__.split(".")[0] == "tf_keras" for kind in type(model).__mro__)


@functools.cache
def functional_class() -> type[keras.Model]:
    """Returns the class of a functional model, for which Keras exports no name."""
    inputs = keras.Input((1,), name="probe")
    return type(keras.Model(inputs, keras.layers.Identity(name="probe_identity")(inputs), name="probe"))
