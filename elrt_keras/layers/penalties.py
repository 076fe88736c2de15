"""Penalties and projections of single factors, as objects that Keras accepts."""

from typing import TYPE_CHECKING

import keras
from keras import ops

from elrt_keras.formats.arrays import MatrixView, as_loss

if TYPE_CHECKING:
    from elrt_keras.layers.factorized import FactorizedLayer


class _Sum(keras.regularizers.Regularizer):
    """The sum of functions of one variable, as a regularizer object for Keras."""

    def __init__(self, terms):
        self._terms = terms

    def __call__(self, variable):
        return sum(term(variable) for term in self._terms)


class _Projection(keras.constraints.Constraint):
    """A constraint on the matrix of a factor, or on one matrix per group."""

    def __init__(self, constraint, view):
        self._constraint, self._view = constraint, view

    def __call__(self, factor):
        return self._view.apply(self._constraint, factor)


def penalty_of(layer: "FactorizedLayer", index: int, view: MatrixView | None) -> keras.regularizers.Regularizer | None:
    """Returns the penalty that Keras adds to the loss for factor `index` of a layer, or `None`.

    It is the penalty of the factor. For the core it also includes the penalty of the whole kernel.

    Args:
        layer: a `FactorizedLayer`.
        index: place of the factor in the chain.
        view: `MatrixView` of an orthogonal factor; `None` for other factors.
    """
    terms = []
    if view is not None and layer.factor_regularizer is not None:
        terms.append(lambda factor: sum(map(layer.factor_regularizer, view.matrices(factor))))
    if index == layer.format.core_index and layer.kernel_regularizer is not None:
        terms.append(lambda core: _kernel_penalty(layer, core))
    return _Sum(terms) if terms else None


def _kernel_penalty(layer, core):
    # Keras penalises each variable by itself and passes in the core. The other factors are read from the layer.
    factors = [ops.convert_to_tensor(factor) for factor in layer.factors]
    factors[layer.format.core_index] = ops.convert_to_tensor(core)
    factors = [f if keras.backend.standardize_dtype(f.dtype) == "float64" else ops.cast(f, "float32") for f in factors]
    if type(layer.kernel_regularizer) is keras.regularizers.L2:
        return as_loss(float(layer.kernel_regularizer.l2) * layer.format.squared_norm(factors))
    return as_loss(layer.kernel_regularizer(layer.format.compose(factors)))


def projection_of(layer: "FactorizedLayer", view: MatrixView | None) -> keras.constraints.Constraint | None:
    """Returns the constraint that Keras applies to a factor after each step, or `None`; `view` as in `penalty_of`."""
    if view is None or layer.factor_constraint is None:
        return None
    return _Projection(layer.factor_constraint, view)
