"""What Keras is told to penalise and to project, factor by factor."""

from typing import TYPE_CHECKING

import keras
from keras import ops

from elrt_keras.formats.arrays import MatrixView, as_loss

if TYPE_CHECKING:
    from elrt_keras.layers.factorized import FactorizedLayer


class _Sum(keras.regularizers.Regularizer):
    """The sum of functions of one variable, as the regularizer object that Keras wants on it."""

    def __init__(self, terms):
        self._terms = terms

    def __call__(self, variable):
        return sum(term(variable) for term in self._terms)


class _Projection(keras.constraints.Constraint):
    """A constraint on a factor read as a matrix, or one per group."""

    def __init__(self, constraint, view):
        self._constraint, self._view = constraint, view

    def __call__(self, factor):
        return self._view.apply(self._constraint, factor)


def penalty_of(layer: "FactorizedLayer", index: int, view: MatrixView | None) -> keras.regularizers.Regularizer | None:
    """What Keras adds to the loss for factor `index` of a layer: its own penalty, and on the core the whole kernel's.

    Args:
        layer: a `FactorizedLayer`.
        index: place of the factor in the chain.
        view: how the factor reads as a matrix that is to be orthogonal; `None` for one that is not.
    """
    terms = []
    if view is not None and layer.factor_regularizer is not None:
        terms.append(lambda factor: sum(map(layer.factor_regularizer, view.matrices(factor))))
    if index == layer.format.core_index and layer.kernel_regularizer is not None:
        terms.append(lambda core: _kernel_penalty(layer, core))
    return _Sum(terms) if terms else None


def _kernel_penalty(layer, core):
    # Keras penalises variable by variable; the other factors are read beside the core it passes in.
    factors = [ops.convert_to_tensor(factor) for factor in layer.factors]
    factors[layer.format.core_index] = ops.convert_to_tensor(core)
    factors = [f if keras.backend.standardize_dtype(f.dtype) == "float64" else ops.cast(f, "float32") for f in factors]
    if type(layer.kernel_regularizer) is keras.regularizers.L2:
        return as_loss(float(layer.kernel_regularizer.l2) * layer.format.squared_norm(factors))
    return as_loss(layer.kernel_regularizer(layer.format.compose(factors)))


def projection_of(layer: "FactorizedLayer", view: MatrixView | None) -> keras.constraints.Constraint | None:
    """What Keras does to a factor of a layer after each step; `view` as in `penalty_of`."""
    if view is None or layer.factor_constraint is None:
        return None
    return _Projection(layer.factor_constraint, view)
