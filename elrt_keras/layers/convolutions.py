"""The low-rank convolution layers, one class per format and number of spatial axes."""

import functools
from collections.abc import Callable
from typing import Any

import keras

from elrt_keras import formats
from elrt_keras.layers.factorized import FactorizedLayer
from elrt_keras.layers.factorized_conv import FactorizedConv
from elrt_keras.layers.low_rank_conv import LowRankConv1D, LowRankConv2D, LowRankConv3D
from elrt_keras.layers.low_rank_dense import LowRankDense


@keras.saving.register_keras_serializable("elrt_keras")
class Tucker2Conv2D(FactorizedConv):
    """2-D convolution with a Tucker-2 kernel: a 1×1 convolution, a small core, a 1×1 convolution.

    `W[…, p, q] = Σ_a Σ_b U_in[p, a] · G[…, a, b] · U_out[b, q]` with a ≤ r_in, b ≤ r_out, p over C_in, q over C_out.

    MACs of one example: `size_in·C_in·r_in + size_out·(K·r_in·r_out + r_out·C_out)`, where `size` counts spatial
    positions and K = ∏ kernel_size; dense: `size_out·K·C_in·C_out`.

    Shapes and errors are those of `LowRankConv2D`.

    Args:
        filters, kernel_size: C_out and the size of the kernel, as in `keras.layers.Conv2D`.
        ranks: `(r_in, r_out)`, at most `(C_in, C_out)`, or one number for both; a float in
            (0, 1] is a fraction of the full rank, rounded up.
        factor_regularizer, factor_constraint: act on `U_in` (C_in × r_in) and `U_out` (r_out × C_out), not the core.
        strides, …, **kwargs: all others are those of `LowRankConv2D`, except `format`.

    Example:

    >>> layer = elrt_keras.layers.Tucker2Conv2D(32, 3, ranks=4, padding="same")
    >>> layer(np.zeros((1, 8, 8, 16), dtype="float32")).shape == (1, 8, 8, 32)
    True

    Reference: ELRT, arXiv 2401.10341; Kim et al., arXiv 1511.06530 (the chain of convolutions).
    """

    format_name = "tucker2"
    spatial_dims = 2
    stock_class = keras.layers.Conv2D


@keras.saving.register_keras_serializable("elrt_keras")
class Tucker2Conv1D(FactorizedConv):
    """`Tucker2Conv2D` with one spatial axis. Shapes, errors and other arguments are those of `LowRankConv1D`.

    Example:

    >>> layer = elrt_keras.layers.Tucker2Conv1D(32, 3, ranks=4, padding="same")
    >>> layer(np.zeros((1, 8, 16), dtype="float32")).shape == (1, 8, 32)
    True
    """

    format_name = "tucker2"
    spatial_dims = 1
    stock_class = keras.layers.Conv1D


@keras.saving.register_keras_serializable("elrt_keras")
class Tucker2Conv3D(FactorizedConv):
    """`Tucker2Conv2D` with three spatial axes. Shapes, errors and other arguments are those of `LowRankConv3D`.

    Example:

    >>> layer = elrt_keras.layers.Tucker2Conv3D(32, 3, ranks=4, padding="same")
    >>> layer(np.zeros((1, 8, 8, 8, 16), dtype="float32")).shape == (1, 8, 8, 8, 32)
    True
    """

    format_name = "tucker2"
    spatial_dims = 3
    stock_class = keras.layers.Conv3D


@keras.saving.register_keras_serializable("elrt_keras")
class SVDConv2D(FactorizedConv):
    """2-D convolution with a kernel of matrix rank r: a k×k convolution to r channels, a 1×1 convolution.

    `W[…, p, q] = Σ_a A[…, p, a] · B[a, q]` with a ≤ r, p over C_in, q over C_out.

    MACs of one example: `size_out·r·(K·C_in + C_out)` with K = ∏ kernel_size; dense: `size_out·K·C_in·C_out`.

    Shapes and errors are those of `LowRankConv2D`.

    Args:
        filters, kernel_size: C_out and the size of the kernel, as in `keras.layers.Conv2D`.
        ranks: `(r,)`, at most `min(K·C_in, C_out)`, or one number for r; a float in
            (0, 1] is a fraction of the full rank, rounded up.
        factor_regularizer, factor_constraint: act on `B` (r × C_out). `A` carries the singular values.
        strides, …, **kwargs: all others are those of `LowRankConv2D`, except `format`.

    Example:

    >>> layer = elrt_keras.layers.SVDConv2D(32, 3, ranks=4, padding="same")
    >>> layer(np.zeros((1, 8, 8, 16), dtype="float32")).shape == (1, 8, 8, 32)
    True

    Reference: Yang et al., arXiv 2004.09031 (SVD training); Wang et al., MLSys 2021 (Pufferfish).
    """

    format_name = "svd"
    spatial_dims = 2
    stock_class = keras.layers.Conv2D


