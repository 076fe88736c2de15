"""The low-rank convolution layers, by format and dimension."""

import functools

import keras

from elrt_keras import formats
from elrt_keras.layers.factorized import FactorizedLayer
from elrt_keras.layers.factorized_conv import FactorizedConv
from elrt_keras.layers.low_rank_dense import LowRankDense

_STOCK = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}

_DOCUMENT = """{dims}-D convolution {title}

    {formula}

    {macs}

    Input: `(batch, {axes}, C_in)` for `channels_last`, `(batch, C_in, {axes})` for `channels_first`. Output: the same
    with the sizes and channels of the dense convolution.

    Args:
        filters: int, C_out.
        kernel_size: int or tuple of {dims} ints.
        ranks: `({ranks})`; or an int for {each}; or a float in (0, 1], a fraction of the full ranks
            `{full}`, rounded up.
        strides, padding, data_format, dilation_rate, activation, use_bias: as in `keras.layers.Conv{dims}D`.
        groups: int that divides C_in and C_out. Each group is a kernel of C_in/groups to C_out/groups channels with
            factors of its own, all at the ranks given; full ranks are those of such a kernel.
        factor_initializer: an initializer of `elrt_keras.initializers` (all factors together) or of Keras (each factor
            on its own), by name or object.
        factor_regularizer: acts on each orthogonal factor, read as a matrix: {orthogonal}. By name (`"so"`, `"dso"`,
            `"mc"`, `"srip"`) or object, see `elrt_keras.regularizers`.
        kernel_regularizer: acts on the *composed* kernel; `L2(λ)` is Frobenius decay, computed without composing.
        bias_initializer, bias_regularizer, bias_constraint, activity_regularizer: as in `keras.layers.Conv{dims}D`.
        factor_constraint: projects each orthogonal factor, as a matrix, after a step; `"stiefel"` or an object.
        execution: `"chain"` runs the stages, `"compose"` builds the dense kernel and runs one convolution, `"auto"`
            takes the one with fewer MACs when the layer is built.
        recompute: whether training drops what lies between the stages and computes it again for the gradient
            (`keras.remat`): less memory, more time.
        **kwargs: `name`, `dtype`, `trainable`.

    Raises:
        ValueError: for ranks out of range, strides and dilation both above 1, or what the stock
            layer refuses.

    Example:

    >>> layer = elrt_keras.layers.{name}(32, 3, ranks=4, padding="same")
    >>> layer(np.zeros({example}, dtype="float32")).shape == {example}[:-1] + (32,)
    True

    Reference: {reference}.
    """

_TEXTS = {
    "tucker2": {
        "title": "with a Tucker-2 kernel: a 1×1 convolution, a small core, a 1×1 convolution.",
        "formula": "`W[…, p, q] = Σ_a Σ_b U_in[p, a] · G[…, a, b] · U_out[b, q]` with a ≤ r_in, b ≤ r_out, p over C_in,"
        " q over C_out.",
        "macs": "MACs of one example: `size_in·C_in·r_in + size_out·(K·r_in·r_out + r_out·C_out)`, where `size` counts"
        " spatial\n    positions and K = ∏ kernel_size; dense: `size_out·K·C_in·C_out`.",
        "full": "(C_in, C_out)",
        "orthogonal": "`U_in` (C_in × r_in) and\n            `U_out` (r_out × C_out), not the core",
        "reference": "ELRT, arXiv 2401.10341; Kim et al., arXiv 1511.06530 (the chain of convolutions)",
    },
    "svd": {
        "title": "with a kernel of matrix rank r: a k×k convolution to r channels, a 1×1 convolution.",
        "formula": "`W[…, p, q] = Σ_a A[…, p, a] · B[a, q]` with a ≤ r, p over C_in, q over C_out.",
        "macs": "MACs of one example: `size_out·r·(K·C_in + C_out)` with K = ∏ kernel_size; dense:"
        " `size_out·K·C_in·C_out`.",
        "full": "(min(K·C_in, C_out),)",
        "orthogonal": "`B` (r × C_out). `A` carries\n            the singular values",
        "reference": "Yang et al., arXiv 2004.09031 (SVD training); Wang et al., MLSys 2021 (Pufferfish)",
    },
    "spatial_svd": {
        "title": "with a spatially separated kernel: a k×1 convolution to r channels, a 1×k convolution.",
        "formula": "`W[h, w, p, q] = Σ_a V[h, p, a] · H[a, w, q]` with a ≤ r, p over C_in, q over C_out.",
        "macs": "MACs of one example: `size_mid·k_h·C_in·r + size_out·k_w·r·C_out`, `size_mid` being the positions"
        " after the\n    vertical stage; dense: `size_out·k_h·k_w·C_in·C_out`.",
        "full": "(min(k_h·C_in, k_w·C_out),)",
        "orthogonal": "`H` (r × k_w·C_out). `V`\n            carries the singular values",
        "reference": "Jaderberg et al., BMVC 2014",
    },
    "cp": {
        "title": "with a CP kernel: a 1×1 convolution to r channels, a depthwise convolution, a 1×1 convolution.",
        "formula": "`W[…, p, q] = Σ_a U[p, a] · D[…, a] · Z[a, q]` with a ≤ r, p over C_in, q over C_out.",
        "macs": "MACs of one example: `size_in·C_in·r + size_out·r·(K + C_out)` with K = ∏ kernel_size; dense:"
        " `size_out·K·C_in·C_out`.",
        "full": "(min(K·C_in, K·C_out, C_in·C_out),)",
        "orthogonal": "`U` (C_in × r) and `Z`\n            (r × C_out), not the depthwise factor",
        "reference": "Lebedev et al., arXiv 1412.6553; Astrid and Lee, arXiv 1701.07148 (the spatial axes together)",
    },
    "tensor_train": {
        "title": "with a tensor-train kernel: a 1×1, a k×1, a 1×k and a 1×1 convolution.",
        "formula": "`W[h, w, p, q] = Σ_a Σ_b Σ_c U[p, a] · V[h, a, b] · H[w, b, c] · Z[c, q]` with a ≤ r_in, b ≤ r_mid,"
        " c ≤ r_out, p over C_in, q over C_out.",
        "macs": "MACs of one example: `size_in·C_in·r_in + size_mid·k_h·r_in·r_mid + size_out·(k_w·r_mid·r_out +"
        " r_out·C_out)`,\n    `size_mid` being the positions after the vertical stage; dense:"
        " `size_out·K·C_in·C_out` with K = k_h·k_w.",
        "full": "(min(C_in, K·C_out), min(k_h·C_in, k_w·C_out), min(K·C_in, C_out))",
        "orthogonal": "`U` (C_in × r_in), `V`\n            (k_h·r_in × r_mid) and `Z` (r_out × C_out), not `H`",
        "reference": "Oseledets, SIAM J. Sci. Comput. 33, 2011 (tensor train)",
    },
}


