"""Whole models: dense to low-rank (`factorize`) and back (`merge`)."""

import functools

import keras

from elrt_keras import formats, initializers
from elrt_keras.layers import FactorizedConv
from elrt_keras.layers.convolutions import layer_class
from elrt_keras.layers.factorized_conv import dense_arguments
from elrt_keras.ranks.plan import RankPlan
from elrt_keras.traversal import iterate_layers

_DIMS = {keras.layers.Conv1D: 1, keras.layers.Conv2D: 2, keras.layers.Conv3D: 3}
_DENSE_TWINS = {dims: stock for stock, dims in _DIMS.items()}


def factorize(
    model,
    plan,
    *,
    factor_initializer="orthogonal_factors",
    factor_regularizer=None,
    kernel_regularizer=None,
    factor_constraint=None,
):
    """The low-rank twin of a model: every layer that the plan factorises is replaced, all others are kept as they are.

    The new model has its own weights: biases and all layers that stay dense take over the values of `model`; the
    factors come from `factor_initializer`. Names, shared layers and nested models stay. It is not compiled.

    Args:
        model: a built Functional or Sequential Keras model.
        plan: a `RankPlan`, or a mapping from layer names to `(format, ranks)` or `None`.
        factor_initializer: an initializer of `elrt_keras.initializers` or of Keras, by name or object;
            `"decomposed"` takes over the model's own kernels as well. An object with a seed gives each layer a seed of
            its own, derived from it.
        factor_regularizer: regularizer of the orthogonal factors, shared by all layers.
        kernel_regularizer: regularizer of the composed kernels; `None` keeps each layer's own.
        factor_constraint: constraint of the orthogonal factors, such as `elrt_keras.constraints.Stiefel()`.

    Returns:
        A `keras.Model` of the same kind.

    Raises:
        ValueError: before anything is built, if the plan names a layer that the model lacks, factorises nothing, or
            asks for a layer or ranks that are not possible; the message names the layer.

    Example:

    >>> model = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(6, 3, name="conv")])
    >>> low_rank = elrt_keras.factorize(model, {"conv": ("tucker2", (2, 3))})
    >>> low_rank.get_layer("conv").ranks
    (2, 3)
    """
    plan = plan if isinstance(plan, RankPlan) else RankPlan(plan)
    _check_convertible(model)
    decomposed = isinstance(factor_initializer, str) and factor_initializer == "decomposed"
    initializer = initializers.get("orthogonal_factors" if decomposed else factor_initializer)
    overrides = {
        "factor_regularizer": keras.regularizers.get(factor_regularizer),
        "factor_constraint": keras.constraints.get(factor_constraint),
    }
    if kernel_regularizer is not None:
        overrides["kernel_regularizer"] = keras.regularizers.get(kernel_regularizer)
    replacements = _checked_replacements(model, plan)

    def clone(layer):
        if id(layer) not in replacements:
            return type(layer).from_config(layer.get_config())
        index, target, entry = replacements[id(layer)]
        seeded = initializer.with_seed(index) if hasattr(initializer, "with_seed") else initializer
        arguments = {**dense_arguments(target, layer), "ranks": entry.ranks, "factor_initializer": seeded, **overrides}
        return target(**arguments)

    low_rank = keras.models.clone_model(model, clone_function=clone, recursive=True)
    for source, copy in _pairs(model, low_rank):
        if not isinstance(copy, FactorizedConv):
            copy.set_weights(source.get_weights())
            continue
        if decomposed:
            copy.assign_kernel(source.kernel)
        if copy.use_bias:
            copy.bias.assign(source.bias)
    return low_rank


def merge(model):
    """The dense twin of a low-rank model: every low-rank layer becomes one stock convolution with the composed kernel.

    The outputs are equal up to rounding. Names, shared layers and nested models stay; the result is not compiled.

    Args:
        model: a built Functional or Sequential model with low-rank layers.

    Raises:
        ValueError: if the model holds no low-rank layer.

    Example:

    >>> model = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(6, 3, name="conv")])
    >>> dense = elrt_keras.merge(elrt_keras.factorize(model, {"conv": ("tucker2", (2, 3))}))
    >>> type(dense.get_layer("conv")).__name__
    'Conv2D'
    """
    _check_convertible(model)
    if not any(isinstance(layer, FactorizedConv) for _, layer in iterate_layers(model)):
        raise ValueError(f"Expected a model with low-rank layers; nothing to merge. Received: model={model.name!r}")

    def clone(layer):
        if isinstance(layer, FactorizedConv):
            return _DENSE_TWINS[layer.spatial_dims](**_merged_arguments(layer))
        return type(layer).from_config(layer.get_config())

    dense = keras.models.clone_model(model, clone_function=clone, recursive=True)
    for source, copy in _pairs(model, dense):
        if isinstance(source, FactorizedConv):
            copy.set_weights([keras.ops.convert_to_numpy(value) for value in _merged_weights(source)])
        else:
            copy.set_weights(source.get_weights())
    return dense


def _check_convertible(model):
    if not isinstance(model, (keras.Sequential, _functional_class())):
        raise ValueError(f"Expected a Functional or Sequential Keras model. Received: a {type(model).__name__}")
    if not model.built:
        raise ValueError(f"Expected a built model. Received: model={model.name!r}, which has no weights yet")


@functools.cache
def _functional_class():
    # Keras exports no name for the class of a functional model; `keras.Model(inputs, outputs)` returns it.
    inputs = keras.Input((1,), name="probe")
    return type(keras.Model(inputs, keras.layers.Identity(name="probe_identity")(inputs), name="probe"))


def _checked_replacements(model, plan):
    """`{id(layer): (index, low-rank class, entry)}` for the layers to replace, everything checked."""
    layers = dict(iterate_layers(model))
    unknown = [name for name in plan if name not in layers]
    if unknown:
        raise ValueError(f"The plan names layers that '{model.name}' lacks. Received: {unknown}; it has {list(layers)}")
    replacements = {}
    for index, (name, entry) in enumerate(plan.factorized().items()):
        layer = layers[name]
        if type(layer) not in _DIMS:
            raise ValueError(f"Expected a Conv1D, Conv2D or Conv3D. Received: layer {name!r}, a {type(layer).__name__}")
        target = layer_class(entry.format, _DIMS[type(layer)])
        if target is None:
            raise ValueError(
                f"No layer of format '{entry.format}' for {_DIMS[type(layer)]}-D. Received: layer {name!r}"
            )
        try:
            # Makes the layer once, unbuilt, so that whatever its constructor refuses is refused here.
            target(**{**dense_arguments(target, layer), "ranks": entry.ranks})
            formats.get(entry.format).resolve_ranks(tuple(layer.kernel.shape), entry.ranks)
        except ValueError as error:
            raise ValueError(f"Layer {name!r}: {error}") from error
        replacements[id(layer)] = (index, target, entry)
    if not replacements:
        raise ValueError(f"The plan factorises no layer. Received: plan with {len(plan)} entries, all dense")
    return replacements


def _pairs(model, copy):
    """The layers of a model and of its clone, side by side."""
    twins = dict(iterate_layers(copy))
    return [(layer, twins[path]) for path, layer in iterate_layers(model)]


def _merged_arguments(layer):
    config = layer.get_config()
    for low_rank_only in ("ranks", "factor_initializer", "factor_regularizer", "factor_constraint", "execution"):
        config.pop(low_rank_only)
    config["dtype"] = layer.dtype_policy
    return config


def _merged_weights(layer):
    return [layer.kernel] if layer.bias is None else [layer.kernel, layer.bias]
