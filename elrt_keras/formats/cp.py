"""CP: a 1×1 convolution to r channels, a depthwise k×k convolution, and a 1×1 convolution.

    W[…, p, q] = Σ_{a ≤ r} U[p, a] · D[…, a] · Z[a, q]

with p over C_in and q over C_out: the canonical polyadic decomposition of the kernel as a 3-way tensor
C_in × K × C_out (K = ∏ kernel_size). Source: Lebedev et al., arXiv 1412.6553. Astrid and Lee, arXiv 1701.07148, keep
the spatial axes together, as here.
"""

import math
from collections.abc import Sequence

import numpy as np
from keras import ops

from elrt_keras.formats.arrays import MatrixView, Tensor, as_factors, channel_product, contracted
from elrt_keras.formats.base import Format, register
from elrt_keras.formats.chain import Shape, Stage
from elrt_keras.formats.errors import Errors, between, rounded, tails_of
from elrt_keras.formats.iterative import tensorly_on_numpy

_ITERATIONS, _TOLERANCE = 200, 1e-8
_FEW_ITERATIONS, _LOOKED_AT = 12, 10  # for `errors`: steps of the iteration, and number of ranks to compute them at
# Kernels with more elements than `_LARGE` get their errors from a part of the kernel with about `_PART` channels.
_LARGE, _PART = 2**17, 64
# Up to this number, elements of the tensor times rank, all iterations and a second start are affordable. Above it, the
# iterations are halved.
_SMALL = 2**24


@register
class CP(Format):
    """CP with rank `(r,)`.

    Factors: `U (1…1, C_in, r)`, depthwise `D (*kernel_size, r, 1)`, which carries the scale, and `Z (1…1, r, C_out)`.
    Orthogonality applies to `U` (C_in × r) and `Z` (r × C_out). The full rank is `min(K·C_in, K·C_out, C_in·C_out)`:
    at that rank every tensor has an exact decomposition.
    """

    name = "cp"
    spatial_dims = (1, 2)
    rank_names = ("r",)
    factor_names = ("factor_in", "depthwise", "factor_out")
    core_index = 1

    def max_ranks(self, kernel_shape: Shape) -> tuple[int, ...]:
        *kernel_size, in_channels, out_channels = kernel_shape
        positions = math.prod(kernel_size)
        return (min(positions * in_channels, positions * out_channels, in_channels * out_channels),)

    def factor_shapes(self, kernel_shape: Shape, ranks: Sequence[int]) -> list[tuple[int, ...]]:
        *kernel_size, in_channels, out_channels = kernel_shape
        ones = (1,) * len(kernel_size)
        return [(*ones, in_channels, ranks[0]), (*kernel_size, ranks[0], 1), (*ones, ranks[0], out_channels)]

    def stages(self, kernel_shape: Shape, ranks: Sequence[int], strides: Shape, dilation_rate: Shape) -> list[Stage]:
        *kernel_size, in_channels, out_channels = kernel_shape
        ones, rank = (1,) * len(kernel_size), ranks[0]
        return [
            Stage(ones, in_channels, rank, ones, ones),
            Stage(tuple(kernel_size), rank, rank, tuple(strides), tuple(dilation_rate), depthwise=True),
            Stage(ones, rank, out_channels, ones, ones),
        ]

    def compose(self, factors: Sequence[Tensor]) -> Tensor:
        factor_in, depthwise, factor_out = factors
        weighted = ops.multiply(factor_in, ops.swapaxes(depthwise, -1, -2))
        return channel_product(weighted, ops.reshape(factor_out, factor_out.shape[-2:]))

    def squared_norm(self, factors: Sequence[Tensor]) -> Tensor:
        """⟨UᵀU ∘ DᵀD, ZZᵀ⟩, where ∘ is the elementwise product."""
        left, depthwise, right = (ops.reshape(f, (-1, n)) for f, n in zip(factors, _last_axes(factors)))
        grams = [contracted(matrix, matrix, [axis], [axis]) for matrix, axis in ((left, 0), (depthwise, 0), (right, 1))]
        return ops.sum(grams[0] * grams[1] * grams[2])

    def unfoldings(self, kernel: np.ndarray) -> list[np.ndarray]:
        """The narrower channel axis × rest. Its matrix rank bounds the CP rank from below."""
        axis = -2 if kernel.shape[-2] <= kernel.shape[-1] else -1
        return [np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)]

    def spectra(self, kernel: np.ndarray) -> list[np.ndarray]:
        """Squared weights of mutually orthogonal rank-one terms that add up to the kernel (see `_orthogonal_terms`)."""
        weights = _orthogonal_terms(_three_way(np.asarray(kernel, "float64")))[0] ** 2
        return [np.pad(weights, (0, self.max_ranks(kernel.shape)[0] - len(weights)))]

    def decompose(self, kernel: np.ndarray, ranks: Sequence[int]) -> list[np.ndarray]:
        """Alternating least squares (TensorLy's `parafac`), started from orthogonal rank-one terms.

        A small problem also gets a second run from TensorLy's own SVD start, and the better result is taken. If the
        orthogonal terms are exact already, they are the result.
        """
        kernel = np.asarray(kernel)
        return self._factors(kernel, _best_cp(_three_way(kernel.astype("float64")), ranks[0]))

    def errors(self, kernel: np.ndarray) -> Errors:
        """Errors after a few steps of alternating least squares at ten ranks, interpolated between them.

        For a large kernel the errors are those of its orthogonal terms, times a correction. The correction is the ratio
        of both methods on a part of the channels.
        """
        tensor = _three_way(np.asarray(kernel, "float64"))
        if not np.any(tensor):
            return lambda ranks: 0.0
        (full,) = self.max_ranks(kernel.shape)
        return between({**_errors_at(tensor), full: 0.0})

    def errors_of_factors(self, factors: Sequence[np.ndarray]) -> Errors:
        """Errors after the least important terms are removed one by one; `truncate` starts from the same terms.

        The terms of trained factors are not orthogonal. A kernel of r such terms has more than r orthogonal terms.
        """
        errors = _leaving_out(_matrices(factors))[1]
        if errors[-1] == 0:
            return lambda ranks: 0.0
        # In the order of the ranks; no rank has a larger error than a lower rank.
        by_rank = rounded(np.minimum(np.maximum.accumulate(errors) / errors[-1], 1.0)[::-1])
        return lambda ranks: float(by_rank[min(ranks[0], len(by_rank) - 1)])

    def truncate(self, factors: Sequence[Tensor], ranks: Sequence[int]) -> list[np.ndarray]:
        """Like `decompose`, but also starts from the most important terms of the factors (see `_leaving_out`)."""
        factors = [np.asarray(ops.convert_to_numpy(factor)) for factor in factors]
        matrices = _matrices(factors)
        kept = np.sort(_leaving_out(matrices)[0][::-1][: ranks[0]])
        kernel = ops.convert_to_numpy(self.compose(factors))
        tensor = np.einsum("pr,kr,qr->pkq", *matrices)
        return self._factors(kernel, _best_cp(tensor, ranks[0], [matrix[:, kept] for matrix in matrices]))

    def _factors(self, kernel, matrices):
        """Turns three factor matrices into factors: the outer ones get unit columns, the depthwise one the scale."""
        norms = [np.linalg.norm(matrix, axis=0) for matrix in matrices]
        left, middle, right = (m / np.where(n > 0, n, 1) for m, n in zip(matrices, norms))
        depthwise = (middle * math.prod(norms)).reshape(*kernel.shape[:-2], -1, 1)
        return as_factors((left, depthwise, right.T), self.factor_shapes(kernel.shape, left.shape[1:]), kernel.dtype)

    def orthogonal_factors(self, spatial_dims: int) -> list[MatrixView]:
        ones = tuple(range(spatial_dims))
        return [MatrixView(index, (*ones, spatial_dims), (spatial_dims + 1,)) for index in (0, 2)]