def _document(format_name, dims, name):
    rank_names = formats.get(format_name).rank_names
    return _DOCUMENT.format(
        dims=dims,
        name=name,
        axes=", ".join(("depth", "height", "width")[-dims:]) if dims > 1 else "steps",
        ranks=", ".join(rank_names) + ("," if len(rank_names) == 1 else ""),
        each="every one of them" if len(rank_names) > 1 else "r",
        example=(1, *(8,) * dims, 16),
        **_TEXTS[format_name],
    )


@keras.saving.register_keras_serializable("elrt_keras")
class Tucker2Conv1D(FactorizedConv):
    __doc__ = _document("tucker2", 1, "Tucker2Conv1D")
    format_name = "tucker2"
    spatial_dims = 1
    stock_class = _STOCK[1]


@keras.saving.register_keras_serializable("elrt_keras")
class Tucker2Conv2D(FactorizedConv):
    __doc__ = _document("tucker2", 2, "Tucker2Conv2D")
    format_name = "tucker2"
    spatial_dims = 2
    stock_class = _STOCK[2]


@keras.saving.register_keras_serializable("elrt_keras")
class Tucker2Conv3D(FactorizedConv):
    __doc__ = _document("tucker2", 3, "Tucker2Conv3D")
    format_name = "tucker2"
    spatial_dims = 3
    stock_class = _STOCK[3]


@keras.saving.register_keras_serializable("elrt_keras")
class SVDConv1D(FactorizedConv):
    __doc__ = _document("svd", 1, "SVDConv1D")
    format_name = "svd"
    spatial_dims = 1
    stock_class = _STOCK[1]


@keras.saving.register_keras_serializable("elrt_keras")
class SVDConv2D(FactorizedConv):
    __doc__ = _document("svd", 2, "SVDConv2D")
    format_name = "svd"
    spatial_dims = 2
    stock_class = _STOCK[2]


@keras.saving.register_keras_serializable("elrt_keras")
class SVDConv3D(FactorizedConv):
    __doc__ = _document("svd", 3, "SVDConv3D")
    format_name = "svd"
    spatial_dims = 3
    stock_class = _STOCK[3]


@keras.saving.register_keras_serializable("elrt_keras")
class SpatialSVDConv2D(FactorizedConv):
    __doc__ = _document("spatial_svd", 2, "SpatialSVDConv2D")
    format_name = "spatial_svd"
    spatial_dims = 2
    stock_class = _STOCK[2]


@keras.saving.register_keras_serializable("elrt_keras")
class CPConv1D(FactorizedConv):
    __doc__ = _document("cp", 1, "CPConv1D")
    format_name = "cp"
    spatial_dims = 1
    stock_class = _STOCK[1]


@keras.saving.register_keras_serializable("elrt_keras")
class CPConv2D(FactorizedConv):
    __doc__ = _document("cp", 2, "CPConv2D")
    format_name = "cp"
    spatial_dims = 2
    stock_class = _STOCK[2]


@keras.saving.register_keras_serializable("elrt_keras")
class TensorTrainConv2D(FactorizedConv):
    __doc__ = _document("tensor_train", 2, "TensorTrainConv2D")
    format_name = "tensor_train"
    spatial_dims = 2
    stock_class = _STOCK[2]


_LEAVES = {(leaf.format_name, leaf.spatial_dims): leaf for leaf in (LowRankDense, *FactorizedConv.__subclasses__())}


@functools.cache
def layer_class(format_name: str, spatial_dims: int) -> type[FactorizedLayer] | None:
    """The layer of a format and dimension (0 for a dense layer), or `None` where the format has none.

    A format without a leaf above, such as one that a user registers, gets one made from `FactorizedConv`.
    """
    if (format_name, spatial_dims) in _LEAVES:
        return _LEAVES[format_name, spatial_dims]
    if spatial_dims == 0 or spatial_dims not in formats.get(format_name).spatial_dims:
        return None
    name = "".join(word.capitalize() for word in format_name.split("_")) + f"Conv{spatial_dims}D"
    leaf = type(name, (FactorizedConv,), {"__doc__": FactorizedConv.__doc__, "format_name": format_name})
    leaf.spatial_dims, leaf.stock_class = spatial_dims, _STOCK[spatial_dims]
    return keras.saving.register_keras_serializable("elrt_keras")(leaf)
