"""Tucker-2: a 1×1 convolution, a small k×k core, and a 1×1 convolution.

    W[…, p, q] = Σ_{a ≤ r_in} Σ_{b ≤ r_out} U_in[p, a] · G[…, a, b] · U_out[b, q]

with p over C_in and q over C_out. Source: ELRT, arXiv 2401.10341 (the kernel as a 4-D tensor); the chain of three
convolutions goes back to Kim et al., arXiv 1511.06530.
"""

import math
from collections.abc import Sequence

import numpy as np
from keras import ops

from elrt_keras.formats.arrays import MatrixView, Tensor, as_factors
from elrt_keras.formats.base import Format, register
from elrt_keras.formats.chain import Shape, Stage
from elrt_keras.formats.errors import Errors, rounded
from elrt_keras.formats.iterative import tensorly_on_numpy

_TOLERANCE = 1e-6
# Number of ranks of one side at which errors are computed: the second number for more than `_WIDE` channels.
_LOOKED_AT, _LOOKED_AT_OF_WIDE, _WIDE = 64, 16, 128
_LARGE, _TOLERANCE_OF_LARGE = 2**18, 1e-4  # elements of a kernel: 170 channels to 170 channels at 3×3


@register
class Tucker2(Format):
    """Tucker-2 with ranks `(r_in, r_out)`.

    Factors: `U_in (1…1, C_in, r_in)`, core `G (*kernel_size, r_in, r_out)`, `U_out (1…1, r_out, C_out)`.
    Orthogonality applies to `U_in` (C_in × r_in, orthonormal columns) and `U_out` (r_out × C_out, orthonormal
    rows), not to the core.
    """

    name = "tucker2"
    spatial_dims = (1, 2, 3)
    rank_names = ("r_in", "r_out")
    factor_names = ("factor_in", "core", "factor_out")
    core_index = 1

    def max_ranks(self, kernel_shape: Shape) -> tuple[int, ...]:
        return tuple(kernel_shape[-2:])

    def usable_ranks(self, kernel_shape: Shape, ranks: Sequence[int]) -> tuple[int, ...]:
        """r_in ≤ K·r_out and r_out ≤ K·r_in: unfolded, the core `(K, r_in, r_out)` has no higher rank."""
        positions = math.prod(kernel_shape[:-2])
        r_in = min(ranks[0], positions * ranks[1])
        return r_in, min(ranks[1], positions * r_in)

    def factor_shapes(self, kernel_shape: Shape, ranks: Sequence[int]) -> list[tuple[int, ...]]:
        *kernel_size, in_channels, out_channels = kernel_shape
        r_in, r_out = ranks
        ones = (1,) * len(kernel_size)
        return [(*ones, in_channels, r_in), (*kernel_size, r_in, r_out), (*ones, r_out, out_channels)]

    def stages(self, kernel_shape: Shape, ranks: Sequence[int], strides: Shape, dilation_rate: Shape) -> list[Stage]:
        *kernel_size, in_channels, out_channels = kernel_shape
        r_in, r_out = ranks
        ones = (1,) * len(kernel_size)
        return [
            Stage(ones, in_channels, r_in, ones, ones),
            Stage(tuple(kernel_size), r_in, r_out, tuple(strides), tuple(dilation_rate)),
            Stage(ones, r_out, out_channels, ones, ones),
        ]

    def decompose(self, kernel: np.ndarray, ranks: Sequence[int]) -> list[np.ndarray]:
        """HOSVD followed by higher-order orthogonal iteration (TensorLy's partial Tucker decomposition)."""
        from tensorly.decomposition import partial_tucker  # imported here for the reason in `tensorly_on_numpy`

        kernel = np.asarray(kernel)
        modes = (kernel.ndim - 2, kernel.ndim - 1)
        with tensorly_on_numpy():
            (core, (left, right)), _ = partial_tucker(
                kernel.astype("float64"),
                rank=list(ranks),
                modes=modes,
                n_iter_max=50,
                tol=_tolerance(kernel),
                random_state=0,
            )
        return as_factors((left, core, right.T), self.factor_shapes(kernel.shape, ranks), kernel.dtype)

    def errors(self, kernel: np.ndarray) -> Errors:
        """Errors after one step of the iteration, for all ranks at once. The step starts from the better side.

        With the leading r_out directions V of the unfolding: Σ_{i > r_in} λ_i of the Gram matrix of W·V along C_in. The
        other side works likewise. `decompose` continues from there and ends with errors a few percent lower.
        """
        kernel = np.asarray(kernel, "float64").reshape(-1, *kernel.shape[-2:])
        captured = np.maximum(_captured(kernel), _captured(kernel.transpose(0, 2, 1)).T)
        norm = captured[-1, -1]
        table = rounded(1.0 - captured / norm) if norm > 0 else np.zeros_like(captured)
        return lambda ranks: float(table[ranks[0] - 1, ranks[1] - 1])

    def orthogonal_factors(self, spatial_dims: int) -> list[MatrixView]:
        rows, columns = (spatial_dims,), (spatial_dims + 1,)
        ones = tuple(range(spatial_dims))
        return [MatrixView(0, ones + rows, columns), MatrixView(2, ones + rows, columns)]

    def unfoldings(self, kernel: np.ndarray) -> list[np.ndarray]:
        """Mode C_in × rest and mode C_out × rest."""
        return [np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1) for axis in (-2, -1)]

    def truncate(self, factors: Sequence[Tensor], ranks: Sequence[int]) -> list[np.ndarray]:
        """Orthonormalises both factor matrices, moves their remainders into the core, and decomposes the small core.

        With U_in = Q₁R₁ and U_out = R₂ᵀQ₂ᵀ, W = Q₁(R₁·G·R₂ᵀ)Q₂ᵀ. The best approximation of the bracket gives the best
        approximation of W.
        """
        factor_in, core, factor_out = (np.asarray(ops.convert_to_numpy(factor)) for factor in factors)
        q_in, r_in = np.linalg.qr(factor_in.reshape(factor_in.shape[-2:]).astype("float64"))
        q_out, r_out = np.linalg.qr(factor_out.reshape(factor_out.shape[-2:]).T.astype("float64"))
        small_in, small_core, small_out = self.decompose(r_in @ core @ r_out.T, ranks)
        return [
            np.ascontiguousarray(factor, dtype=core.dtype)
            for factor in (q_in @ small_in, small_core, small_out @ q_out.T)
        ]


