"""Walking the layers of a model, nested models included."""

import functools
import inspect
import weakref
from collections.abc import Iterator

import keras

_OPENED = weakref.WeakKeyDictionary()


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


def opened(layer: keras.layers.Layer) -> keras.Model | None:
    """A custom layer made of other layers as a functional model of these, sharing them; `None` if it is no such layer.

    Its `call` is run on a symbolic input. That works where it takes one tensor and computes with layers and
    `keras.ops`, as the blocks of keras-hub's models do, the same ones while training. Other layers stay closed, as do
    those that penalise their outputs and those that the model calls with further arguments.
    """
    if isinstance(layer, keras.Model) or type(layer).__module__.split(".")[0] == "keras" or not layer.built:
        return None
    if layer not in _OPENED:
        _OPENED[layer] = _opened(layer) if _holds_layers(layer) else None
    return _OPENED[layer] if _is_called_with_one_tensor(layer) else None


def _is_called_with_one_tensor(layer):
    calls = [node.arguments for node in layer._inbound_nodes]
    return all(len(call.args) == 1 and set(call.kwargs) <= {"training", "mask"} for call in calls)


def _holds_layers(layer):
    return any(isinstance(value, keras.layers.Layer) for value in keras.tree.flatten(list(vars(layer).values())))


def _opened(layer):
    shape = (layer.get_build_config() or {}).get("input_shape")
    if not isinstance(shape, (tuple, list)) or not all(size is None or isinstance(size, int) for size in shape):
        return None
    if layer.activity_regularizer is not None:
        return None
    inputs = keras.Input(batch_shape=shape, name="input")
    modes = [{"training": True}, {"training": False}] if "training" in inspect.signature(layer.call).parameters else []
    try:
        model, *in_modes = [keras.Model(inputs, layer.call(inputs, **mode), name=layer.name) for mode in ({}, *modes)]
    except Exception:  # whatever a foreign `call` does with a tensor that has no values
        return None
    if any(_steps(other) != _steps(model) for other in in_modes):
        return None
    # What the graph lacks (weights of the layer itself) would be lost.
    return model if len(model.weights) == len(layer.weights) else None


def _steps(model):
    """What a model computes: its layers, and the kinds of its operations."""
    return [id(one) if isinstance(one, keras.layers.Layer) else type(one) for one in model.operations[1:]]


def is_container(layer: keras.layers.Layer) -> bool:
    """Whether a layer is a Functional or Sequential model, which can be rebuilt with other layers."""
    return isinstance(layer, (keras.Sequential, functional_class()))


@functools.cache
def functional_class() -> type[keras.Model]:
    """The class of a functional model. Keras exports no name for it; `keras.Model(inputs, outputs)` returns it."""
    inputs = keras.Input((1,), name="probe")
    return type(keras.Model(inputs, keras.layers.Identity(name="probe_identity")(inputs), name="probe"))
