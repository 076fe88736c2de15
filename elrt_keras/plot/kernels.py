"""Singular spectra of a model's kernels, dense or composed, from the unfoldings of the formats."""

import typing
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from elrt_keras import formats
from elrt_keras.graph.paths import check_keras_model, select
from elrt_keras.graph.view import View
from elrt_keras.layers import FactorizedLayer
from elrt_keras.layers.convolutions import STOCK
from elrt_keras.ranks.plan import Entry, RankPlan
from elrt_keras.ranks.survey import is_depthwise, suitable_format


class LayerSpectra(typing.NamedTuple):
    """Spectra of one kernel, one per rank of a format.

    Attributes:
        values: `{rank name: σ}`, all singular values of the unfolding in descending order (at most the full rank).
        ranks: `{rank name: rank}` of a low-rank or planned layer; empty for a dense one.
    """

    values: dict[str, np.ndarray]
    ranks: dict[str, int]


def layer_spectra(
    model: keras.Model,
    format: str = "tucker2",
    plan: RankPlan | Mapping[str, Entry] | None = None,
    layers: str | Sequence[str] | None = None,
) -> dict[str, LayerSpectra]:
    """Returns `{path: LayerSpectra}` of all layers of a model that are or could be low-rank, under their first names.

    Args:
        model: a built model.
        format: name of the format whose unfoldings are used for dense kernels; kernels of one position are matrices
            (`svd`). Layers with a number of spatial dimensions that the format does not support are left out.
        plan: `RankPlan` or mapping of its entries, with formats and ranks for dense layers.
        layers: name or pattern, or a list of them; `None` for all.

    Raises:
        ValueError: for a model without such layers, a name that matches no layer, weights that are not finite, or ranks
            above the full ones.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, name="head", kernel_initializer="ones")])
    >>> spectra = elrt_keras.plot.kernels.layer_spectra(model)["head"]
    >>> [round(float(value), 3) for value in spectra.values["r"]]  # √24, and rounding
    [4.899, 0.0, 0.0]
    """
    formats.get(format)
    plan = RankPlan({} if plan is None else plan)
    by_path = _kernel_layers(model, format, plan)
    missing = sorted(set(plan.factorized()) - set(by_path))
    if missing:
        raise ValueError(f"Expected a plan of layers among {list(by_path)}. Received: {missing}")
    chosen = by_path if layers is None else select(by_path, layers, "layers")
    if not chosen:
        raise ValueError(f"Expected names or patterns of layers among {list(by_path)}. Received: layers={layers!r}")
    return {path: _spectra_of(path, *by_path[path], plan) for path in chosen}


def _kernel_layers(model, format, plan) -> dict[str, tuple[keras.layers.Layer, formats.Format]]:
    """Returns `{path: (layer, Format)}` of all layers with a kernel that the format supports."""
    check_keras_model(model)
    layers_by_path, seen = {}, set()
    for path, layer in View(model).layers:
        if id(layer) in seen or not layer.built:
            continue
        seen.add(id(layer))
        if isinstance(layer, FactorizedLayer):
            layers_by_path[path] = layer, layer.format
        elif type(layer) in STOCK and not is_depthwise(layer):
            planned = path in plan and not plan[path].is_dense
            layer_format = formats.get(plan[path].format if planned else suitable_format(layer, format))
            if planned or STOCK[type(layer)] in layer_format.spatial_dims:
                layers_by_path[path] = layer, formats.grouped(layer_format, getattr(layer, "groups", 1))
    if not layers_by_path:
        raise ValueError(
            f"Expected a model with built convolutions or dense layers for format {format!r}. "
            f"Received: model={model.name!r}"
        )
    return layers_by_path


def _spectra_of(path, layer, layer_format, plan):
    kernel = np.asarray(keras.ops.convert_to_numpy(layer.kernel)).astype("float64")
    if not np.all(np.isfinite(kernel)):
        raise ValueError(f"Expected weights of finite numbers. Received: NaN or infinity in layer {path!r}")
    if kernel.ndim - 2 not in layer_format.spatial_dims:
        raise ValueError(
            f"Expected a kernel of {layer_format.spatial_dims} spatial dimensions for format {layer_format.name!r}. "
            f"Received: layer {path!r} with a kernel of shape {kernel.shape}"
        )
    ranks = ()
    if isinstance(layer, FactorizedLayer):
        ranks = layer.ranks
    elif path in plan and not plan[path].is_dense:
        ranks = layer_format.resolve_ranks(kernel.shape, plan[path].ranks)
    squares = layer_format.spectra(kernel)
    values = {name: np.sqrt(one) for name, one in zip(layer_format.rank_names, squares)}
    return LayerSpectra(values, dict(zip(layer_format.rank_names, ranks)))
