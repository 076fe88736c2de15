"""Rank estimates from a trained kernel's unfolding, one number per matrix, by method name."""

from collections.abc import Callable

import numpy as np

from elrt_keras.formats.arrays import squared_singular_values
from elrt_keras.ranks.vbmf import evbmf_of_spectrum

_PRECISION = float(np.finfo("float32").eps)


def vbmf_rank(matrix: np.ndarray) -> int:
    """The number of singular values of a matrix of weights that stand out of the noise (EVBMF), at least 1.

    What float32 rounds off is no signal, also where the matrix comes in float64: weights are trained in float32.

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


ESTIMATES: dict[str, Callable[[np.ndarray], float]] = {"vbmf": vbmf_rank, "stable_rank": stable_rank}
