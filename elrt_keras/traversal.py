"""Walking the layers of a model, nested models included."""

import functools

import keras


def iterate_layers(model, prefix="", into=keras.Model):
    """All layers of a model that are no models themselves, as `(path, layer)`.

    The path of a layer is its name, with the names of the nested models that hold it in front: `"backbone/conv1"`. It
    is the key of the layer in a rank plan.

    Args:
        model: a Keras model.
        prefix: what the paths begin with.
        into: the classes of nested models that are walked into; others are yielded as layers.
    """
    for layer in model.layers:
        path = f"{prefix}{layer.name}"
        if isinstance(layer, into):
            yield from iterate_layers(layer, f"{path}/", into)
        else:
            yield path, layer


def is_container(layer):
    """Whether a layer is a Functional or Sequential model, which can be rebuilt with other layers."""
    return isinstance(layer, (keras.Sequential, functional_class()))


@functools.cache
def functional_class():
    """The class of a functional model. Keras exports no name for it; `keras.Model(inputs, outputs)` returns it."""
    inputs = keras.Input((1,), name="probe")
    return type(keras.Model(inputs, keras.layers.Identity(name="probe_identity")(inputs), name="probe"))
