"""Copies of single layers: made from their configurations, then given the state that these do not hold."""

import keras

from elrt_keras.graph.configs import copy_arguments
from elrt_keras.graph.private import held_layers

# Layers without weights whose configuration is incomplete: it lacks a function that Keras cannot load, or a table.
_REUSED = (
    keras.layers.Lambda,
    keras.layers.Discretization,
    keras.layers.IntegerLookup,
    keras.layers.StringLookup,
    keras.layers.TextVectorization,
)
# Errors that constructors, `get_config` and `build` of custom layers raise if a configuration does not fit.
_ERRORS = (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)


def copied(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Makes a layer of the same class, configuration and name, not built yet.

    Raises:
        ValueError: for a layer that cannot be made from its configuration; the message names the layer.
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
    copy.name = layer.name  # the configuration of a custom layer may lack it
    return copy


def take_state(layer: keras.layers.Layer, copy: keras.layers.Layer) -> None:
    """Copies the original's state to a copy: weights, numbers and texts set later, and frozen flags.

    Raises:
        ValueError: if the copy holds other layers or variables than the original, or has another configuration.
    """
    if copy is layer:
        return
    if len(copy.weights) < len(layer.weights):  # not built, because a `TimeDistributed` runs it
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
    """Checks that a layer can be copied, by making a copy.

    Raises:
        ValueError: for a layer that cannot be copied; the message names the layer.
    """
    if not is_stock(layer) or held_layers(layer):
        copy = copied(layer)
        if layer.built:
            try:
                take_state(layer, copy)
            except _ERRORS as error:
                raise _unlike(layer, f"with all that it holds ({error})") from error


def is_stock(layer: keras.layers.Layer) -> bool:
    """Reports if the class of a layer is one of Keras."""
    return type(layer).__module__.split(".")[0] == "keras"


def _unlike(layer, part):
    return ValueError(
        f"Expected a layer that its configuration makes again {part}. Received: {layer.name!r}, "
        f"a {type(layer).__name__}"
    )


def _check_config(layer, copy):
    """Compares the plain values of two configurations. Names of inner layers may have new numbers and do not count."""
    config, other = copy_arguments(layer), copy_arguments(copy)
    unlike = [name for name, value in config.items() if _is_plain(value) and other.get(name, value) != value]
    if unlike:
        raise _unlike(layer, f"with the same {', '.join(unlike)}")


def _public_values(layer):
    """The public attributes of a layer that are numbers or texts, except `built`, which the copy sets itself."""
    public = {name: value for name, value in vars(layer).items() if name[0] != "_" and name != "built"}
    return {name: value for name, value in public.items() if _is_plain(value) and not isinstance(value, list)}


def _is_plain(value):
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def finalize(layer: keras.layers.Layer) -> None:
    """Makes normalisation layers compute their constants from their weights. Keras does so only after loading."""
    for one in (layer, *held_layers(layer)):
        if isinstance(one, keras.layers.Normalization) and one.built:
            one.finalize_state()
