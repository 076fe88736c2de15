"""Survey of a model for the planners: layers that can be factorised, with their costs, and reasons for the others."""

import collections
import collections.abc
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from elrt_keras import formats
from elrt_keras.checks import one_of
from elrt_keras.graph.paths import check_keras_model, is_container, select
from elrt_keras.graph.private import held_layers
from elrt_keras.graph.separable import is_separable
from elrt_keras.graph.view import View
from elrt_keras.layers.convolutions import STOCK, twin_of
from elrt_keras.layers.factorized import FactorizedLayer
from elrt_keras.ranks.candidate import Candidate, MixedCandidate

# Used instead of a format name: the planner chooses the format of the layer.
AUTO = "auto"

_LIKELY = (
    *STOCK,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
    keras.layers.EinsumDense,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)


def survey(
    view: View,
    format_of: str | Mapping[str, str],
    exclude: str | Sequence[str] | None,
) -> tuple[list[Any], dict[str, str]]:
    """Finds the candidates of a dense model, and the reasons why other layers with kernels stay dense.

    Args:
        view: a built Functional or Sequential model.
        format_of: name of the format for all layers (`"auto"`: every format that a layer can take), or a mapping from
            names or patterns to such names (or `"dense"`); the first match counts.
        exclude: name or pattern, or a list of them; `None` for the first convolution and the classifier.

    Returns:
        `(candidates, reasons)`: a list of `Candidate` and `MixedCandidate` in the order of the model, and a dict of
        reasons by path.

    Raises:
        ValueError: if `model` is no Keras model or its input shape is not known, or for a name or pattern that matches
            nothing.
    """
    check_keras_model(view.model)
    calls = [one for call in view.calls for one in _with_stages(view, *call)]
    likely = _likely_layers(view)
    automatic = exclude is None
    excluded = _stem_and_classifiers(view, likely, calls) if automatic else select(likely, exclude, "exclude")
    formats_by_path = _formats_by_path(list(likely), format_of)
    candidates, reasons, seen = [], {}, set()
    for path, layer in likely.items():
        if id(layer) in seen:
            reasons[path] = "shared: planned under its first name"
            continue
        seen.add(id(layer))
        input_shapes = [shape for called, shape, _ in calls if called is layer]
        if path in excluded:
            reasons[path] = "excluded"
            continue
        name = suitable_format(layer, formats_by_path[path])
        why_dense = {one: _why_dense(layer, one, input_shapes) for one in (formats.names() if name == AUTO else [name])}
        by_format = {one: _candidate(path, layer, one, input_shapes) for one, why in why_dense.items() if not why}
        if by_format:
            candidates.append(MixedCandidate(by_format) if len(by_format) > 1 else next(iter(by_format.values())))
        else:
            reasons[path] = next(iter(why_dense.values()))
    return candidates, reasons | _closed_layers(view)


def _with_stages(view, layer, input_shape, output_shape):
    """Lists one call, or for a separable convolution the calls of its stages."""
    stages = view.opening(layer).graph if is_separable(layer) else None
    if stages is None:
        return [(layer, input_shape, output_shape)]
    depthwise, pointwise = stages.layers[1:]
    between = tuple(depthwise.compute_output_shape(input_shape))
    return [(depthwise, input_shape, between), (pointwise, between, output_shape)]


def survey_low_rank(view: View) -> list[Candidate]:
    """Lists the candidates of a low-rank model: its low-rank layers, limited to their present ranks."""
    candidates, seen = [], set()
    for path, layer in view.layers:
        if isinstance(layer, FactorizedLayer) and id(layer) not in seen:
            seen.add(id(layer))
            input_shapes = [shape for called, shape, _ in view.calls if called is layer]
            candidates.append(_candidate(path, layer, layer.format_name, input_shapes, limits=layer.ranks))
    return candidates


def _likely_layers(view):
    """`{path: layer}` of the layers with a kernel, without those inside nested models that cannot be rebuilt."""
    return {path: layer for path, layer in view.layers if isinstance(layer, _LIKELY)}


def _closed_layers(view):
    """`{path: reason}` of layers that hold convolutions or dense layers and cannot be opened."""
    reasons = {}
    for path, layer in view.layers:
        if any(type(inner) in STOCK for inner in held_layers(layer)):
            reason = view.opening(layer).reason
            closed = f"a {type(layer).__name__}, which cannot be opened for the layers in it"
            reasons[path] = f"{closed}: {reason}" if reason else closed
    return reasons


