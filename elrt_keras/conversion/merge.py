"""Conversion from low-rank to stock Keras: `merge` to the dense architecture, `expand` to chains of stock layers."""

from collections.abc import Sequence

import keras

from elrt_keras.graph.paths import iterate_sublayers
from elrt_keras.graph.rebuild import check_convertible, rebuild
from elrt_keras.graph.view import View
from elrt_keras.layers import FactorizedLayer


def merge(model: keras.Model) -> keras.Model:
    """Makes the dense twin of a low-rank model: each low-rank layer becomes one stock layer with the composed kernel.

    The outputs are equal up to rounding. Names, shared layers and nested models stay. The result is not compiled.

    Args:
        model: a built Functional or Sequential model with low-rank layers.

    Raises:
        ValueError: if the model has no low-rank layer, or has one inside a layer that cannot be opened, such as a
            subclassed model.

    Example:

    >>> model = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(6, 3, name="conv")])
    >>> dense = elrt_keras.merge(elrt_keras.factorize(model, {"conv": ("tucker2", (2, 3))}))
    >>> type(dense.get_layer("conv")).__name__
    'Conv2D'
    """
    return rebuild(low_rank_view(model, "merge"), is_low_rank, lambda layer: [layer.merged()])


def expand(model: keras.Model) -> keras.Model:
    """Rewrites a low-rank model in stock Keras layers: each low-rank layer becomes its chain of plain convolutions.

    The result runs, saves and exports wherever Keras does, without this package. Only a model whose class has its own
    configuration needs the package for loading. The outputs are equal up to rounding.

    The layers of a chain are named after the layer and its factors (`conv1_factor_in`, `conv1_core`). The last one
    keeps the name of the layer, so named outputs stay; it has the bias and the activation. A layer that runs through
    its composed kernel, because that takes fewer MACs, becomes one stock layer. All other names, shared layers and
    nested models stay. Regularizers and constraints of factors and kernels are dropped, because stock layers have no
    counterpart. The result is not compiled.

    Args:
        model: a built Functional or Sequential model with low-rank layers.

    Raises:
        ValueError: if the model has no low-rank layer, or has one inside a layer that cannot be opened, such as a
            subclassed model; if two layers would get the same name.

    Example:

    >>> model = keras.Sequential([keras.Input((8, 8, 16)), keras.layers.Conv2D(16, 3, name="conv")])
    >>> stock = elrt_keras.expand(elrt_keras.factorize(model, {"conv": ("tucker2", (2, 3))}))
    >>> [layer.name for layer in stock.layers]
    ['conv_factor_in', 'conv_core', 'conv']
    """
    view = low_rank_view(model, "expand")
    _check_names(view)
    return rebuild(view, is_low_rank, lambda layer: layer.stock_layers())


def _check_names(view):
    owners = {}
    for path, layer in view.layers:
        stock = [one for one, _ in layer.stock_layers()] if is_low_rank(layer) else [layer]
        for one in stock:
            name = path.removesuffix(layer.name) + one.name
            owner = owners.setdefault(name, path)
            if owner != path:
                raise ValueError(f"Expected layers of different names. Received: '{name}' of '{owner}' and of '{path}'")


def is_low_rank(layer: keras.layers.Layer) -> bool:
    """Reports if a layer is one of this package's low-rank layers."""
    return isinstance(layer, FactorizedLayer)


def low_rank_view(model: keras.Model, verb: str, input_shape: Sequence[int] | None = None) -> View:
    """Checks that a model can be rebuilt and that all its low-rank layers can be replaced. Returns its view.

    Args:
        model: the model.
        verb: name of the conversion, for messages.
        input_shape: shape of one example, for a model that leaves sizes open.

    Raises:
        ValueError: if it has no low-rank layers, or has some inside layers that cannot be opened.
    """
    check_convertible(model)
    view = View(model, input_shape)
    reached = {id(layer) for _, layer in view.layers}
    low_rank = {path: id(layer) for path, layer in iterate_sublayers(model) if is_low_rank(layer)}
    if not low_rank:
        raise ValueError(f"Expected a model with low-rank layers; nothing to {verb}. Received: model={model.name!r}")
    closed = [path for path, layer in low_rank.items() if layer not in reached]
    if closed:
        raise ValueError(
            f"Expected low-rank layers of the model itself, or in layers that can be opened, to {verb}. "
            f"Received: model={model.name!r} with {closed} inside other layers"
        )
    return view