def _last_axes(factors):
    """The lengths that turn the three factors into matrices p × r, K × r and r × q."""
    return factors[0].shape[-1], factors[1].shape[-2], factors[2].shape[-1]


def _matrices(factors):
    """Factors (NumPy arrays) as the matrices `(C_in, r)`, `(K, r)`, `(C_out, r)` in float64."""
    left, middle, right = (np.reshape(f, (-1, n)).astype("float64") for f, n in zip(factors, _last_axes(factors)))
    return left, middle, right.T


def _leaving_out(matrices):
    """Removes terms one by one, each time the term whose removal raises the squared error least.

    Returns:
        `(order, errors)`: indices `(r,)` of the terms in the order of removal, and `(r + 1,)` squared errors after 0,
        1, … r removals. The last error is the squared norm.
    """
    grams = np.prod([matrix.T @ matrix for matrix in matrices], axis=0)
    order, errors = [], [0.0]
    # Increase of the squared error by each remaining term: its squared norm plus its products with removed terms.
    raised = np.diag(grams).copy()
    for _ in range(len(grams)):
        term = int(np.argmin(raised))
        order.append(term)
        errors.append(errors[-1] + raised[term])
        raised = raised + 2 * grams[term]
        raised[order] = np.inf
    return np.array(order), np.maximum(errors, 0.0)


def _three_way(kernel):
    """The kernel as a tensor C_in × K × C_out."""
    return np.moveaxis(kernel.reshape(-1, *kernel.shape[-2:]), 0, 1)


