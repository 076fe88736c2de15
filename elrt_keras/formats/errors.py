"""Relative squared errors ‖W − Ŵ‖² / ‖W‖² of decompositions, as functions of the ranks."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

# From ranks to the part of the kernel's squared norm that a decomposition leaves out.
Errors: TypeAlias = Callable[[Sequence[int]], float]

# Of float32 weights rounding leaves out about 1e-14; less than this is none.
_ROUNDING = 1e-12


def tails_of(squares: np.ndarray) -> np.ndarray:
    """The part of a sum that the entries from each index on make up.

    Args:
        squares: `(n,)`, squared singular values in descending order.

    Returns:
        An array `(n + 1,)`, 1 first and 0 last; all 0 for a sum of 0.
    """
    left_out = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    return rounded(left_out / left_out[0] if left_out[0] > 0 else left_out)


def rounded(errors: np.ndarray) -> np.ndarray:
    """Errors without what is rounding, and none below 0."""
    return np.where(errors < _ROUNDING, 0.0, errors)


def of_spectra(spectra: Sequence[np.ndarray]) -> Errors:
    """`1 − Π_i (1 − tail_i)`: the exact error for one rank, an estimate for several.

    The estimate takes the ranks as independent: each keeps the same part of the whole kernel and of what the others
    keep of it.

    Args:
        spectra: by rank, squared singular values of the unfolding in descending order.
    """
    tails = [tails_of(squares) for squares in spectra]

    def error(ranks):
        return 1.0 - float(np.prod([1.0 - tail[min(rank, len(tail) - 1)] for tail, rank in zip(tails, ranks)]))

    return error


def between(measured: Mapping[int, float]) -> Errors:
    """Errors at one rank, by monotone interpolation between those that were measured.

    Args:
        measured: `{rank: error}`, from rank 0 (error 1) to the full rank.
    """
    from scipy.interpolate import PchipInterpolator  # late: importing the package shall stay quick

    ranks = sorted(measured)
    # What a higher rank captures is no less; a worse result of an iteration does not count.
    errors = np.minimum.accumulate([measured[rank] for rank in ranks])
    curve = PchipInterpolator(ranks, errors)
    return lambda ranks: float(rounded(curve(ranks[0])))


def weighted(parts: Sequence[tuple[float, Errors]]) -> Errors:
    """Errors of several kernels together, at the same ranks.

    Args:
        parts: `(squared norm, errors)` of each.
    """
    total = sum(norm for norm, _ in parts)
    return lambda ranks: sum(norm * errors(ranks) for norm, errors in parts) / total if total > 0 else 0.0
