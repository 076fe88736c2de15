"""The low-rank convolution layers, by format and dimension."""

import keras

from elrt_keras.layers.factorized_conv import FactorizedConv

_TUCKER2 = """{dims}-D convolution with a Tucker-2 kernel: a 1{ones} convolution, a small core, a 1{ones} convolution.

    `W[…, p, q] = Σ_a Σ_b U_in[p, a] · G[…, a, b] · U_out[b, q]` with a ≤ r_in, b ≤ r_out, p over C_in, q over C_out.

    MACs of one example: `size_in·C_in·r_in + size_out·(K·r_in·r_out + r_out·C_out)`, where `size` counts spatial
    positions and K = ∏ kernel_size; dense: `size_out·K·C_in·C_out`.

    Input: `(batch, {axes}, C_in)` for `channels_last`, `(batch, C_in, {axes})` for `channels_first`. Output: the same
    with the sizes and channels of the dense convolution.

    Args:
        filters: int, C_out.
        kernel_size: int or tuple of {dims} ints.
        ranks: `(r_in, r_out)`; or an int for both; or a float in (0, 1], a fraction of the full ranks `(C_in, C_out)`,
            rounded up.
        strides, padding, data_format, dilation_rate, activation, use_bias: as in `keras.layers.Conv{dims}D`.
        groups: 1. More is refused: groups share no factors.
        factor_initializer: an initializer of `elrt_keras.initializers` (all factors together) or of Keras (each factor
            on its own), by name or object.
        factor_regularizer: acts on each orthogonal factor (`U_in` as C_in × r_in, `U_out` as r_out × C_out), not on
            the core.
        kernel_regularizer: acts on the *composed* kernel; `L2(λ)` is Frobenius decay, computed without composing.
        bias_initializer, bias_regularizer, bias_constraint, activity_regularizer: as in `keras.layers.Conv{dims}D`.
        factor_constraint: projects each orthogonal factor, as a matrix, after an optimizer step.
        execution: `"chain"` runs the three convolutions, `"compose"` builds the dense kernel and runs one, `"auto"`
            takes the one with fewer MACs when the layer is built.
        **kwargs: `name`, `dtype`, `trainable`.

    Raises:
        ValueError: for ranks out of range, `groups` above 1, strides and dilation both above 1, or what the stock
            layer refuses.

    Example:

    >>> layer = elrt_keras.layers.Tucker2Conv{dims}D(32, 3, ranks=(8, 12), padding="same")
    >>> layer(np.zeros({example}, dtype="float32")).shape == {example}[:-1] + (32,)
    True

    Reference: ELRT, arXiv 2401.10341; Kim et al., arXiv 1511.06530 (the chain of convolutions).
    """


def _document(dims):
    example = (1, *(8,) * dims, 16)
    axes = ", ".join(("depth", "height", "width")[-dims:]) if dims > 1 else "steps"
    return _TUCKER2.format(dims=dims, ones="×1" * (dims - 1), axes=axes, example=example)


@keras.saving.register_keras_serializable("elrt_keras")
class Tucker2Conv1D(FactorizedConv):
    __doc__ = _document(1)
    format_name = "tucker2"
    spatial_dims = 1


@keras.saving.register_keras_serializable("elrt_keras")
class Tucker2Conv2D(FactorizedConv):
    __doc__ = _document(2)
    format_name = "tucker2"
    spatial_dims = 2


@keras.saving.register_keras_serializable("elrt_keras")
class Tucker2Conv3D(FactorizedConv):
    __doc__ = _document(3)
    format_name = "tucker2"
    spatial_dims = 3


_LEAVES = (Tucker2Conv1D, Tucker2Conv2D, Tucker2Conv3D)


def layer_class(format_name, spatial_dims):
    """The layer of a format and dimension, or `None` where there is none."""
    for leaf in _LEAVES:
        if (leaf.format_name, leaf.spatial_dims) == (format_name, spatial_dims):
            return leaf
    return None