@keras.saving.register_keras_serializable("elrt_keras")
class SVDConv1D(FactorizedConv):
    """`SVDConv2D` with one spatial axis. Shapes, errors and other arguments are those of `LowRankConv1D`.

    Example:

    >>> layer = elrt_keras.layers.SVDConv1D(32, 3, ranks=4, padding="same")
    >>> layer(np.zeros((1, 8, 16), dtype="float32")).shape == (1, 8, 32)
    True
    """

    format_name = "svd"
    spatial_dims = 1
    stock_class = keras.layers.Conv1D


@keras.saving.register_keras_serializable("elrt_keras")
class SVDConv3D(FactorizedConv):
    """`SVDConv2D` with three spatial axes. Shapes, errors and other arguments are those of `LowRankConv3D`.

    Example:

    >>> layer = elrt_keras.layers.SVDConv3D(32, 3, ranks=4, padding="same")
    >>> layer(np.zeros((1, 8, 8, 8, 16), dtype="float32")).shape == (1, 8, 8, 8, 32)
    True
    """

    format_name = "svd"
    spatial_dims = 3
    stock_class = keras.layers.Conv3D


@keras.saving.register_keras_serializable("elrt_keras")
class SpatialSVDConv2D(FactorizedConv):
    """2-D convolution with a spatially separated kernel: a k×1 convolution to r channels, a 1×k convolution.

    `W[h, w, p, q] = Σ_a V[h, p, a] · H[a, w, q]` with a ≤ r, p over C_in, q over C_out.

    MACs of one example: `size_mid·k_h·C_in·r + size_out·k_w·r·C_out`, `size_mid` being the positions after the
    vertical stage; dense: `size_out·k_h·k_w·C_in·C_out`.

    Shapes and errors are those of `LowRankConv2D`.

    Args:
        filters, kernel_size: C_out and the size of the kernel, as in `keras.layers.Conv2D`.
        ranks: `(r,)`, at most `min(k_h·C_in, k_w·C_out)`, or one number for r; a float in
            (0, 1] is a fraction of the full rank, rounded up.
        factor_regularizer, factor_constraint: act on `H` (r × k_w·C_out). `V` carries the singular values.
        strides, …, **kwargs: all others are those of `LowRankConv2D`, except `format`.

    Example:

    >>> layer = elrt_keras.layers.SpatialSVDConv2D(32, 3, ranks=4, padding="same")
    >>> layer(np.zeros((1, 8, 8, 16), dtype="float32")).shape == (1, 8, 8, 32)
    True

    Reference: Jaderberg et al., BMVC 2014.
    """

    format_name = "spatial_svd"
    spatial_dims = 2
    stock_class = keras.layers.Conv2D


@keras.saving.register_keras_serializable("elrt_keras")
class CPConv2D(FactorizedConv):
    """2-D convolution with a CP kernel: a 1×1 convolution to r channels, a depthwise convolution, a 1×1 convolution.

    `W[…, p, q] = Σ_a U[p, a] · D[…, a] · Z[a, q]` with a ≤ r, p over C_in, q over C_out.

    MACs of one example: `size_in·C_in·r + size_out·r·(K + C_out)` with K = ∏ kernel_size; dense:
    `size_out·K·C_in·C_out`.

    Shapes and errors are those of `LowRankConv2D`.

    Args:
        filters, kernel_size: C_out and the size of the kernel, as in `keras.layers.Conv2D`.
        ranks: `(r,)`, at most `min(K·C_in, K·C_out, C_in·C_out)`, or one number for r; a float in
            (0, 1] is a fraction of the full rank, rounded up.
        factor_regularizer, factor_constraint: act on `U` (C_in × r) and `Z` (r × C_out), not the depthwise factor.
        strides, …, **kwargs: all others are those of `LowRankConv2D`, except `format`.

    Example:

    >>> layer = elrt_keras.layers.CPConv2D(32, 3, ranks=4, padding="same")
    >>> layer(np.zeros((1, 8, 8, 16), dtype="float32")).shape == (1, 8, 8, 32)
    True

    Reference: Lebedev et al., arXiv 1412.6553; Astrid and Lee, arXiv 1701.07148 (the spatial axes together).
    """

    format_name = "cp"
    spatial_dims = 2
    stock_class = keras.layers.Conv2D