def _orthogonal_terms(tensor):
    """Writes the 3-way tensor as a sum of mutually orthogonal rank-one terms, largest first: TTr1SVD.

    The SVD of the narrower channel mode × rest gives vectors and matrices. The SVD of each matrix gives the terms.
    Removing terms costs exactly their squared weights. Source: Batselier, Liu, Wong, SIAM J. Matrix Anal. Appl. 36,
    2015.

    Returns:
        weights `(terms,)` and the three factor matrices `(C_in, terms)`, `(K, terms)`, `(C_out, terms)`.
    """
    swapped = tensor.shape[0] > tensor.shape[2]
    tensor = tensor.transpose(2, 1, 0) if swapped else tensor
    narrow, positions, wide = tensor.shape
    outer, scales, rest = np.linalg.svd(tensor.reshape(narrow, -1), full_matrices=False)
    left, weights, right = np.linalg.svd(rest.reshape(-1, positions, wide), full_matrices=False)
    weights = (scales[:, None] * weights).ravel()
    order = np.argsort(-weights, kind="stable")
    per_vector = left.shape[-1]
    factors = [
        np.repeat(outer, per_vector, axis=1)[:, order],
        left.transpose(1, 0, 2).reshape(positions, -1)[:, order],
        right.transpose(2, 0, 1).reshape(wide, -1)[:, order],
    ]
    return weights[order], factors[::-1] if swapped else factors


def _errors_at(tensor):
    """`{rank: relative squared error}` of CP at some ranks, from rank 0 to a rank with error 0."""
    weights, terms = _orthogonal_terms(tensor)
    tails = tails_of(weights**2)
    exact = int(np.sum(tails > 0))
    # Above this rank the chain has more weights than the kernel.
    highest = math.ceil(tensor.size / sum(tensor.shape))
    ranks = np.unique(np.geomspace(1, highest, _LOOKED_AT).round().astype(int))
    ranks = [int(rank) for rank in ranks if rank < exact]
    if tensor.size <= _LARGE:
        error_at = {rank: _squared_error(tensor, rank, weights, terms) / np.sum(tensor**2) for rank in ranks}
    else:
        part = tensor[:: -(-tensor.shape[0] // _PART), :, :: -(-tensor.shape[2] // _PART)]
        gain, size = _gain(part), math.ceil(part.size / sum(part.shape))
        error_at = {rank: max(0.0, 1.0 - (1.0 - tails[rank]) * gain(rank / highest * size)) for rank in ranks}
    return {0: 1.0, **error_at, exact: 0.0}


def _gain(tensor):
    """Part of the tensor that the iteration keeps, divided by the part that the orthogonal terms keep, by rank."""
    tails, errors = tails_of(_orthogonal_terms(tensor)[0] ** 2), _errors_at(tensor)
    ranks = [rank for rank in sorted(errors) if 0 < rank < len(tails)]
    gains = [(1.0 - errors[rank]) / (1.0 - tails[rank]) for rank in ranks]
    return lambda rank: float(np.interp(rank, ranks, gains))


def _squared_error(tensor, rank, weights, terms):
    """Squared error of CP at a rank after a few iterations that start from the orthogonal terms."""
    from tensorly.cp_tensor import CPTensor, cp_to_tensor
    from tensorly.decomposition import parafac

    start = [factor[:, :rank] for factor in terms]
    start[1] = start[1] * weights[:rank]
    left_out = float(np.sum(weights[rank:] ** 2))
    with tensorly_on_numpy():
        init = CPTensor((np.ones(rank), start))
        try:
            cp = parafac(tensor, rank, init=init, n_iter_max=_FEW_ITERATIONS, tol=_TOLERANCE, random_state=0)
        except np.linalg.LinAlgError:  # as in `_best_cp`
            return left_out
        return min(float(np.sum((tensor - cp_to_tensor(cp)) ** 2)), left_out)


def _best_cp(tensor, rank, known=None):
    """Three factor matrices `(size, rank)` whose CP approximates the tensor. `known`: matrices for a further start."""
    # Imported here for the reason in `tensorly_on_numpy`.
    from tensorly.cp_tensor import CPTensor, cp_to_tensor
    from tensorly.decomposition import parafac

    weights, terms = _orthogonal_terms(tensor)
    total = np.linalg.norm(tensor)
    missing = rank - len(weights)
    start = [np.pad(factor[:, :rank], [(0, 0), (0, max(0, missing))]) for factor in terms]
    start[1] = start[1] * np.pad(weights[:rank], (0, max(0, missing)))
    results = [(np.linalg.norm(weights[rank:]), start)]
    if known is not None:
        results.append((np.linalg.norm(tensor - cp_to_tensor((None, known))), known))
    if min(error for error, _ in results) <= 1e-7 * total:
        return min(results, key=lambda result: result[0])[1]
    is_small = tensor.size * rank <= _SMALL
    # The line search extends every other step as far as that helps. It needs half the iterations for the same error.
    options = {"n_iter_max": _ITERATIONS // (1 if is_small else 2), "tol": _TOLERANCE, "linesearch": True}
    with tensorly_on_numpy():
        inits = [CPTensor((np.ones(rank), factors)) for _, factors in results]
        for init in inits + ["svd"] * is_small:
            try:
                cp = parafac(tensor, rank, init=init, random_state=0, **options)
            except np.linalg.LinAlgError:  # terms that are multiples of each other in two of the modes
                continue
            factors = [np.asarray(factor) for factor in cp.factors]
            factors[0] = factors[0] * cp.weights
            results.append((np.linalg.norm(tensor - cp_to_tensor((None, factors))), factors))
    return min(results, key=lambda result: result[0] if np.isfinite(result[0]) else np.inf)[1]
