"""Calibration of models whose kernels have changed: batch-norm statistics, and moments of the layers' inputs."""

import contextlib
import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from elrt_keras.formats.weighting import InputWeighting
from elrt_keras.graph.paths import check_keras_model, iterate_sublayers
from elrt_keras.graph.view import View
from elrt_keras.graph.watching import replaced_calls
from elrt_keras.litert.examples import batches
from elrt_keras.litert.interface import interface, outputs_of
from elrt_keras.ranks.moments import input_weightings
from elrt_keras.terminal.progress import progress_bar

_BATCH = 128


def recalibrate_batch_norm(model: keras.Model, images: Any, *, input_shape: Sequence[int] | None = None) -> keras.Model:
    """Computes the statistics of all batch-norm layers of a model again, from images and without training.

    Truncated or decomposed kernels change the activations, so the moving averages no longer fit. The images run through
    the model as in training, and each layer gets

        moving_mean = Σ_b n_b·mean_b / Σ_b n_b,   moving_variance = Σ_b n_b·variance_b / Σ_b n_b

    over the batches b of n_b images, and over all calls of a shared layer. No other variable changes. Frozen layers
    (`trainable = False`) keep their statistics, as in training. Some thousand training images, augmented as in
    training, are enough. A few hundred can make statistics worse that were nearly right.

    Args:
        model: a built Functional or Sequential model. Nested models and the layers of custom layers are included.
        images: array `(N, …)`, a tuple `(images, labels)` of arrays, a `tf.data.Dataset`, a `keras.utils.PyDataset` or
            another iterable of batches or `(images, labels)`; for several inputs, dicts `{name: array}`. Labels are
            ignored.
        input_shape: shape of one example, for a model that leaves sizes open.

    Returns:
        The same model.

    Raises:
        ValueError: for a model without a batch-norm layer that can change, for no images or images of another shape,
            or for NaN or infinity in them. The model then keeps its statistics.

    Example:

    >>> model = elrt_keras.models.build("resnet8", (8, 8, 1), 10)
    >>> images = np.random.default_rng(0).uniform(0, 255, (64, 8, 8, 1))
    >>> model = elrt_keras.recalibrate_batch_norm(model, images)

    Source: Izmailov et al. 2018, arXiv 1803.05407, estimate batch-norm again in this way after averaging weights.
    """
    check_keras_model(model)
    layers = batch_norm_layers(model)
    if not layers:
        raise ValueError(
            f"Expected a model with batch-norm layers that are not frozen. Received: model={model.name!r}, without"
        )
    totals = {id(layer): _Totals() for layer in layers}
    with _unchanged(model), _recorded(layers, totals):
        examples = batches(images, interface(model, input_shape), batch_size=_BATCH)
        for inputs, _ in progress_bar(examples, "taking batch-norm statistics"):
            outputs_of(model, inputs, training=True)
    for layer in layers:
        totals[id(layer)].assign(layer)
    return model


def batch_norm_layers(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Lists the batch-norm layers of a model whose statistics change in training, each once."""
    layers_by_id = {
        id(layer): layer
        for _, layer in iterate_sublayers(model)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    }
    return list(layers_by_id.values())


class _Totals:
    """Sums of statistics over the calls of a layer."""

    def __init__(self):
        self.count, self.mean, self.variance = 0, 0.0, 0.0

    def add(self, layer, count):
        """Adds the present statistics of the layer, which come from a batch of `count` examples."""
        mean, variance = (
            keras.ops.convert_to_numpy(value).astype("float64") for value in (layer.moving_mean, layer.moving_variance)
        )
        self.count += count
        self.mean += count * mean
        self.variance += count * variance

    def assign(self, layer):
        """Sets the statistics of the layer to the mean of all that were added. A layer that never ran keeps its own."""
        if self.count:
            layer.moving_mean.assign(self.mean / self.count)
            layer.moving_variance.assign(self.variance / self.count)


@contextlib.contextmanager
def _recorded(layers: list[keras.layers.BatchNormalization], totals: dict[int, _Totals]) -> Iterator[None]:
    """Context in which each call of a layer stores the statistics of its batch and adds them to its totals."""

    def recording(layer, call):
        def recorded(inputs, *args, **kwargs):
            outputs = call(inputs, *args, **kwargs)
            totals[id(layer)].add(layer, inputs.shape[0])
            return outputs

        return recorded

    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
        with replaced_calls(layers, recording):
            yield
    finally:
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum


@contextlib.contextmanager
def _unchanged(model: keras.Model) -> Iterator[None]:
    """Context that restores all state that a forward pass changes, such as seeds of dropout."""
    kept = [(variable, np.array(keras.ops.convert_to_numpy(variable))) for variable in model.non_trainable_variables]
    try:
        yield
    finally:
        for variable, value in kept:
            variable.assign(value)


class Calibration:
    """Examples of a model's training data, from which weightings and batch-norm statistics are computed.

    Args:
        model: the original model; others are made from it, with lower ranks or decomposed kernels.
        data: examples, in the forms that `recalibrate_batch_norm` takes. They are read once and kept.
        input_shape: shape of one example, for a model that leaves sizes open.

    Raises:
        ValueError: for examples that do not fit.
    """

    def __init__(self, model: keras.Model, data: Any, input_shape: Sequence[int] | None = None):
        self._model, self._input_shape = model, input_shape
        self._inputs = [inputs for inputs, _ in batches(data, interface(model, input_shape), batch_size=_BATCH)]

    def weightings(self, view: View, layers: Iterable[keras.layers.Layer]) -> dict[int, InputWeighting]:
        """Returns `{id of a layer: weighting of its kernel}`; see `input_weightings`."""
        return input_weightings(view, layers, self._inputs)

    def settle_batch_norm(self, made: keras.Model) -> bool | None:
        """Computes batch-norm statistics again, and keeps them if the outputs come closer to the original model's.

        Args:
            made: a model made from the original one; its statistics may change.

        Returns:
            Whether the new statistics stay; `None` for a model without batch-norm layers.
        """
        layers = batch_norm_layers(made)
        if not layers:
            return None
        before = [[np.array(w) for w in layer.get_weights()] for layer in layers]
        distances = [self._distance(made)]
        recalibrate_batch_norm(made, self._inputs, input_shape=self._input_shape)
        distances.append(self._distance(made))
        is_better = distances[1] < distances[0]
        if not is_better:
            for layer, weights in zip(layers, before):
                layer.set_weights(weights)
        print(
            f"{made.name}: batch-norm statistics {'of the calibration data' if is_better else 'as they were'}; "
            f"outputs differ by {min(distances):.3g} of their size, with the other ones by {max(distances):.3g}",
            file=sys.stderr,
        )
        return is_better

    @functools.cached_property
    def _targets(self):
        return [self._outputs(self._model, inputs) for inputs in self._inputs]

    def _outputs(self, model, inputs):
        return [keras.ops.convert_to_numpy(output).astype("float64") for output in outputs_of(model, inputs)]

    def _distance(self, model):
        """Root mean square of the differences from the original model's outputs, relative to these outputs."""
        lost = size = 0.0
        for inputs, targets in zip(self._inputs, self._targets):
            for output, target in zip(self._outputs(model, inputs), targets):
                lost, size = lost + np.sum((output - target) ** 2), size + np.sum(target**2)
        return float(np.sqrt(lost / size)) if size > 0 else float(np.sqrt(lost))
