"""`FactorFreezing`: training of the factors in turn."""

from typing import Any

import keras

from elrt_keras.checks import int_in
from elrt_keras.distillation import student_of
from elrt_keras.graph.paths import iterate_sublayers
from elrt_keras.graph.private import OptimizedVariables
from elrt_keras.layers import FactorizedLayer


class FactorFreezing(keras.callbacks.Callback):
    """Trains the cores of the low-rank layers and their other factors in turn, so that a step takes less time.

    In even turns only the cores (`format.core_index`) train; in odd turns only the other factors. Gradients of frozen
    factors are not computed. All other weights train in every epoch. A frozen factor has no weight decay and no
    penalty. The Frobenius penalty of a composed kernel counts while the core trains. At the end of `fit` all factors
    are trainable again.

    Args:
        epochs: int ≥ 1, number of epochs per turn.

    Raises:
        ValueError: if `epochs` is no int ≥ 1. At the start of training, for a model without low-rank layers or an
            optimizer with `use_ema`.

    Example:

    >>> freezing = elrt_keras.callbacks.FactorFreezing()
    >>> # model.fit(x, y, epochs=100, callbacks=[freezing])

    Source: Hajimolahoseini et al. 2023, arXiv 2309.03824, "sequential freezing".
    """

    def __init__(self, epochs: int = 1):
        super().__init__()
        self.epochs: int = int_in(epochs, "[1, inf)", "epochs")

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        layers = [layer for _, layer in iterate_sublayers(student_of(self.model)) if isinstance(layer, FactorizedLayer)]
        if not layers:
            raise ValueError(f"Expected a model with low-rank layers. Received: model={self.model.name!r} without")
        cores = [layer.factors[layer.format.core_index] for layer in layers]
        others = [factor for layer in layers for factor in layer.factors if all(factor is not core for core in cores)]
        # Factors that the user froze stay frozen.
        self._groups = [[factor for factor in group if factor.trainable] for group in (cores, others)]
        optimizer = self.model.optimizer
        if optimizer.use_ema or getattr(optimizer, "inner_optimizer", optimizer).use_ema:
            raise ValueError(
                f"Expected an optimizer without averaged weights. Received: {optimizer.name!r} with use_ema"
            )
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        self._optimized, self._steps, self._turn = OptimizedVariables(optimizer), {}, None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        turn = epoch // self.epochs % 2
        if turn == self._turn:
            return
        self._turn = turn
        self._train(self._groups[turn])
        # The training step is compiled once for even and once for odd turns.
        if turn in self._steps:
            self.model.train_function = self._steps[turn]
        else:
            self.model.make_train_function(force=True)
            self._steps[turn] = self.model.train_function

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._train([factor for group in self._groups for factor in group])
        self.model.train_function = None

    def _train(self, factors):
        for group in self._groups:
            for factor in group:
                factor.trainable = any(factor is one for one in factors)
        self._optimized.limit(self.model.trainable_variables)