def _captured(kernel):
    """Squared norm that ranks `(r_in, r_out)` capture, as an array `(C_in, C_out)`.

    It takes the leading directions of the outputs, and then the best directions of the inputs. If there are many output
    directions, it computes the norm at some of them and interpolates between these.
    """
    _, in_channels, out_channels = kernel.shape
    directions = np.linalg.eigh(np.einsum("kpq,kpr->qr", kernel, kernel))[1][:, ::-1]
    turned = np.moveaxis(kernel @ directions, 0, 1)  # (C_in, K, C_out)
    count = _LOOKED_AT if max(in_channels, out_channels) <= _WIDE else _LOOKED_AT_OF_WIDE
    ranks = np.unique(np.linspace(1, out_channels, min(out_channels, count)).round().astype(int))
    columns, gram, before = [], np.zeros((in_channels, in_channels)), 0
    for rank in ranks:
        more = turned[:, :, before:rank].reshape(in_channels, -1)
        gram, before = gram + more @ more.T, rank
        columns.append(np.cumsum(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)))
    every = np.arange(1, out_channels + 1)
    return np.stack([np.interp(every, ranks, row) for row in np.stack(columns, axis=1)])


def _tolerance(kernel):
    """Smallest fall of the relative error at which the iteration continues.

    For a large kernel a step takes seconds, and the last steps gain little (docs/performance.md, "Decomposing").
    """
    return _TOLERANCE if kernel.size <= _LARGE else _TOLERANCE_OF_LARGE
