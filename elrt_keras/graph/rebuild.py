"""Copies of a model in which some layers are replaced."""

import functools
from collections.abc import Callable
from typing import Any

import keras

from elrt_keras.graph.copies import copied, finalize, take_state
from elrt_keras.graph.nodes import copied_inputs
from elrt_keras.graph.paths import (
    check_keras_model,
    functional_class,
    is_container,
    is_of_tf_keras,
    own_weights,
    step_layer,
)
from elrt_keras.graph.private import held_layers
from elrt_keras.graph.subclasses import (
    Rebuilt,
    Recipe,
    dressed,
    extra_tensors,
    has_own_config,
    is_plain,
    original_class,
)
from elrt_keras.graph.view import View


def check_convertible(model: keras.Model) -> None:
    """Checks that a model can be rebuilt.

    Raises:
        ValueError: if the model is neither Functional nor Sequential, has its own `call`, or has no weights yet.
    """
    if isinstance(model, (keras.Sequential, functional_class())) and not is_container(model):
        raise ValueError(
            f"Expected a model whose `call` is Keras' own. Received: {model.name!r}, a {type(model).__name__}"
        )
    if is_of_tf_keras(model):
        check_keras_model(model)
    if not is_container(model):
        raise ValueError(f"Expected a Functional or Sequential Keras model. Received: a {type(model).__name__}")
    if not model.built:
        raise ValueError(f"Expected a built model. Received: model={model.name!r}, which has no weights yet")


def rebuild(
    view: View,
    is_replaced: Callable[[keras.layers.Layer], bool],
    replacement: Callable[[Any], list[tuple[keras.layers.Layer, Any]]],
    track: Callable[..., Any] = iter,
) -> keras.Model:
    """Copies a model and replaces some of its layers. The copy has its own weights.

    The copy keeps names, nested models and shared layers (also layers shared with a nested model), and the classes and
    attributes of models. It is not compiled. The layer that a `TimeDistributed` runs is replaced inside it; several new
    layers become one model there. A custom layer becomes a nested functional model of the same name if one of its
    layers is replaced; otherwise it is copied.

    Args:
        view: view of a built Functional or Sequential model.
        is_replaced: function of a layer that returns whether other layers take its place.
        replacement: function of a replaced layer that returns a list of `(new layer, weights)`. The new layers are
            applied one after another. Weights are a list of arrays, or a function that sets them in the built new
            layer.
        track: wraps the list of new layers whose weights are set, to show progress.

    Raises:
        ValueError: for a layer, or an attribute of a subclass, that cannot be copied; the message names it.
    """
    return _Rebuilding(view, is_replaced, replacement).run(track)


def replace_layers(model: keras.Model, chains: dict[int, list[keras.layers.Layer]]) -> keras.Model:
    """Rebuilds a model: new layers, which keep their weights, replace the layers with these numbers in its walk."""
    view, new = View(model), {}
    for number, chain in chains.items():
        _, layer = view.layers[number]
        last = chain[-1].name
        for one in chain:  # names that Keras generates differ each time
            one.name = layer.name + one.name.removeprefix(last)
        new[id(layer)] = [(one, lambda built: None) for one in chain]
    return rebuild(view, lambda layer: id(layer) in new, lambda layer: new[id(layer)])


