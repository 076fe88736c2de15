"""Keras callbacks: a schedule for the orthogonality penalty, a log of orthogonality errors, a stop by stable ranks."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from elrt_keras.checks import int_in, number_in
from elrt_keras.distillation import student_of
from elrt_keras.freezing import FactorFreezing
from elrt_keras.graph.paths import iterate_sublayers
from elrt_keras.graph.view import View
from elrt_keras.layers import FactorizedLayer
from elrt_keras.ranks.estimates import stable_rank
from elrt_keras.ranks.survey import survey
from elrt_keras.regularizers import OrthogonalityRegularizer, orthogonality_error

__all__ = ["FactorFreezing", "OrthogonalityLogger", "RegularizationSchedule", "StableRankStopping", "factor_errors"]


def factor_errors(model: keras.Model) -> dict[str, float]:
    """Computes the orthogonality error of each orthogonal factor of a model: `{"layer/factor": error}`.

    The error is ‖S − I‖_F / √Φ with S the smaller Gram matrix (see `elrt_keras.regularizers.orthogonality_error`).

    Args:
        model: a built model; one without low-rank layers gives an empty dict.

    Raises:
        ValueError: if `model` is no Keras model.

    Example:

    >>> layer = elrt_keras.layers.Tucker2Conv2D(6, 3, ranks=(2, 3), name="conv")
    >>> errors = elrt_keras.callbacks.factor_errors(keras.Sequential([keras.Input((8, 8, 4)), layer]))
    >>> {name: round(error, 4) for name, error in errors.items()}
    {'conv/factor_in': 0.0, 'conv/factor_out': 0.0}
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"Expected a Keras model. Received: model={model!r}")
    errors = {}
    for path, layer in iterate_sublayers(student_of(model)):
        if isinstance(layer, FactorizedLayer):
            for view in layer.format.orthogonal_factors(layer.spatial_dims):
                matrices = view.matrices(keras.ops.convert_to_tensor(layer.factors[view.index]))
                of_groups = [orthogonality_error(matrix) for matrix in matrices]
                error = float(np.sqrt(np.mean(np.square(of_groups))))  # error of their block-diagonal matrix
                errors[f"{path}/{layer.format.factor_names[view.index]}"] = error
    return errors


