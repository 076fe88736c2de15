"""Replay of the calls in a model's graph, on new tensors."""

import typing
from typing import Any

import keras

from elrt_keras.graph.private import held_layers


class GraphCall(typing.NamedTuple):
    """One call of a layer or an operation in a graph, with symbolic tensors among its arguments."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any


class Graph(typing.NamedTuple):
    """A replayed graph: input tensors, calls in order and output tensors. Each tensor is a separate object."""

    inputs: list[Any]
    calls: list[GraphCall]
    outputs: list[Any]


def replayed(model: keras.Model) -> Graph:
    """Replays the graph of a Functional or Sequential model: calls its layers once more on symbolic tensors."""
    calls = []

    def record(operation, *args, **kwargs):
        calls.append(GraphCall(operation, args, kwargs, operation(*args, **kwargs)))
        return calls[-1].outputs

    inputs = copied_inputs(model)
    if isinstance(model, keras.Sequential):
        outputs = inputs
        for layer in model.layers:
            outputs = record(layer, outputs)
    else:
        # A plain model of the same graph: no constructor of a subclass runs, and nothing is compiled.
        plain = keras.Model(model.input, model.output, name=model.name)
        outputs = keras.models.clone_model(
            plain, inputs, clone_function=lambda layer: layer, call_function=record
        ).outputs
    return Graph(keras.tree.flatten(inputs), calls, keras.tree.flatten(outputs))


def copied_inputs(model: keras.Model) -> Any:
    """Makes new inputs like those of a model, in the same structure."""
    layers = {id(layer.output): layer for layer in held_layers(model) if isinstance(layer, keras.layers.InputLayer)}
    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.map_structure(lambda tensor: _copied_input(tensor, layers[id(tensor)]), structure)


def _copied_input(tensor, layer):
    """Makes an input with the names of its layer and of its tensor. They differ if the user gave no name."""
    tensor = keras.KerasTensor(tensor.shape, tensor.dtype, sparse=layer.sparse, ragged=layer.ragged, name=tensor.name)
    options = {"ragged": layer.ragged, "optional": layer.optional, "name": layer.name}
    keras.layers.InputLayer(input_tensor=tensor, **options)
    return tensor
