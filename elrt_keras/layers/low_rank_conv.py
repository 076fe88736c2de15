"""Low-rank convolutions with the format as an argument: one class per number of spatial axes."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from elrt_keras import formats
from elrt_keras.checks import Identifier
from elrt_keras.formats.base import Format, Ranks
from elrt_keras.layers.factorized import Execution
from elrt_keras.layers.factorized_conv import FactorizedConv


class LowRankConv(FactorizedConv):
    """Base of `LowRankConv1D`, `LowRankConv2D` and `LowRankConv3D`: a `FactorizedConv` whose format is an argument."""

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        ranks: Ranks,
        format: str | Format = "tucker2",
        strides: int | Sequence[int] = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = 1,
        groups: int = 1,
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
        self.format_name = _checked(format, self.spatial_dims)
        super().__init__(
            filters,
            kernel_size,
            ranks,
            strides,
            padding,
            data_format,
            dilation_rate,
            groups,
            activation,
            use_bias,
            factor_initializer,
            bias_initializer,
            factor_regularizer,
            kernel_regularizer,
            bias_regularizer,
            activity_regularizer,
            factor_constraint,
            bias_constraint,
            execution,
            recompute,
            **kwargs,
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "format": self.format_name}


def _checked(format, spatial_dims):
    """Checks that a format is registered and supports `spatial_dims` spatial axes. Returns its name."""
    known = formats.get(format)
    if known is not formats.get(known.name):
        raise ValueError(
            f"Expected a registered format, which a saved model finds by its name. "
            f"Received: format={known.name!r}, another object of that name"
        )
    if spatial_dims not in known.spatial_dims:
        fitting = [name for name in formats.names() if spatial_dims in formats.get(name).spatial_dims]
        raise ValueError(
            f"Expected a format for {spatial_dims} spatial axes, one of {fitting}. Received: format={known.name!r}"
        )
    return known.name


@keras.saving.register_keras_serializable("elrt_keras")
class LowRankConv2D(LowRankConv):
    """2-D convolution that holds its kernel as the factors of a low-rank format and runs as a chain of convolutions.

    `outputs = activation(conv(inputs, compose(factors)) + bias)`, computed stage by stage without composing:
    `format.stages` are the convolutions of the chain, `format.compose` is the formula of the kernel.

    Input: `(batch, height, width, C_in)` for `channels_last`, `(batch, C_in, height, width)` for `channels_first`.
    Output: the same axes with the sizes and channels of the dense convolution.

    Args:
        filters: int, C_out.
        kernel_size: int or tuple of 2 ints, `(k_h, k_w)`.
        ranks: a tuple with one entry for each rank of the format, or one number for all of them. An int is a rank; a
            float in (0, 1] is a fraction of the full rank, rounded up.
        format: name of a registered format, such as `"tucker2"`, `"svd"`, `"spatial_svd"`, `"cp"`, `"tensor_train"`.
            A saved model stores the name. For a format of your own, import the module that registers it before loading.
        strides, padding, data_format, dilation_rate, activation, use_bias: as in `keras.layers.Conv2D`.
        groups: int that divides C_in and C_out. Each group has a kernel of C_in/groups to C_out/groups channels with
            its own factors. All groups have the same `ranks`; the full ranks are those of the kernel of one group.
        factor_initializer: an initializer of `elrt_keras.initializers` (all factors together) or of Keras (each factor
            on its own), by name or object.
        factor_regularizer: acts on each orthogonal factor, as a matrix (`format.orthogonal_factors` lists them).
            A name (`"so"`, `"dso"`, `"mc"`, `"srip"`) or an object, see `elrt_keras.regularizers`.
        kernel_regularizer: acts on the *composed* kernel; `L2(λ)` is Frobenius decay, computed without composing.
        bias_initializer, bias_regularizer, bias_constraint, activity_regularizer: as in `keras.layers.Conv2D`.
        factor_constraint: projects each orthogonal factor, as a matrix, after a step; `"stiefel"` or an object.
        execution: `"chain"` runs the stages; `"compose"` builds the dense kernel and runs one convolution; `"auto"`
            takes the one with fewer MACs at these ranks and strides.
        recompute: bool; `True` drops the tensors between the stages in training and computes them again for the
            gradient (`keras.remat`): less memory, more time.
        **kwargs: `name`, `dtype`, `trainable`.

    Raises:
        ValueError: for an unknown format or one for other dimensions, ranks out of range, strides and dilation both
            above 1, or arguments that the stock layer refuses.

    Example:

    >>> layer = elrt_keras.layers.LowRankConv2D(32, 3, ranks=0.25, format="spatial_svd", padding="same")
    >>> layer(np.zeros((1, 8, 8, 16), dtype="float32")).shape == (1, 8, 8, 32)
    True
    >>> layer.ranks, [tuple(factor.shape) for factor in layer.factors]
    ((12,), [(3, 1, 16, 12), (1, 3, 12, 32)])

    Reference: Yang et al., arXiv 2401.10341 (low-rank training from scratch); see `elrt_keras.formats` for each format.
    """

    spatial_dims = 2
    stock_class = keras.layers.Conv2D


@keras.saving.register_keras_serializable("elrt_keras")
class LowRankConv1D(LowRankConv):
    """1-D convolution with a kernel of low-rank factors: `LowRankConv2D` with one spatial axis.

    Input: `(batch, steps, C_in)` for `channels_last`, `(batch, C_in, steps)` for `channels_first`. Arguments and errors
    are those of `LowRankConv2D`; `padding` may be `"causal"`.

    Example:

    >>> layer = elrt_keras.layers.LowRankConv1D(32, 3, ranks=4, format="svd", padding="causal")
    >>> layer(np.zeros((1, 8, 16), dtype="float32")).shape == (1, 8, 32)
    True
    """

    spatial_dims = 1
    stock_class = keras.layers.Conv1D


@keras.saving.register_keras_serializable("elrt_keras")
class LowRankConv3D(LowRankConv):
    """3-D convolution with a kernel of low-rank factors: `LowRankConv2D` with three spatial axes.

    Input: `(batch, depth, height, width, C_in)` for `channels_last`, `(batch, C_in, depth, height, width)` for
    `channels_first`. Arguments and errors are those of `LowRankConv2D`.

    Example:

    >>> layer = elrt_keras.layers.LowRankConv3D(32, 3, ranks=(4, 8), format="tucker2", padding="same")
    >>> layer(np.zeros((1, 4, 8, 8, 16), dtype="float32")).shape == (1, 4, 8, 8, 32)
    True
    """

    spatial_dims = 3
    stock_class = keras.layers.Conv3D