class _Rebuilding:
    """One run of `rebuild`: the copies so far, and the weights and flags that they get at the end."""

    def __init__(self, view, is_replaced, replacement):
        self.view, self.is_replaced, self.replacement = view, is_replaced, replacement
        self.copies = {}  # id of a layer → the layers in its place
        self.chains = {}  # id of a layer that an attribute holds → the layers in its place as one model
        self.values = []  # (new layer, its weights)
        self.containers = []  # (original, graph, copy), inner ones first
        self.flags = []  # (layer that a copy shares with its original, whether it trains)

    def run(self, track):
        copy = self.layers_for(self.view.model)[0]
        self.flags += [(new, new.trainable) for new, _ in self.values]
        # A container passes its flag on to all layers in it. These get their own flags afterwards.
        outer_first = [(new, original.trainable) for original, _, new in reversed(self.containers)]
        for layer, trainable in [*outer_first, *self.flags]:
            layer.trainable = trainable
        for original, _, new in self.containers:
            for one, twin in zip(own_weights(original), own_weights(new)):
                twin.trainable = one.trainable
        for new, value in track(self.values):
            value(new) if callable(value) else new.set_weights(value)
            finalize(new)
        for original, graph, new in self.containers:
            if isinstance(new, Rebuilt):
                self.remember(original, graph, new)
        return copy

    def remember(self, original, graph, copy):
        """Stores in a copy which of its layers were replaced. A copy that equals its original stores nothing."""
        replaced = {}
        for number, (_, layer) in enumerate(self.view.walk(graph)):
            if self.is_replaced(layer) and all(layer is not old for old, _ in replaced.values()):
                replaced[number] = layer, self.copies[id(layer)]
        copy.recipe = Recipe(original, replaced)
        if copy.recipe.is_original():
            copy.__class__ = original_class(copy)

    def layers_for(self, layer):
        if id(layer) not in self.copies:
            self.copies[id(layer)] = self.new_layers(layer)
        return self.copies[id(layer)]

    def new_layers(self, layer):
        if not isinstance(layer, keras.layers.Layer):
            return [layer]  # an operation such as x + y has no state, so the copy can use it too
        if is_container(layer):
            return [self.container(layer, layer)]
        step = step_layer(layer)
        if step is not None:
            return [self.time_distributed(layer, self.layers_for(step))]
        if self.is_replaced(layer):
            new = self.replacement(layer)
        else:
            inner = self.view.opening(layer).graph
            if inner is not None and any(self.is_replaced(one) for _, one in self.view.walk(inner)):
                return [self.container(inner, layer)]
            new = [(self.copied(layer), lambda copy: take_state(layer, copy))]
        self.values.extend(new)
        return [one for one, _ in new]

    def copied(self, layer):
        """Copies a layer. If it cannot be copied by itself, its twin in a new model of the same class is taken."""
        try:
            return copied(layer)
        except ValueError:
            if id(layer) not in self.twins:
                raise
            return self.twins[id(layer)]

    @functools.cached_property
    def twins(self):
        """`{id of a layer: its twin}`: models with their own configuration are made again for their layers."""
        twins = {}
        for model in (self.view.model, *held_layers(self.view.model)):
            if isinstance(model, keras.Model) and id(model) not in twins and has_own_config(model):
                again = copied(model)
                pairs = [(one, other) for one, other in zip(held_layers(model), held_layers(again))]
                if all(type(one) is type(other) for one, other in pairs):
                    twins |= {id(one): other for one, other in pairs}
        return twins

    def container(self, graph, original):
        copy = self.sequential(graph) if isinstance(graph, keras.Sequential) else self.functional(graph)
        self.containers.append((original, graph, copy))
        return copy

    def sequential(self, model):
        layers = [one for layer in model.layers for one in self.layers_for(layer)]
        return dressed(model, [[copied_inputs(model), *layers]], {}, self.attribute)

    def functional(self, model):
        extra = extra_tensors(model)
        in_place = {}  # id of the last new layer of a chain → the whole chain

        def clone(layer):
            chain = self.layers_for(layer)
            in_place[id(chain[-1])] = chain
            return chain[-1]

        def call(layer, *args, **kwargs):
            _check_values(layer, args, kwargs)
            *before, last = in_place.get(id(layer), [layer])
            if before and not args:  # the input was passed as a keyword argument
                args = (kwargs.pop(next(iter(kwargs))),)
            for earlier in before:
                args = (earlier(*args),)
            return last(*args, **kwargs)

        inputs = copied_inputs(model)
        source = model if is_plain(model) else _with_outputs(model, extra)
        copy = keras.models.clone_model(source, inputs, clone_function=clone, call_function=call)
        if source is model:
            copy.dtype_policy = model.dtype_policy
            return copy
        outputs, tensors = copy.output
        return dressed(model, [inputs, outputs], dict(zip(map(id, extra), tensors)), self.attribute)

    def attribute(self, layer):
        """Returns the layer for an attribute of a copy: the new layer, or the same one if it has no state.

        A chain of new layers becomes one model.
        """
        if id(layer) in self.copies or layer.variables or is_container(layer):
            chain = self.layers_for(layer)
            if len(chain) > 1 and id(layer) not in self.chains:
                first = keras.Input(batch_shape=chain[0].input.shape, dtype=chain[0].input.dtype)
                self.chains[id(layer)] = keras.Sequential([first, *chain], name=layer.name)
            return self.chains.get(id(layer), chain[-1])
        self.flags += [(one, one.trainable) for one in (layer, *held_layers(layer))]
        return layer

    def time_distributed(self, layer, chain):
        """Makes a `TimeDistributed` like `layer` that runs a chain of layers at every step."""
        step = chain[0]
        if len(chain) > 1:
            step = keras.Sequential(chain, name=layer.layer.name)
            step.dtype_policy = layer.layer.dtype_policy
        options = {"name": layer.name, "dtype": layer.dtype_policy, "activity_regularizer": layer.activity_regularizer}
        copy = type(layer)(step, **options)
        self.containers.append((layer, None, copy))
        return copy


def _with_outputs(model, extra):
    """Makes a plain model of the same graph, with further tensors of the graph as outputs."""
    try:
        return keras.Model(model.input, [model.output, extra], name=model.name)
    except ValueError as error:
        raise ValueError(
            f"Expected attributes that hold tensors of the model's own graph. Received: model={model.name!r}: {error}"
        ) from error


def _check_values(operation, args, kwargs):
    """Refuses operations that read weights directly: the copy would read those of the original."""
    for value in keras.tree.flatten((args, kwargs)):
        if isinstance(value, keras.Variable):
            raise ValueError(
                "Expected operations on tensors, or a layer that holds the weight. "
                f"Received: {operation.name!r}, which reads '{value.path}'"
            )