@keras.saving.register_keras_serializable("elrt_keras")
class CPConv1D(FactorizedConv):
    """`CPConv2D` with one spatial axis. Shapes, errors and other arguments are those of `LowRankConv1D`.

    Example:

    >>> layer = elrt_keras.layers.CPConv1D(32, 3, ranks=4, padding="same")
    >>> layer(np.zeros((1, 8, 16), dtype="float32")).shape == (1, 8, 32)
    True
    """

    format_name = "cp"
    spatial_dims = 1
    stock_class = keras.layers.Conv1D


@keras.saving.register_keras_serializable("elrt_keras")
class TensorTrainConv2D(FactorizedConv):
    """2-D convolution with a tensor-train kernel: a 1×1, a k×1, a 1×k and a 1×1 convolution.

    `W[h, w, p, q] = Σ_a Σ_b Σ_c U[p, a] · V[h, a, b] · H[w, b, c] · Z[c, q]` with a ≤ r_in, b ≤ r_mid, c ≤ r_out,
    p over C_in, q over C_out.

    MACs of one example: `size_in·C_in·r_in + size_mid·k_h·r_in·r_mid + size_out·(k_w·r_mid·r_out + r_out·C_out)`,
    `size_mid` being the positions after the vertical stage; dense: `size_out·K·C_in·C_out` with K = k_h·k_w.

    Shapes and errors are those of `LowRankConv2D`.

    Args:
        filters, kernel_size: C_out and the size of the kernel, as in `keras.layers.Conv2D`.
        ranks: `(r_in, r_mid, r_out)`, at most `(min(C_in, K·C_out), min(k_h·C_in, k_w·C_out), min(K·C_in, C_out))`,
            or one number for all three; a float in (0, 1] is a fraction of the full rank, rounded up.
        factor_regularizer, factor_constraint: act on `U` (C_in × r_in), `V` (k_h·r_in × r_mid) and `Z`
            (r_out × C_out), not `H`.
        strides, …, **kwargs: all others are those of `LowRankConv2D`, except `format`.

    Example:

    >>> layer = elrt_keras.layers.TensorTrainConv2D(32, 3, ranks=4, padding="same")
    >>> layer(np.zeros((1, 8, 8, 16), dtype="float32")).shape == (1, 8, 8, 32)
    True

    Reference: Oseledets, SIAM J. Sci. Comput. 33, 2011 (tensor train).
    """

    format_name = "tensor_train"
    spatial_dims = 2
    stock_class = keras.layers.Conv2D


# The stock layers that have low-rank twins, and their numbers of spatial axes.
STOCK = {keras.layers.Conv1D: 1, keras.layers.Conv2D: 2, keras.layers.Conv3D: 3, keras.layers.Dense: 0}
_CONVOLUTIONS = [leaf for leaf in FactorizedConv.__subclasses__() if leaf.format_name]
_LEAVES = {(leaf.format_name, leaf.spatial_dims): leaf for leaf in (LowRankDense, *_CONVOLUTIONS)}
_GENERAL = {leaf.spatial_dims: leaf for leaf in (LowRankConv1D, LowRankConv2D, LowRankConv3D)}


def layer_class(format_name: str, spatial_dims: int) -> type[FactorizedLayer] | None:
    """Returns the layer class of a format for `spatial_dims` spatial axes (0 for a dense layer), or `None`.

    A format without a class above, such as one that a user registers, has `LowRankConv1D`, `LowRankConv2D` and
    `LowRankConv3D`.
    """
    leaf = _LEAVES.get((format_name, spatial_dims))
    if leaf is None and spatial_dims in formats.get(format_name).spatial_dims:
        return _GENERAL.get(spatial_dims)
    return leaf


def twin_of(layer: keras.layers.Layer, format_name: str) -> Callable[..., Any] | None:
    """Returns the constructor of a stock layer's low-rank twin, `twin(ranks=…)`, or `None` if the format has none.

    Raises:
        ValueError: if `layer` has a property that no low-rank layer can take over.
    """
    target = layer_class(format_name, STOCK[type(layer)])
    if target is None:
        return None
    arguments = target.dense_arguments(layer)
    if target.format_name is None:
        arguments["format"] = format_name
    return functools.partial(target, **arguments)
