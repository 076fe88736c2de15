"""Spatial SVD: a k×1 convolution to r channels, and a 1×k convolution.

    W[h, w, p, q] = Σ_{a ≤ r} V[h, p, a] · H[a, w, q]

with the kernel as a matrix of k_h·C_in × k_w·C_out, p over C_in, q over C_out. Source: Jaderberg, Vedaldi, Zisserman,
"Speeding up Convolutional Neural Networks with Low Rank Expansions", BMVC 2014.
"""

from collections.abc import Sequence

import numpy as np

from elrt_keras.formats.arrays import MatrixView, as_factors, leading_rows
from elrt_keras.formats.base import Format, register
from elrt_keras.formats.chain import Shape, Stage


@register
class SpatialSVD(Format):
    """Spatial SVD with rank `(r,)`.

    Factors: vertical `V (k_h, 1, C_in, r)`, which carries the singular values, and horizontal `H (1, k_w, r, C_out)`.
    Orthogonality applies to `H`, as a matrix of r × k_w·C_out (orthonormal rows).
    """

    name = "spatial_svd"
    spatial_dims = (2,)
    rank_names = ("r",)
    factor_names = ("vertical", "horizontal")
    core_index = 0

    def max_ranks(self, kernel_shape: Shape) -> tuple[int, ...]:
        height, width, in_channels, out_channels = kernel_shape
        return (min(height * in_channels, width * out_channels),)

    def factor_shapes(self, kernel_shape: Shape, ranks: Sequence[int]) -> list[tuple[int, ...]]:
        height, width, in_channels, out_channels = kernel_shape
        return [(height, 1, in_channels, ranks[0]), (1, width, ranks[0], out_channels)]

    def stages(self, kernel_shape: Shape, ranks: Sequence[int], strides: Shape, dilation_rate: Shape) -> list[Stage]:
        height, width, in_channels, out_channels = kernel_shape
        return [
            Stage((height, 1), in_channels, ranks[0], (strides[0], 1), (dilation_rate[0], 1)),
            Stage((1, width), ranks[0], out_channels, (1, strides[1]), (1, dilation_rate[1])),
        ]

    def unfoldings(self, kernel: np.ndarray) -> list[np.ndarray]:
        height, width, in_channels, out_channels = kernel.shape
        return [kernel.transpose(0, 2, 1, 3).reshape(height * in_channels, width * out_channels)]

    def decompose(self, kernel: np.ndarray, ranks: Sequence[int]) -> list[np.ndarray]:
        """The truncated SVD, with the singular values in the vertical factor."""
        kernel = np.asarray(kernel)
        height, width, in_channels, out_channels = kernel.shape
        (matrix,) = self.unfoldings(kernel.astype("float64"))
        rows = leading_rows(matrix, ranks[0])
        horizontal = rows.reshape(ranks[0], width, out_channels).transpose(1, 0, 2)
        return as_factors((matrix @ rows.T, horizontal), self.factor_shapes(kernel.shape, ranks), kernel.dtype)

    def orthogonal_factors(self, spatial_dims: int) -> list[MatrixView]:
        return [MatrixView(1, rows=(2,), columns=(0, 1, 3))]