def _stem_and_classifiers(view, likely, calls):
    """Paths of the first convolution, and of the last layer before each output if it has one vector per example."""
    convolutions = [path for path, layer in likely.items() if STOCK.get(type(layer), 0) > 0]
    excluded = set(convolutions[:1])
    paths = {id(layer): path for path, layer in likely.items()}
    for layer, shape in _last_calls(view, calls, set(paths)):
        if type(layer) in STOCK and math.prod(shape) == math.prod(layer.kernel.shape[-2:-1]):
            excluded.add(paths[id(layer)])
    return excluded


def _last_calls(view, calls, among):
    """Lists for each output of a model the last call before it of a layer in `among`, as `(layer, input shape)`."""
    ran = [(layer, shape) for layer, shape, _ in calls if id(layer) in among]
    model = view.model
    outputs = keras.tree.flatten(model.outputs) if is_container(model) else []
    if len(outputs) < 2:
        return ran[-1:]
    heads = [keras.Model(model.inputs, output, name=model.name) for output in outputs]
    on_paths = [{id(layer) for _, layer in view.walk(head)} for head in heads]
    return [last for ids in on_paths for last in [call for call in ran if id(call[0]) in ids][-1:]]


def _formats_by_path(paths: list[str], format_of: Any) -> dict[str, Any]:
    if not isinstance(format_of, collections.abc.Mapping):
        one_of(getattr(format_of, "name", format_of), [AUTO, *formats.names()], "format")
        return dict.fromkeys(paths, getattr(format_of, "name", format_of))
    chosen = {}
    for pattern, name in format_of.items():
        one_of(name, ["dense", AUTO, *formats.names()], "format")
        for path in select(paths, [pattern], "format"):
            chosen.setdefault(path, name)
    return {path: chosen.get(path, "dense") for path in paths}


def suitable_format(layer: keras.layers.Layer, name: str) -> str:
    """Returns the format for a layer: `name`, or `"svd"` for a kernel of one position, which is a matrix."""
    pointwise = math.prod(getattr(layer, "kernel_size", ())) == 1
    return "svd" if pointwise and name != "dense" else name


def is_depthwise(layer: keras.layers.Layer) -> bool:
    """Reports if a stock layer is a depthwise convolution, or a built grouped one with one channel per group."""
    if isinstance(layer, (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)):
        return True
    grouped = type(layer) in STOCK and getattr(layer, "groups", 1) > 1
    return grouped and layer.built and layer.kernel.shape[-2] == 1


def _why_dense(layer, name, input_shapes):
    """Returns the reason why a layer cannot be factorised, or an empty string."""
    if name == "dense":
        return "no format asked for"
    if is_depthwise(layer):
        return "depthwise: each channel has a kernel of its own"
    if is_separable(layer):
        return "a separable convolution that is not called with one tensor by its position"
    if type(layer) not in STOCK:
        return f"no low-rank {type(layer).__name__}"
    try:
        twin = twin_of(layer, name)
    except ValueError as error:
        return str(error).split(" Received")[0]
    if twin is None:
        return f"no '{name}' layer for {STOCK[type(layer)]}-D"
    return "" if input_shapes else "not called"


def _candidate(path, layer, format_name, input_shapes, limits=None):
    layer_format = formats.grouped(format_name, getattr(layer, "groups", 1))
    kernel_shape = tuple(layer.kernel.shape)
    geometry: dict[str, Any]
    if len(kernel_shape) == 2:  # a dense layer
        positions = sum(math.prod(shape[:-1]) for shape in input_shapes)
        geometry = {"sizes": (((), positions),), "strides": (), "padding": "valid", "dilation_rate": ()}
    else:
        last = layer.data_format == "channels_last"
        sizes = collections.Counter()
        for merged, *shape in input_shapes:  # `merged` is above 1 if an axis was merged into that of the batch
            sizes[tuple(shape[:-1] if last else shape[1:])] += merged
        geometry = {"sizes": tuple(sizes.items())}
        geometry |= {name: getattr(layer, name) for name in ("strides", "padding", "dilation_rate")}
    limits = limits or layer_format.max_ranks(kernel_shape)
    execution: Any = getattr(layer, "execution", "auto")
    return Candidate(path, layer_format, kernel_shape, limits, layer=layer, execution=execution, **geometry)
