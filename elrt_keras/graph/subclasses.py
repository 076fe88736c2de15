"""Copies of models that keep everything a user or a library added to a graph: class, attributes and weights."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import keras

from elrt_keras.graph.paths import functional_class, own_weights

# Errors that a custom `get_config` may raise.
_ERRORS = (AttributeError, LookupError, NotImplementedError, TypeError, ValueError)


def graph_class(model: keras.Model) -> type[keras.Model]:
    """Returns the class that Keras has for a model's graph: Functional or Sequential."""
    return keras.Sequential if isinstance(model, keras.Sequential) else functional_class()


def is_plain(model: keras.Model) -> bool:
    """Reports if a model is only its graph: of Keras' own class, not compiled, and without added attributes."""
    return type(model) is graph_class(model) and not (model.compiled or _attributes(model) or own_weights(model))


def extra_tensors(model: keras.Model) -> list[Any]:
    """Lists the symbolic tensors that attributes of a model hold, such as `pyramid_outputs` of keras-hub."""
    found = []
    _mapped(_attributes(model), lambda value: found.append(value) if isinstance(value, keras.KerasTensor) else None)
    return found


def dressed(
    model: keras.Model,
    arguments: Iterable[Any],
    tensors: dict[int, Any],
    layer_for: Callable[[keras.layers.Layer], keras.layers.Layer],
) -> keras.Model:
    """Makes a model of another graph that has the original's class, name, attributes and added weights.

    Args:
        model: the original.
        arguments: arguments of Keras' own class: inputs and outputs, or a list of layers.
        tensors: `{id of a tensor that an attribute holds: the tensor for the copy}`.
        layer_for: function of a layer that an attribute holds; returns the layer for the copy.

    Raises:
        ValueError: for an attribute that holds a weight of a layer, because the copy would share it.
    """
    base = graph_class(model)
    kind = original_class(model)
    kind = kind if _is_made_by_keras(kind, base) else _remembering(kind)
    copy: Any = base.__new__(kind)  # pyright: ignore[reportCallIssue]
    base.__init__(copy, *arguments, name=model.name)
    copy.dtype_policy = model.dtype_policy
    weights = {id(weight): _twin_weight(copy, weight) for weight in own_weights(model)}

    def counterpart(value):
        if isinstance(value, keras.KerasTensor):
            return tensors[id(value)]
        if isinstance(value, keras.Variable):
            if id(value) not in weights:
                raise ValueError(
                    f"Expected attributes that hold layers, not the weights of layers. Received: {model.name!r} with "
                    f"an attribute that holds '{value.path}'"
                )
            return weights[id(value)]
        if isinstance(value, keras.layers.Layer):
            return layer_for(value)
        if isinstance(value, (keras.Metric, keras.random.SeedGenerator)):
            return type(value).from_config(value.get_config())
        return value

    for name, value in _attributes(model).items():
        setattr(copy, name, _mapped(value, counterpart))
    return copy


def original_class(model: keras.Model) -> type[keras.Model]:
    """Returns the class that a user wrote, also for a copy of class `Rebuilt`."""
    return type(model).remembered if isinstance(model, Rebuilt) else type(model)


def has_own_config(model: keras.Model) -> bool:
    """Reports if Keras loads a model from a configuration of its class, not from its graph."""
    return not _is_made_by_keras(original_class(model), graph_class(model))


def _twin_weight(copy, weight):
    twin = copy.add_weight(
        name=weight.name,
        shape=weight.shape,
        dtype=weight.dtype,
        initializer="zeros",
        trainable=weight.trainable,
        regularizer=weight.regularizer,
        constraint=weight.constraint,
    )
    # Through NumPy: on JAX both would share one buffer, which a training step reuses.
    twin.assign(keras.ops.convert_to_numpy(weight))
    return twin


def _attributes(model):
    """`{name: value}` of the attributes that code outside Keras set on a model."""
    return {name: value for name, value in _all_attributes(model).items() if name not in _names_of_keras()}


def _all_attributes(model):
    # On PyTorch `vars` does not hold the layers that are attributes.
    children = dict(model.named_children()) if hasattr(model, "named_children") else {}
    return {**vars(model), **children}


@functools.cache
def _names_of_keras():
    """Names of the attributes that Keras itself sets on models."""
    inputs = keras.Input((1,), name="probe")
    models = [
        keras.Model(inputs, keras.layers.Identity(name="probe_identity")(inputs), name="probe"),
        keras.Sequential([inputs, keras.layers.Identity(name="probe_identity")], name="probe"),
    ]
    for model in models:
        model.compile("sgd", "mse")
    return {name for model in models for name in _all_attributes(model)} | {"history", "call", "recipe"}


