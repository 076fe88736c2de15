"""SVD: a k×k convolution to r channels, and a 1×1 convolution.

    W[…, p, q] = Σ_{a ≤ r} A[…, p, a] · B[a, q]

with the kernel as a matrix of K·C_in × C_out, K = ∏ kernel_size, p over C_in, q over C_out. For a 1×1 convolution or a
dense layer this is the matrix format of Pufferfish (Wang et al., MLSys 2021) and of SVD training (Yang et al., arXiv
2004.09031).
"""

import math
from collections.abc import Sequence

import numpy as np

from elrt_keras.formats.arrays import MatrixView, as_factors, leading_rows
from elrt_keras.formats.base import Format, register
from elrt_keras.formats.chain import Shape, Stage


@register
class SVD(Format):
    """SVD of the K·C_in × C_out matrix with rank `(r,)`.

    Factors: `A (*kernel_size, C_in, r)`, which carries the singular values, and `B (1…1, r, C_out)`. Orthogonality
    applies only to `B` (orthonormal rows). If both factors were orthonormal, all singular values of the kernel would be
    equal.
    """

    name = "svd"
    spatial_dims = (0, 1, 2, 3)
    rank_names = ("r",)
    factor_names = ("core", "factor_out")
    core_index = 0

    def max_ranks(self, kernel_shape: Shape) -> tuple[int, ...]:
        *kernel_size, in_channels, out_channels = kernel_shape
        return (min(math.prod(kernel_size) * in_channels, out_channels),)

    def factor_shapes(self, kernel_shape: Shape, ranks: Sequence[int]) -> list[tuple[int, ...]]:
        *kernel_size, in_channels, out_channels = kernel_shape
        ones = (1,) * len(kernel_size)
        return [(*kernel_size, in_channels, ranks[0]), (*ones, ranks[0], out_channels)]

    def stages(self, kernel_shape: Shape, ranks: Sequence[int], strides: Shape, dilation_rate: Shape) -> list[Stage]:
        *kernel_size, in_channels, out_channels = kernel_shape
        ones = (1,) * len(kernel_size)
        return [
            Stage(tuple(kernel_size), in_channels, ranks[0], tuple(strides), tuple(dilation_rate)),
            Stage(ones, ranks[0], out_channels, ones, ones),
        ]

    def unfoldings(self, kernel: np.ndarray) -> list[np.ndarray]:
        return [kernel.reshape(-1, kernel.shape[-1])]

    def decompose(self, kernel: np.ndarray, ranks: Sequence[int]) -> list[np.ndarray]:
        """The truncated SVD, with the singular values in the first factor."""
        kernel = np.asarray(kernel)
        (matrix,) = self.unfoldings(kernel.astype("float64"))
        rows = leading_rows(matrix, ranks[0])
        return as_factors((matrix @ rows.T, rows), self.factor_shapes(kernel.shape, ranks), kernel.dtype)

    def orthogonal_factors(self, spatial_dims: int) -> list[MatrixView]:
        ones = tuple(range(spatial_dims))
        return [MatrixView(1, (*ones, spatial_dims), (spatial_dims + 1,))]