class RegularizationSchedule(keras.callbacks.Callback):
    """Sets the strength of the model's orthogonality regularizers at the start of each epoch.

    Args:
        schedule: `{epoch: strength}`, or a callable from the epoch to the strength. Each strength is valid from its
            epoch (counted from 0) until the next; the first one is at epoch 0.

    Raises:
        ValueError: for a schedule of another type, an empty one, one that does not start at epoch 0, or a negative
            strength. At the start of training, for a model without an orthogonality regularizer.

    Example:

    >>> schedule = elrt_keras.callbacks.RegularizationSchedule({0: 1e-2, 20: 1e-3, 50: 0.0})
    >>> [schedule.strength(epoch) for epoch in (0, 19, 20, 80)]
    [0.01, 0.01, 0.001, 0.0]

    Reference: Bansal et al., arXiv 1810.09102, lower the strength in steps this way.
    """

    def __init__(self, schedule: dict[int, float] | Callable[[int], float]):
        super().__init__()
        if not callable(schedule):
            schedule = _validated_steps(schedule)
        self.schedule = schedule

    def strength(self, epoch: int) -> float:
        """Returns the strength at an epoch (counted from 0)."""
        if callable(self.schedule):
            strength = self.schedule(epoch)
            try:
                return float(strength)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"Expected a schedule that returns a number. Received: {strength!r} at epoch {epoch}"
                ) from error
        return self.schedule[max(start for start in self.schedule if start <= epoch)]

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._regularizers = _orthogonality_regularizers(self.model)
        if not self._regularizers:
            raise ValueError(
                "Expected a model with an orthogonality regularizer for RegularizationSchedule: build the layers with "
                f"`factor_regularizer=`. Received: model={self.model.name!r}"
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        strength = self.strength(epoch)
        changes = any(regularizer.strength != strength for regularizer in self._regularizers)
        for regularizer in self._regularizers:
            regularizer.strength = strength
        if changes:
            self._recompile_where_constant()

    def _recompile_where_constant(self):
        # Stock layers do not list a regularizer's strength among their variables. A function compiled by JAX then has
        # it as a constant and must be traced again. TensorFlow and PyTorch read the variable itself.
        known = {id(variable) for variable in self.model.variables}
        if keras.backend.backend() == "jax" and any(id(r.strength_variable) not in known for r in self._regularizers):
            self.model.make_train_function(force=True)
            self.model.make_test_function(force=True)


def _validated_steps(schedule):
    if not isinstance(schedule, dict) or not schedule:
        raise ValueError(f"Expected a callable or a dict of epoch → strength. Received: schedule={schedule!r}")
    steps = {}
    for epoch, strength in schedule.items():
        name = f"schedule[{epoch!r}]"
        steps[int_in(epoch, "[0, inf)", "epoch")] = number_in(strength, "[0, inf)", name)
    if 0 not in steps:
        raise ValueError(f"Expected a schedule that starts at epoch 0. Received: schedule={schedule!r}")
    return dict(sorted(steps.items()))


def _orthogonality_regularizers(model):
    regularizers_by_id = {}
    for _, layer in iterate_sublayers(student_of(model)):
        # A regularizer is an attribute of a layer, or only of a weight.
        for value in (*vars(layer).values(), *(weight.regularizer for weight in layer.weights)):
            if isinstance(value, OrthogonalityRegularizer):
                regularizers_by_id[id(value)] = value
    return list(regularizers_by_id.values())


class OrthogonalityLogger(keras.callbacks.Callback):
    """Logs the orthogonality errors of the factors after each epoch.

    Adds `orthogonality_error_mean` and `orthogonality_error_max` over all factors to the epoch's logs. The history,
    `CSVLogger` and `TensorBoard` contain them if they come later in the list of callbacks. The errors of the single
    factors are in `per_factor`: a dict `{"layer/factor": [error of each epoch]}`.

    The error of a factor is ‖S − I‖_F / √Φ, where S is its smaller Gram matrix: 0 if the factor is orthonormal.

    Example:

    >>> logger = elrt_keras.callbacks.OrthogonalityLogger()
    >>> # model.fit(x, y, callbacks=[logger, keras.callbacks.CSVLogger("history.csv")])
    """

    def __init__(self):
        super().__init__()
        self.per_factor: dict[str, list[float]] = {}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        errors = factor_errors(self.model)
        for name, error in errors.items():
            self.per_factor.setdefault(name, []).append(error)
        if logs is not None and errors:
            logs["orthogonality_error_mean"] = float(np.mean(list(errors.values())))
            logs["orthogonality_error_max"] = float(np.max(list(errors.values())))


class StableRankStopping(keras.callbacks.Callback):
    """Ends full-rank training when the stable ranks of the kernels hardly change any more.

    The stable rank of a matrix A is ‖A‖_F² / ‖A‖₂². After each epoch it is computed for the unfoldings of `format`.
    Training stops when it changes by less than `tolerance`, relative to its last value and on average over all
    unfoldings. `stable_rank_mean` and `stable_rank_change` are added to the logs. The next steps are
    `plan_ranks(method="stable_rank")` and `factorize(…, factor_initializer="decomposed")`.

    Args:
        format: name of the format that the model will be factorised into.
        tolerance: float > 0, relative change per epoch below which training stops.
        exclude: layers that do not count, as in `plan_ranks`.

    Raises:
        ValueError: for a tolerance that is no positive number. At the start of training, for a model without a layer
            that can be factorised.

    Example:

    >>> stopping = elrt_keras.callbacks.StableRankStopping(tolerance=0.05)
    >>> # dense.fit(x, y, epochs=100, callbacks=[stopping])

    Reference: Cuttlefish (MLSys 2023) uses stable ranks to choose the switch from full-rank to low-rank training, and
    the ranks.
    """

    def __init__(self, format: str = "tucker2", tolerance: float = 0.05, exclude: str | Sequence[str] | None = None):
        super().__init__()
        number_in(tolerance, "(0, inf)", "tolerance")
        self.format: str
        self.tolerance: float
        self.exclude: str | Sequence[str] | None
        self.format, self.tolerance, self.exclude = format, tolerance, exclude
        self.stopped_epoch: int | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._candidates, _ = survey(View(student_of(self.model)), self.format, self.exclude)
        if not self._candidates:
            raise ValueError(
                f"Expected a model with layers that can be factorised. Received: model={self.model.name!r}"
            )
        self._last = self._stable_ranks()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        ranks = self._stable_ranks()
        change = float(np.mean(np.abs(ranks - self._last) / self._last))
        self._last = ranks
        if logs is not None:
            logs.update(stable_rank_mean=float(ranks.mean()), stable_rank_change=change)
        if change < self.tolerance:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def _stable_ranks(self):
        return np.array([rank for c in self._candidates for rank in c.format.rank_estimates(c.kernel(), stable_rank)])
