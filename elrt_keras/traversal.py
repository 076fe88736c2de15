"""Walking the layers of a model, nested models included."""

import functools
from collections.abc import Iterator

import keras

from elrt_keras.opened import opened


def iterate_layers(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """All layers of a model that are no models themselves, as `(path, layer)`.

    The path of a layer is its name, with the names of the nested models that hold it in front: `"backbone/conv1"`. It
    is the key of the layer in a rank plan.
    """
    for layer in model.layers:
        path = f"{prefix}{layer.name}"
        if isinstance(layer, keras.Model):
            yield from iterate_layers(layer, f"{path}/")
        else:
            yield path, layer


def iterate_sublayers(model: keras.Model) -> Iterator[tuple[str, keras.layers.Layer]]:
    """As `iterate_layers`, and then the layers that other layers hold, by Keras' own paths."""
    seen = set()
    for path, layer in iterate_layers(model):
        seen.add(id(layer))
        yield path, layer
    for layer in held_layers(model):
        if id(layer) not in seen and not isinstance(layer, keras.Model):
            yield layer.path or layer.name, layer


def held_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """All layers that a layer holds, at any depth. Keras lists them under a private name only."""
    return layer._flatten_layers(include_self=False)


def own_weights(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The weights of a layer without those of the layers that it holds."""
    held = {id(weight) for inner in held_layers(layer) for weight in inner.weights}
    return [weight for weight in layer.weights if id(weight) not in held]


def iterate_replaceable(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """As `iterate_layers`, but of the layers that a rebuilt model can have others in the place of.

    Subclassed models nested in the model are layers here. Custom layers made of other layers are walked into where they
    can be opened (see `opened`).
    """
    for layer in model.layers:
        path = f"{prefix}{layer.name}"
        inner = layer if is_container(layer) else opened(layer)
        if inner is None:
            yield path, layer
        else:
            yield from iterate_replaceable(inner, f"{path}/")


def is_container(layer: keras.layers.Layer) -> bool:
    """Whether a layer is a Functional or Sequential model, which can be rebuilt with other layers."""
    return isinstance(layer, (keras.Sequential, functional_class()))


@functools.cache
def functional_class() -> type[keras.Model]:
    """The class of a functional model. Keras exports no name for it; `keras.Model(inputs, outputs)` returns it."""
    inputs = keras.Input((1,), name="probe")
    return type(keras.Model(inputs, keras.layers.Identity(name="probe_identity")(inputs), name="probe"))
