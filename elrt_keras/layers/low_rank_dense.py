"""The low-rank dense layer."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from elrt_keras.checks import Identifier
from elrt_keras.formats.base import Ranks
from elrt_keras.formats.chain import ChainCosts, chain_costs, dense_stage
from elrt_keras.layers.factorized import Execution, FactorizedLayer
from elrt_keras.layers.ways import TrainingWay


@keras.saving.register_keras_serializable("elrt_keras")
class LowRankDense(FactorizedLayer):
    """Dense layer with a kernel of rank r: two small matrix products, `y = activation((x·A)·B + b)`.

    `A (C_in, r)` carries the singular values. Orthogonality applies to the factor `B (r, C_out)`.
    MACs of one example: `r·(C_in + C_out)` per position; dense: `C_in·C_out`.

    Input: `(batch, …, C_in)`. Output: `(batch, …, units)`.

    Args:
        units: int, C_out.
        ranks: int r, `(r,)`, or a float in (0, 1], a fraction of the full rank `min(C_in, C_out)`, rounded up.
        activation, use_bias, bias_initializer, bias_regularizer, activity_regularizer, bias_constraint: as in
            `keras.layers.Dense`.
        factor_initializer: an initializer of `elrt_keras.initializers` (both factors together) or of Keras (each
            factor on its own), by name or object.
        factor_regularizer: acts on `B`.
        kernel_regularizer: acts on the *composed* kernel `A·B`; `L2(λ)` is Frobenius decay, computed without composing.
        factor_constraint: projects `B` after an optimizer step.
        execution: `"chain"` runs both products, `"compose"` composes the kernel first, `"auto"` takes the one with
            fewer MACs when the layer is built.
        recompute: whether training drops the tensors between the stages and computes them again for the gradient
            (`keras.remat`): less memory, more time.
        **kwargs: `name`, `dtype`, `trainable`.

    Raises:
        ValueError: for ranks out of range, or arguments that the stock layer refuses.

    Example:

    >>> layer = elrt_keras.layers.LowRankDense(10, ranks=4)
    >>> layer(np.zeros((2, 64), dtype="float32")).shape == (2, 10)
    True

    Reference: Khodak et al., arXiv 2105.01029 (factorised layers, Frobenius decay).
    """

    format_name = "svd"
    spatial_dims = 0
    stock_class = keras.layers.Dense
    units: int

    def __init__(
        self,
        units: int,
        ranks: Ranks,
        activation: str | Callable[..., Any] | None = None,
        use_bias: bool = True,
        factor_initializer: Identifier = "orthogonal_factors",
        bias_initializer: Identifier = "zeros",
        factor_regularizer: Identifier | None = None,
        kernel_regularizer: Identifier | None = None,
        bias_regularizer: Identifier | None = None,
        activity_regularizer: Identifier | None = None,
        factor_constraint: Identifier | None = None,
        bias_constraint: Identifier | None = None,
        execution: Execution = "auto",
        recompute: bool = False,
        **kwargs: Any,
    ):
        shared = {
            "units": units,
            "activation": activation,
            "use_bias": use_bias,
            "bias_initializer": bias_initializer,
            "kernel_regularizer": kernel_regularizer,
            "bias_regularizer": bias_regularizer,
            "bias_constraint": bias_constraint,
        }
        super().__init__(
            shared,
            ranks,
            factor_initializer,
            factor_regularizer,
            factor_constraint,
            execution,
            recompute,
            activity_regularizer=activity_regularizer,
            **kwargs,
        )
        self.input_spec = keras.layers.InputSpec(min_ndim=2)
        self.supports_masking = True

    def build(self, input_shape: Sequence[int | None]) -> None:
        channels = input_shape[-1]
        if channels is None:
            raise ValueError(
                f"Expected a known size of the last axis of the input to build '{self.name}'. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: channels})
        kernel_shape = (channels, self.units)
        ranks = self.format.resolve_ranks(kernel_shape, self._ranks)
        self._stages = tuple(self.format.stages(kernel_shape, ranks, (), ()))
        self._dense = (dense_stage(kernel_shape, (), ()),)
        self._runs_chain = self._chooses_chain(kernel_shape, ranks, ())
        self._build_factors(kernel_shape, ranks)
        self.built = True

    def _run(self, inputs, *factors):
        first, second = factors
        if self._runs_chain:
            return ops.matmul(ops.matmul(inputs, first), second)
        return ops.matmul(inputs, ops.matmul(first, second))

    def _run_way(self, way, inputs, factors):
        if len(way.sizes) == 1:
            factors = [ops.matmul(*factors)]
        for factor in factors:
            inputs = ops.matmul(inputs, factor)
        return inputs

    @property
    def default_way(self) -> TrainingWay:
        return TrainingWay((1, 1) if self._runs_chain else (2,))

    @property
    def training_ways(self) -> list[TrainingWay]:
        self._require_built("training_ways")
        return [TrainingWay((1, 1)), TrainingWay((2,))]

    def way_costs(self, way: TrainingWay, input_shape: Sequence[int]) -> tuple[int, int]:
        if self.recompute:
            return 0, 0
        if len(way.sizes) == 1:
            return 0, math.prod(self.kernel_shape)
        return math.prod(size or 1 for size in input_shape[1:-1]) * self.ranks[0], 0

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return (*input_shape[:-1], self.units)

    def stock_layers(self) -> list[tuple[keras.layers.Layer, list[np.ndarray]]]:
        self._require_built("stock_layers")
        if not self._runs_chain:
            return [self._composed()]
        common = {"dtype": self.dtype_policy, "trainable": self.trainable}
        first_name, second_name = self._stage_names()
        first = keras.layers.Dense(self.ranks[0], use_bias=False, name=first_name, **common)
        second = keras.layers.Dense(self.units, name=second_name, **self._bias_arguments(), **common)
        core, factor_out = map(ops.convert_to_numpy, self.factors)
        return [(first, [core]), (second, [factor_out, *self.end_weights()])]

    def _costs(self, input_shape, chain):
        costs = chain_costs(self._stages if chain else self._dense, (), "valid")
        positions = math.prod(size or 1 for size in input_shape[1:-1])
        return ChainCosts(costs.params, costs.macs * positions, costs.activations * positions)
