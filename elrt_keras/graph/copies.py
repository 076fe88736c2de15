"""Copies of single layers: made from their configurations, then given what these do not say."""

import keras

from elrt_keras.graph.configs import copy_arguments
from elrt_keras.graph.private import held_layers

# Layers without weights whose configuration lacks a part: a function that Keras could not load again, an adapted table.
_REUSED = (
    keras.layers.Lambda,
    keras.layers.Discretization,
    keras.layers.IntegerLookup,
    keras.layers.StringLookup,
    keras.layers.TextVectorization,
)
# What constructors, `get_config` and `build` of other people raise where a configuration does not fit.
_ERRORS = (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)


def copied(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Makes a layer of the same class, configuration and name, not built yet.

    Raises:
        ValueError: for a layer that cannot be made from its configuration, by name.
    """
    if isinstance(layer, _REUSED):
        return layer
    try:
        copy = type(layer).from_config(copy_arguments(layer))
    except _ERRORS as error:
        raise ValueError(
            "Expected layers that can be made from their configuration. "
            f"Received: {layer.name!r}, a {type(layer).__name__}: {error}"
        ) from error
    copy.name = layer.name  # which a custom layer's configuration may lack
    return copy


def take_state(layer: keras.layers.Layer, copy: keras.layers.Layer) -> None:
    """Gives a copy the original's weights, numbers and texts set since it was made, and what is frozen.

    Raises:
        ValueError: for a copy that holds other layers or variables than its original, or has another configuration.
    """
    if copy is layer:
        return
    if len(copy.weights) < len(layer.weights):  # where a `TimeDistributed` runs it, it is not called by itself
        copy.build_from_config(layer.get_build_config())
    layers, copies = ([one, *held_layers(one)] for one in (layer, copy))
    shapes, others = ([variable.shape for variable in one.variables] for one in (layer, copy))
    if list(map(type, layers)) != list(map(type, copies)) or shapes != others:
        raise _unlike(layer, "with all that it holds")
    copy.set_weights(layer.get_weights())
    for original, twin in zip(layers, copies):  # from the outside in: a layer passes its flag on
        for name, value in _public_values(original).items():
            if vars(twin).get(name, value) != value:
                setattr(twin, name, value)
        twin.trainable = original.trainable
    for original, twin in zip(layer.variables, copy.variables):
        if twin.trainable != original.trainable:
            twin.trainable = original.trainable
    if not is_stock(layer):
        _check_config(layer, copy)


def check_copyable(layer: keras.layers.Layer) -> None:
    """Makes a copy for trial.

    Raises:
        ValueError: for a layer of which no copy can be made, by name.
    """
    if not is_stock(layer) or held_layers(layer):
        copy = copied(layer)
        if layer.built:
            try:
                take_state(layer, copy)
            except _ERRORS as error:
                raise _unlike(layer, f"with all that it holds ({error})") from error


def is_stock(layer: keras.layers.Layer) -> bool:
    """Reports if a layer is of a class of Keras' own."""
    return type(layer).__module__.split(".")[0] == "keras"


def _unlike(layer, part):
    return ValueError(
        f"Expected a layer that its configuration makes again {part}. Received: {layer.name!r}, "
        f"a {type(layer).__name__}"
    )


def _check_config(layer, copy):
    """Compares what plain values two configurations hold; names of layers inside may have been numbered anew."""
    config, other = copy_arguments(layer), copy_arguments(copy)
    unlike = [name for name, value in config.items() if _is_plain(value) and other.get(name, value) != value]
    if unlike:
        raise _unlike(layer, f"with the same {', '.join(unlike)}")


def _public_values(layer):
    """The numbers and texts that are attributes of a layer; the copy knows by itself if it is built."""
    public = {name: value for name, value in vars(layer).items() if name[0] != "_" and name != "built"}
    return {name: value for name, value in public.items() if _is_plain(value) and not isinstance(value, list)}


def _is_plain(value):
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def finalize(layer: keras.layers.Layer) -> None:
    """Has normalisation layers compute what they use from their weights, as Keras does after loading alone."""
    for one in (layer, *held_layers(layer)):
        if isinstance(one, keras.layers.Normalization) and one.built:
            one.finalize_state()