def _mapped(value, function):
    """Applies a function to a value, or to all entries of its lists, tuples, sets and dicts."""
    if isinstance(value, dict):
        return {key: _mapped(one, function) for key, one in value.items()}
    if isinstance(value, (list, set)):
        return (list if isinstance(value, list) else set)(_mapped(one, function) for one in value)
    if isinstance(value, tuple):
        parts = [_mapped(one, function) for one in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return function(value)


def _is_made_by_keras(kind, base):
    """Reports if Keras loads a model of this class from its graph, as it does for its own classes."""
    if kind is base:
        return True
    above = kind.__mro__[: kind.__mro__.index(base)]
    if any(name in vars(one) for one in above for name in ("get_config", "from_config")):
        return False
    spec = inspect.getfullargspec(kind.__init__)
    return spec.args == inspect.getfullargspec(base.__init__).args or bool(spec.varargs and spec.varkw)


class Recipe:
    """The steps that make a rebuilt model again: first the original from its configuration, then each replacement.

    Attributes:
        original: the serialized original, or the error of serializing it.
        steps: list of `{number of a layer in the walk: (serialized layer, [layers in its place])}`, one dict per
            conversion. Names are not usable as keys, because names that Keras generates differ each time.
    """

    def __init__(self, model: keras.Model, replaced: dict[int, tuple[Any, list[Any]]]) -> None:
        known = model.recipe if isinstance(model, Rebuilt) else None
        if known is None:
            self.original, self.steps = _serialized_or_error(model), [_with_old_serialized(replaced)]
            return
        self.original = known.original
        *before, last = known.serialized_steps()
        if all(len(chain) == 1 for _, chain in last.values()):
            replaced = last | {number: (last.get(number, new)[0], new[1]) for number, new in replaced.items()}
            self.steps = [*before, _with_old_serialized(replaced)]
        else:
            self.steps = [*before, last, _with_old_serialized(replaced)]

    def serialized_steps(self) -> list[dict[int, Any]]:
        """Returns the steps with all layers serialized."""
        return [
            {number: [old, [_serialized(one) for one in chain]] for number, (old, chain) in step.items()}
            for step in self.steps
        ]

    def is_original(self) -> bool:
        """Reports if all layers equal those of the original again."""
        pairs = [pair for step in self.steps for pair in step.values()]
        return all([_serialized_or_error(one) for one in chain] == [old] for old, chain in pairs)


def _with_old_serialized(step):
    """Replaces the old layers of a step by their configurations, so that it does not hold the original's weights."""
    configs = {number: _serialized_or_error(old) for number, (old, _) in step.items()}
    return {
        number: (None if isinstance(configs[number], Exception) else configs[number], chain)
        for number, (_, chain) in step.items()
    }


def _serialized(layer):
    if not isinstance(layer, keras.layers.Layer):
        return layer  # serialized before
    config = keras.saving.serialize_keras_object(layer)
    return {name: value for name, value in config.items() if name not in ("build_config", "compile_config")}


def _serialized_or_error(layer):
    try:
        return _serialized(layer)
    except _ERRORS as error:
        return error


@keras.saving.register_keras_serializable("elrt_keras")
class Rebuilt:
    """Mixin of rebuilt models that Keras cannot load from their graph. They are saved as their `Recipe`."""

    recipe: Recipe
    remembered: type[keras.Model]
    name: str

    def get_config(self) -> dict[str, Any]:
        """Returns the recipe as plain Python.

        Raises:
            NotImplementedError: if the original model cannot be saved either.
        """
        if isinstance(self.recipe.original, Exception):
            raise NotImplementedError(str(self.recipe.original))
        return {"name": self.name, "original": self.recipe.original, "steps": self.recipe.serialized_steps()}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> keras.Model:
        """Makes the original from its own configuration and replaces its layers, step by step."""
        from elrt_keras.graph.rebuild import replace_layers

        model = keras.saving.deserialize_keras_object(config["original"], custom_objects)
        for step in config["steps"]:
            chains = {
                int(number): [keras.saving.deserialize_keras_object(one, custom_objects) for one in chain]
                for number, (_, chain) in step.items()
            }
            model = replace_layers(model, chains)
        model.name = config["name"]
        return model


@functools.cache
def _remembering(kind):
    """Makes the subclass of a class whose instances are saved as recipes."""
    attributes = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "remembered": kind}
    subclass = type(kind.__name__, (Rebuilt, kind), attributes)
    return keras.saving.register_keras_serializable("elrt_keras", "Rebuilt")(subclass)
