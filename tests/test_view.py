"""One view of a model in each public call: one walk, one trace, and nothing stays in memory."""

import threading

import keras
import numpy as np
import pytest
from common import random_array, to_numpy

import elrt_keras as elrt
from elrt_keras.graph import nodes, view
from elrt_keras.graph.calls import trace_calls

pytestmark = pytest.mark.tensorflow
layers = keras.layers


class Residual(layers.Layer):
    """A block that can be opened."""

    def __init__(self, **options):
        super().__init__(**options)
        self.conv = layers.Conv2D(16, 3, padding="same", name="conv")

    def build(self, shape):
        self.conv.build(shape)
        self.built = True

    def call(self, inputs):
        return inputs + self.conv(inputs)


def small():
    inputs = keras.Input((8, 8, 16))
    x = layers.SeparableConv2D(16, 3, padding="same", name="separable")(Residual(name="block")(inputs))
    return keras.Model(inputs, layers.Conv2D(24, 3, name="last")(x), name="small")


LOW = elrt.factorize(small(), {"last": ("tucker2", 8), "block/conv": ("tucker2", 8)})
CALLS = {
    "count_costs": lambda: elrt.count_costs(small()),
    "plan_ranks": lambda: elrt.plan_ranks(small(), max_macs=0.6, exclude=[]),
    "plan_ranks, energy": lambda: elrt.plan_ranks(small(), max_macs=0.6, exclude=[], method="energy"),
    "factorize": lambda: elrt.factorize(small(), {"last": ("svd", 4)}),
    "merge": lambda: elrt.merge(LOW),
    "expand": lambda: elrt.expand(LOW),
    "shrink": lambda: elrt.shrink(LOW, max_macs=0.3),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_public_call_walks_and_traces_a_model_once(name, monkeypatch):
    counts = {"views": 0, "walks": 0, "traces": 0}

    def counted(kind, function):
        def run(*args, **kwargs):
            counts[kind] += 1
            return function(*args, **kwargs)

        return run

    def replayed(graph):
        counts["walks"] += graph.name == "small"
        return nodes.replayed(graph)

    monkeypatch.setattr(view.View, "__init__", counted("views", view.View.__init__))
    monkeypatch.setattr(view, "trace_calls", counted("traces", view.trace_calls))
    monkeypatch.setattr(view, "replayed", replayed)
    CALLS[name]()
    assert counts["views"] == 1 and counts["walks"] <= 1 and counts["traces"] <= 1


def test_a_trace_leaves_no_mark_on_the_layers():
    model = small()
    before = {layer.name: set(vars(layer)) for layer in model.layers}
    elrt.count_costs(model)
    assert {layer.name: set(vars(layer)) for layer in model.layers} == before


def test_other_threads_run_the_model_while_it_is_traced():
    model, images = small(), random_array(1, 8, 8, 16)
    expected = to_numpy(model(images))
    costs, outputs, stop = elrt.count_costs(model), [], threading.Event()

    def serve():
        while not stop.is_set():
            outputs.append(to_numpy(model(images)))

    server = threading.Thread(target=serve)
    server.start()
    results = []
    tracers = [threading.Thread(target=lambda: results.append(elrt.count_costs(model))) for _ in range(4)]
    for one in tracers:
        one.start()
    for one in tracers:
        one.join()
    stop.set()
    server.join()
    assert len(results) == 4 and all(one == costs for one in results)
    assert all(np.array_equal(one, expected) for one in outputs)
    assert not any("call" in vars(layer) for layer in model.layers)


class Failing(layers.Layer):
    """Runs on 8 × 8 positions only."""

    def call(self, inputs):
        if inputs.shape[1] != 8:
            raise RuntimeError("eight rows are what I take")
        return inputs


def test_a_layer_that_cannot_run_is_named():
    class Outer(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = Failing(name="eight")

        def call(self, inputs):
            return self.inner(inputs)

    outer = Outer()
    outer(np.zeros((1, 8, 8, 4)))
    with pytest.raises(ValueError, match=r"layer 'eight', a Failing, on an input of shape \(1, 5, 8, 4\): eight rows"):
        elrt.count_costs(outer, (5, 8, 4))


@pytest.mark.thorough
def test_calls_of_a_quantised_model_are_traced():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4, name="one"), layers.Dense(2, name="two")])
    model.quantize("int8")
    assert [call.layer.name for call in trace_calls(model)] == ["one", "two"]
