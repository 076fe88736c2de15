"""Tensor train: a 1×1, a k×1, a 1×k and a 1×1 convolution.

    W[h, w, p, q] = Σ_a Σ_b Σ_c U[p, a] · V[h, a, b] · H[w, b, c] · Z[c, q]

with a ≤ r_in, b ≤ r_mid, c ≤ r_out, p over C_in, q over C_out: the tensor-train decomposition (Oseledets, SIAM J. Sci.
Comput. 33, 2011) of the kernel with its modes in the order C_in, k_h, k_w, C_out.
"""

import functools
from collections.abc import Sequence

import numpy as np

from elrt_keras.formats.arrays import MatrixView, as_factors, leading_rows
from elrt_keras.formats.base import Format, register
from elrt_keras.formats.chain import Shape, Stage
from elrt_keras.formats.errors import Errors, rounded

_LARGE = 2**18  # elements of a kernel up to which errors are computed for each choice of ranks


@register
class TensorTrain(Format):
    """Tensor train with ranks `(r_in, r_mid, r_out)`.

    Factors: `U (1, 1, C_in, r_in)`, vertical `V (k_h, 1, r_in, r_mid)`, horizontal `H (1, k_w, r_mid, r_out)`, which
    carries the scale, and `Z (1, 1, r_out, C_out)`. Orthogonality applies to `U` (C_in × r_in), `V`
    (k_h·r_in × r_mid) and `Z` (r_out × C_out): the train in canonical form around `H`.
    """

    name = "tensor_train"
    spatial_dims = (2,)
    rank_names = ("r_in", "r_mid", "r_out")
    factor_names = ("factor_in", "vertical", "horizontal", "factor_out")
    core_index = 2

    def max_ranks(self, kernel_shape: Shape) -> tuple[int, ...]:
        height, width, in_channels, out_channels = kernel_shape
        return (
            min(in_channels, height * width * out_channels),
            min(in_channels * height, width * out_channels),
            min(in_channels * height * width, out_channels),
        )

    def usable_ranks(self, kernel_shape: Shape, ranks: Sequence[int]) -> tuple[int, ...]:
        """r_mid ≤ k_h·r_in, r_mid ≤ k_w·r_out, r_in ≤ k_h·r_mid, r_out ≤ k_w·r_mid: the unfoldings of `V` and `H`."""
        height, width = kernel_shape[:2]
        r_in, r_mid, r_out = ranks
        r_mid = min(r_mid, height * r_in, width * r_out)
        return min(r_in, height * r_mid), r_mid, min(r_out, width * r_mid)

    def factor_shapes(self, kernel_shape: Shape, ranks: Sequence[int]) -> list[tuple[int, ...]]:
        height, width, in_channels, out_channels = kernel_shape
        r_in, r_mid, r_out = ranks
        return [
            (1, 1, in_channels, r_in),
            (height, 1, r_in, r_mid),
            (1, width, r_mid, r_out),
            (1, 1, r_out, out_channels),
        ]

    def stages(self, kernel_shape: Shape, ranks: Sequence[int], strides: Shape, dilation_rate: Shape) -> list[Stage]:
        height, width, in_channels, out_channels = kernel_shape
        r_in, r_mid, r_out = ranks
        return [
            Stage((1, 1), in_channels, r_in, (1, 1), (1, 1)),
            Stage((height, 1), r_in, r_mid, (strides[0], 1), (dilation_rate[0], 1)),
            Stage((1, width), r_mid, r_out, (1, strides[1]), (1, dilation_rate[1])),
            Stage((1, 1), r_out, out_channels, (1, 1), (1, 1)),
        ]

    def unfoldings(self, kernel: np.ndarray) -> list[np.ndarray]:
        height, width, in_channels, out_channels = kernel.shape
        train = kernel.transpose(2, 0, 1, 3)
        return [
            train.reshape(in_channels, -1),
            train.reshape(in_channels * height, -1),
            train.reshape(-1, out_channels),
        ]

    def decompose(self, kernel: np.ndarray, ranks: Sequence[int]) -> list[np.ndarray]:
        """TT-SVD: a sequence of truncated SVDs from both ends towards the horizontal factor."""
        kernel = np.asarray(kernel)
        height, width, _, out_channels = kernel.shape
        r_in, r_mid, r_out = ranks
        rest = self.unfoldings(kernel.astype("float64"))[0]
        left = leading_rows(rest.T, r_in).T
        rest = (left.T @ rest).reshape(r_in * height, width * out_channels)
        vertical = leading_rows(rest.T, r_mid).T
        rest = (vertical.T @ rest).reshape(r_mid * width, out_channels)
        right = leading_rows(rest, r_out)
        horizontal = (rest @ right.T).reshape(r_mid, width, r_out).transpose(1, 0, 2)
        vertical = vertical.reshape(r_in, height, r_mid).transpose(1, 0, 2)
        factors = (left, vertical, horizontal, right)
        return as_factors(factors, self.factor_shapes(kernel.shape, ranks), kernel.dtype)

    def errors(self, kernel: np.ndarray) -> Errors:
        """Exact errors of `decompose`. For large kernels it returns the estimate from the spectra, which is higher."""
        kernel = np.asarray(kernel, "float64")
        norm = np.sum(kernel**2)
        if norm == 0 or kernel.size > _LARGE:
            return super().errors(kernel)
        height, width, in_channels, out_channels = kernel.shape
        rest = self.unfoldings(kernel)[0]
        turned = np.linalg.svd(rest, full_matrices=False)[0].T @ rest

        @functools.cache
        def after_in(r_in):
            return np.linalg.svd(turned[:r_in].reshape(r_in * height, width * out_channels), full_matrices=False)[1:]

        @functools.cache
        def captured(r_in, r_mid):
            scales, rows = after_in(r_in)
            matrix = (scales[:r_mid, None] * rows[:r_mid]).reshape(-1, out_channels)
            return np.cumsum(np.maximum(np.linalg.eigvalsh(matrix.T @ matrix)[::-1], 0.0))

        return lambda ranks: float(rounded(1.0 - captured(ranks[0], ranks[1])[ranks[2] - 1] / norm))

    def orthogonal_factors(self, spatial_dims: int) -> list[MatrixView]:
        return [
            MatrixView(0, (0, 1, 2), (3,)),
            MatrixView(1, (0, 1, 2), (3,)),
            MatrixView(3, (0, 1, 2), (3,)),
        ]
