"""Copies of models that keep the class, the attributes and the weights that a user or a library added to a graph."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import keras

from elrt_keras.graph.paths import functional_class, own_weights

# What get_config of other people may raise.
_ERRORS = (AttributeError, LookupError, NotImplementedError, TypeError, ValueError)


def graph_class(model: keras.Model) -> type[keras.Model]:
    """Returns Keras' own class of a model's graph: Functional or Sequential."""
    return keras.Sequential if isinstance(model, keras.Sequential) else functional_class()


def is_plain(model: keras.Model) -> bool:
    """Reports if a model is no more than its graph: of Keras' own class, not compiled, and nobody added to it."""
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
    """Makes a model of the same class and name of another graph, with all that the class and its user added.

    Args:
        model: the original.
        arguments: what Keras' own class is made of: inputs and outputs, or a list of layers.
        tensors: `{id of a tensor that an attribute holds: the tensor in its place}`.
        layer_for: function of a layer that an attribute holds: the layer in its place.

    Raises:
        ValueError: for an attribute that holds a weight of a layer, which the copy would share.
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
    """Returns the class that a user wrote, also of a copy that remembers how it was made."""
    return type(model).remembered if isinstance(model, Rebuilt) else type(model)


def has_own_config(model: keras.Model) -> bool:
    """Reports if a model of a class is not made from its graph, but from a configuration of the class."""
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
    twin.assign(keras.ops.convert_to_numpy(weight))  # on JAX the two would share one buffer, which training gives away
    return twin


def _attributes(model):
    """`{name: value}` of what was set on a model by other code than Keras'; PyTorch keeps layers apart."""
    return {name: value for name, value in _all_attributes(model).items() if name not in _names_of_keras()}


def _all_attributes(model):
    children = dict(model.named_children()) if hasattr(model, "named_children") else {}
    return {**vars(model), **children}


@functools.cache
def _names_of_keras():
    """The attributes of models that nobody added to."""
    inputs = keras.Input((1,), name="probe")
    models = [
        keras.Model(inputs, keras.layers.Identity(name="probe_identity")(inputs), name="probe"),
        keras.Sequential([inputs, keras.layers.Identity(name="probe_identity")], name="probe"),
    ]
    for model in models:
        model.compile("sgd", "mse")
    return {name for model in models for name in _all_attributes(model)} | {"history", "call", "recipe"}


def _mapped(value, function):
    """A value with a function applied to all that its lists, tuples, sets and dicts hold."""
    if isinstance(value, dict):
        return {key: _mapped(one, function) for key, one in value.items()}
    if isinstance(value, (list, set)):
        return (list if isinstance(value, list) else set)(_mapped(one, function) for one in value)
    if isinstance(value, tuple):
        parts = [_mapped(one, function) for one in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return function(value)


def _is_made_by_keras(kind, base):
    """Reports if Keras can make a model of a class from its graph, as it does of its own classes when loading."""
    if kind is base:
        return True
    above = kind.__mro__[: kind.__mro__.index(base)]
    if any(name in vars(one) for one in above for name in ("get_config", "from_config")):
        return False
    spec = inspect.getfullargspec(kind.__init__)
    return spec.args == inspect.getfullargspec(base.__init__).args or bool(spec.varargs and spec.varkw)


class Recipe:
    """The steps that make a rebuilt model again: its original from a configuration, then other layers in it.

    Attributes:
        original: the serialized original, or the error that it cannot be.
        steps: list of `{number of a layer in the walk: (serialized layer, [layers in its place])}`, one for each
            conversion. Names would not do: those that Keras gives are others each time.
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
        """The steps with all layers serialized."""
        return [
            {number: [old, [_serialized(one) for one in chain]] for number, (old, chain) in step.items()}
            for step in self.steps
        ]

    def is_original(self) -> bool:
        """Reports if all layers are those of the original again."""
        pairs = [pair for step in self.steps for pair in step.values()]
        return all([_serialized_or_error(one) for one in chain] == [old] for old, chain in pairs)


def _with_old_serialized(step):
    """A step without the layers that are replaced in it, which would keep the weights of the original."""
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
    """Mixin of rebuilt models whose class could not be made from their graph: they are saved as their `Recipe`."""

    recipe: Recipe
    remembered: type[keras.Model]
    name: str

    def get_config(self) -> dict[str, Any]:
        """Returns the recipe as plain Python.

        Raises:
            NotImplementedError: where the original model could not be saved either.
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
    """The subclass of a class whose instances are saved as recipes."""
    own = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "remembered": kind}
    made = type(kind.__name__, (Rebuilt, kind), own)
    return keras.saving.register_keras_serializable("elrt_keras", "Rebuilt")(made)
