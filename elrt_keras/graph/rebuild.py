"""Copying a model with some of its layers replaced."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import keras

from elrt_keras.graph.configs import copy_arguments
from elrt_keras.graph.blocks import opened
from elrt_keras.graph.paths import held_layers, is_container, iterate_replaceable, step_layer

# Layers without weights whose configuration lacks a part: a function that Keras could not load again, an adapted table.
_REUSED = (
    keras.layers.Lambda,
    keras.layers.Discretization,
    keras.layers.IntegerLookup,
    keras.layers.StringLookup,
    keras.layers.TextVectorization,
)


def check_convertible(model: keras.Model) -> None:
    """Refuses what cannot be rebuilt.

    Raises:
        ValueError: for a model that is neither Functional nor Sequential, or has no weights yet.
    """
    if not is_container(model):
        raise ValueError(f"Expected a Functional or Sequential Keras model. Received: a {type(model).__name__}")
    if not model.built:
        raise ValueError(f"Expected a built model. Received: model={model.name!r}, which has no weights yet")


def rebuild(
    model: keras.Model,
    is_replaced: Callable[[keras.layers.Layer], bool],
    replacement: Callable[[Any], list[tuple[keras.layers.Layer, Any]]],
    track: Callable[..., Any] = iter,
) -> keras.Model:
    """A copy of a model with its own weights, in which some layers are replaced.

    Names, shared layers (also between a model and one nested in it) and nested models stay; the copy is not compiled.
    What a `TimeDistributed` runs is replaced in it, several layers as a model of theirs. A custom layer becomes a
    nested functional model of its name if a layer in it is replaced, and is copied otherwise.

    Args:
        model: a built Functional or Sequential model.
        is_replaced: function of a layer: whether others take its place.
        replacement: function of such a layer that returns a list of `(new layer, weights)`, the layers that take its
            place, applied one after another. Weights are a list of arrays, or a function of the built new layer that
            sets them.
        track: wraps the list of new layers whose weights are set, to show progress.
    """
    copies = {}  # id of a layer → the layers in its place
    values = []

    def layers_for(layer):
        if id(layer) not in copies:
            copies[id(layer)] = new_layers(layer)
        return copies[id(layer)]

    def new_layers(layer):
        if not isinstance(layer, keras.layers.Layer):
            return [layer]  # an operation such as x + y: no state, so the copy can use it too
        if is_container(layer):
            return [copied_graph(layer, layer)]
        step = step_layer(layer)
        if step is not None:
            return [_time_distributed(layer, layers_for(step))]
        if not is_replaced(layer):
            inner = opened(layer)
            if inner is not None and any(is_replaced(one) for _, one in iterate_replaceable(inner)):
                return [copied_graph(inner, layer)]
        new = replacement(layer) if is_replaced(layer) else [(_copied(layer), functools.partial(_take_weights, layer))]
        values.extend(new)
        return [one for one, _ in new]

    def copied_graph(graph, original):
        copy = _copied_graph(graph, layers_for)
        copy._trainable = original.trainable  # its own flag alone; by the property all its layers would get it
        return copy

    copy = copied_graph(model, model)
    for new, value in track(values):
        value(new) if callable(value) else new.set_weights(value)
        _finalize(new)
    return copy


def _finalize(layer):
    """Has normalisation layers compute what they use from their weights, as Keras does after loading alone."""
    for one in (layer, *held_layers(layer)):
        if isinstance(one, keras.layers.Normalization) and one.built:
            one.finalize_state()


def _take_weights(layer, copy):
    if len(copy.weights) < len(layer.weights):  # where a `TimeDistributed` runs it, it is not called by itself
        copy.build_from_config(layer.get_build_config())
    copy.set_weights(layer.get_weights())
    _take_state(layer, copy)


def _take_state(layer, copy):
    """Gives a copy what the original's configuration does not say: numbers and texts set since, and what is frozen.

    Raises:
        ValueError: for a copy that holds other layers or variables than its original.
    """
    layers, copies = ([one, *held_layers(one)] for one in (layer, copy))
    if list(map(type, layers)) != list(map(type, copies)) or len(layer.variables) != len(copy.variables):
        raise ValueError(
            f"Expected a layer that its configuration makes again with all it holds. Received: {layer.name!r}, "
            f"a {type(layer).__name__}"
        )
    for original, twin in zip(layers, copies):  # from the outside in: a layer passes its flag on
        for name, value in vars(original).items():
            if name[0] != "_" and _is_plain(value) and vars(twin).get(name, value) != value:
                setattr(twin, name, value)
        twin.trainable = original.trainable
    for original, twin in zip(layer.variables, copy.variables):
        if twin.trainable != original.trainable:
            twin.trainable = original.trainable


def _is_plain(value):
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _copied(layer):
    if isinstance(layer, _REUSED):
        return layer
    copy = type(layer).from_config(copy_arguments(layer))
    copy.name = layer.name  # which a custom layer's configuration may lack
    return copy


def _time_distributed(layer, chain):
    """A `TimeDistributed` like another, that runs a chain of layers at every step."""
    step = chain[0]
    if len(chain) > 1:
        step = keras.Sequential(chain, name=layer.layer.name)
        step.dtype_policy = layer.layer.dtype_policy
    return type(layer)(
        step,
        name=layer.name,
        trainable=layer.trainable,
        dtype=layer.dtype_policy,
        activity_regularizer=layer.activity_regularizer,
    )


def _copied_graph(model, layers_for):
    with _uncompiled(model):
        if isinstance(model, keras.Sequential):
            return _copied_sequential(model, layers_for)
        in_place = {}  # id of the last new layer of a chain → the whole chain

        def clone(layer):
            chain = layers_for(layer)
            in_place[id(chain[-1])] = chain
            return chain[-1]

        def call(layer, *args, **kwargs):
            *before, last = in_place.get(id(layer), [layer])
            if before and not args:  # called by the name of its argument
                args = (kwargs.pop(next(iter(kwargs))),)
            for earlier in before:
                args = (earlier(*args),)
            return last(*args, **kwargs)

        inputs = keras.tree.map_structure(_copied_input, model.input)
        return keras.models.clone_model(model, inputs, clone_function=clone, call_function=call)


def _copied_input(tensor):
    """An input like another, by the names of its layer and its tensor, which differ where the user gave none."""
    layer = tensor._keras_history.operation
    tensor = keras.KerasTensor(tensor.shape, tensor.dtype, sparse=layer.sparse, ragged=layer.ragged, name=tensor.name)
    options = {"ragged": layer.ragged, "optional": layer.optional, "name": layer.name}
    keras.layers.InputLayer(input_tensor=tensor, **options)
    return tensor


def _copied_sequential(model, layers_for):
    chains = [layers_for(layer) for layer in model.layers]
    # A subclass with another way to train, say, is made anew where its constructor is known.
    kind = type(model) if type(model).__init__ is keras.Sequential.__init__ else keras.Sequential
    if kind is keras.Sequential and all(len(chain) == 1 for chain in chains):
        twins = {id(layer): chain[0] for layer, chain in zip(model.layers, chains)}
        return keras.models.clone_model(model, clone_function=lambda layer: twins[id(layer)])
    layers = [layer for chain in chains for layer in chain]
    return kind([_copied_input(model.inputs[0]), *layers], name=model.name)


@contextlib.contextmanager
def _uncompiled(model):
    """Keeps `clone_model` from compiling the copy, with a copy of an optimizer that fits other weights."""
    compiled, model.compiled = model.compiled, False
    try:
        yield
    finally:
        model.compiled = compiled
