"""Methods `vbmf` and `stable_rank`: estimates of the rank of each unfolding of a trained kernel."""

from collections.abc import Callable

import numpy as np

from elrt_keras.formats.arrays import squared_singular_values
from elrt_keras.ranks.methods import Problem, Solution, method
from elrt_keras.ranks.uniform import scaled
from elrt_keras.ranks.vbmf import evbmf_of_spectrum

_PRECISION = float(np.finfo("float32").eps)


def vbmf_rank(matrix: np.ndarray) -> int:
    """Number of singular values of a weight matrix that are above the noise (EVBMF), at least 1.

    Differences below the rounding of float32 count as noise, also in a float64 matrix: weights are trained in float32.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> weights = rng.standard_normal((60, 4)) @ rng.standard_normal((4, 90))
    >>> elrt_keras.ranks.estimates.vbmf_rank(weights.astype("float32"))
    4
    """
    squares = squared_singular_values(np.asarray(matrix, "float64"))
    return max(1, evbmf_of_spectrum(squares, matrix.shape, precision=_PRECISION).rank)


def stable_rank(matrix: np.ndarray) -> float:
    """‖A‖_F² / ‖A‖₂², between 1 and the rank; 1 for a zero matrix.

    Example:

    >>> elrt_keras.ranks.estimates.stable_rank(np.diag([2.0, 2.0, 0.0]))
    2.0
    """
    squares = squared_singular_values(np.asarray(matrix, "float64"))
    return float(squares.sum() / squares[0]) if squares[0] > 0 else 1.0


def _estimated(problem: Problem, estimate: Callable[[np.ndarray], float]) -> Solution:
    """Estimates the ranks of each kernel's unfoldings, and scales them all by one number if there is a budget."""
    return scaled(problem, {one.name: one.format.rank_estimates(one.kernel(), estimate) for one in problem.candidates})


@method("vbmf", reads_weights=True, needs_budget=False)
def vbmf(problem: Problem) -> Solution:
    """Chooses the ranks that are above the noise by analytic variational Bayes."""
    return _estimated(problem, vbmf_rank)


@method("stable_rank", reads_weights=True, needs_budget=False)
def stable_ranks(problem: Problem) -> Solution:
    """Chooses the stable ranks of the unfoldings."""
    return _estimated(problem, stable_rank)
