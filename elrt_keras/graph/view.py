"""View of a model for one public call: layers by path, opened blocks, calls in graphs, traced calls."""

import functools
from collections.abc import Iterator

import keras

from elrt_keras.graph.blocks import Opening, is_openable, open_layer
from elrt_keras.graph.calls import Call, InputShape, trace_calls
from elrt_keras.graph.nodes import GraphCall, replayed
from elrt_keras.graph.paths import is_container, step_layer
from elrt_keras.graph.private import mask_of
from elrt_keras.graph.separable import is_separable


class View:
    """A model in its present state. Each public call makes its own view, so nothing is kept between calls.

    Args:
        model: a built model.
        input_shape: shape of one example or `{input name: shape}`, for a model that leaves sizes open.
    """

    def __init__(self, model: keras.Model, input_shape: InputShape | None = None) -> None:
        self.model, self.input_shape = model, input_shape
        self._openings: dict[int, Opening] = {}
        self._graph_calls: dict[int, list[GraphCall]] = {}
        self._noted: set[int] = set()

    @functools.cached_property
    def layers(self) -> list[tuple[str, keras.layers.Layer]]:
        """`(path, layer)` of all layers that `rebuild` can replace.

        Like `iterate_layers`, with three differences. A nested subclassed model counts as a layer. A custom layer that
        can be opened is replaced by its inner layers. A `TimeDistributed` is replaced by the layer that it runs.
        """
        return list(self.walk(self.model))

    @functools.cached_property
    def calls(self) -> list[Call]:
        """Calls of all layers that compute something, for one example; see `trace_calls`."""
        return trace_calls(self.model, self.input_shape)

    def walk(self, graph: keras.Model, prefix: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
        """Yields `(path, layer)` as in `layers`, for a graph of the model or a graph made of its layers."""
        for layer in graph.layers:
            yield from self._at(f"{prefix}{layer.name}", layer)

    def _at(self, path, layer, masked=False):
        step = step_layer(layer)
        if step is not None:
            yield from self._at(f"{path}/{step.name}", step, masked or self._takes_masks(layer))
            return
        inner = layer if is_container(layer) else self.opening(layer).graph
        # A `TimeDistributed` passes masks to models only. A custom layer that became a model would suddenly get masks.
        if inner is None or (masked and inner is not layer and not is_separable(layer)):
            yield path, layer
        else:
            yield from self.walk(inner, f"{path}/")

    def opening(self, layer: keras.layers.Layer) -> Opening:
        """Returns the opened layer, or the reason why it is closed; see `open_layer`."""
        if id(layer) not in self._openings:
            self._openings[id(layer)] = opening = self._opened(layer)
            if opening.graph is not None:
                self._note(opening.graph)
        return self._openings[id(layer)]

    def _opened(self, layer):
        return open_layer(layer, self.graph_calls(layer)) if is_openable(layer) else Opening()

    def graph_calls(self, layer: keras.layers.Layer) -> list[GraphCall]:
        """Lists the calls of a layer in the graphs of the model, of nested models and of blocks opened so far."""
        self._note(self.model)
        return self._graph_calls.get(id(layer), [])

    def _note(self, graph):
        """Records the calls of a graph and of its nested models, each once."""
        if id(graph) in self._noted or not is_container(graph):
            return
        self._noted.add(id(graph))
        for call in replayed(graph).calls:
            self._graph_calls.setdefault(id(call.operation), []).append(call)
            inner = call.operation
            while isinstance(inner, keras.layers.Layer) and step_layer(inner) is not None:
                inner = step_layer(inner)
            self._note(inner)

    def _takes_masks(self, layer):
        return any(
            call.kwargs.get("mask") is not None or any(mask_of(tensor) is not None for tensor in call.args)
            for call in self.graph_calls(layer)
        )
