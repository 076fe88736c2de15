"""Tucker-2: a 1×1 convolution, a small k×k core, and a 1×1 convolution.

    W[…, p, q] = Σ_{a ≤ r_in} Σ_{b ≤ r_out} U_in[p, a] · G[…, a, b] · U_out[b, q]

with p over C_in and q over C_out. Source: ELRT, arXiv 2401.10341 (the kernel as a 4-D tensor); the chain of three
convolutions goes back to Kim et al., arXiv 1511.06530.
"""

import numpy as np
from keras import ops

from elrt_keras.formats.base import Format, MatrixView, Stage, register


@register
class Tucker2(Format):
    """Tucker-2 with ranks `(r_in, r_out)`.

    Factors: `U_in (1…1, C_in, r_in)`, core `G (*kernel_size, r_in, r_out)`, `U_out (1…1, r_out, C_out)`.
    Orthogonality applies to `U_in` (C_in × r_in, orthonormal columns) and `U_out` (r_out × C_out, orthonormal
    rows), not to the core.
    """

    name = "tucker2"
    rank_names = ("r_in", "r_out")
    factor_names = ("factor_in", "core", "factor_out")
    core_index = 1

    def max_ranks(self, kernel_shape):
        return tuple(kernel_shape[-2:])

    def factor_shapes(self, kernel_shape, ranks):
        *kernel_size, in_channels, out_channels = kernel_shape
        r_in, r_out = ranks
        ones = (1,) * len(kernel_size)
        return [(*ones, in_channels, r_in), (*kernel_size, r_in, r_out), (*ones, r_out, out_channels)]

    def stages(self, kernel_shape, ranks, strides, dilation_rate):
        *kernel_size, in_channels, out_channels = kernel_shape
        r_in, r_out = ranks
        ones = (1,) * len(kernel_size)
        return [
            Stage(ones, in_channels, r_in, ones, ones),
            Stage(tuple(kernel_size), r_in, r_out, tuple(strides), tuple(dilation_rate)),
            Stage(ones, r_out, out_channels, ones, ones),
        ]

    def compose(self, factors):
        factor_in, core, factor_out = factors
        left = ops.reshape(factor_in, factor_in.shape[-2:])
        right = ops.reshape(factor_out, factor_out.shape[-2:])
        return ops.matmul(ops.matmul(left, core), right)

    def decompose(self, kernel, ranks):
        """HOSVD followed by higher-order orthogonal iteration (TensorLy's partial Tucker decomposition)."""
        # TensorLy brings SciPy along; importing it here keeps `import elrt_keras` as quick as `import keras`.
        import tensorly
        from tensorly.decomposition import partial_tucker

        kernel = np.asarray(kernel)
        modes = (kernel.ndim - 2, kernel.ndim - 1)
        with tensorly.backend_context("numpy"):
            (core, (left, right)), _ = partial_tucker(
                kernel.astype("float64"), rank=list(ranks), modes=modes, n_iter_max=50, tol=1e-6, random_state=0
            )
        ones = (1,) * (kernel.ndim - 2)
        factors = [left.reshape(*ones, *left.shape), core, right.T.reshape(*ones, *right.T.shape)]
        return [np.ascontiguousarray(factor, dtype=kernel.dtype) for factor in factors]

    def orthogonal_factors(self, spatial_dims):
        rows, columns = (spatial_dims,), (spatial_dims + 1,)
        ones = tuple(range(spatial_dims))
        return [MatrixView(0, ones + rows, columns), MatrixView(2, ones + rows, columns)]

    def squared_norm(self, factors):
        """‖W‖_F² = Σ ⟨(U_inᵀU_in) G (U_outU_outᵀ), G⟩: two small Gram matrices instead of the dense kernel."""
        factor_in, core, factor_out = factors
        left = ops.reshape(factor_in, factor_in.shape[-2:])
        right = ops.reshape(factor_out, factor_out.shape[-2:])
        gram_in = ops.matmul(ops.transpose(left), left)
        gram_out = ops.matmul(right, ops.transpose(right))
        return ops.sum(ops.multiply(ops.matmul(ops.matmul(gram_in, core), gram_out), core))
