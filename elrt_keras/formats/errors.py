"""Relative squared errors ‖W − Ŵ‖² / ‖W‖² of decompositions, as functions of the ranks."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

# Function from ranks to the part of the kernel's squared norm that a decomposition drops.
Errors: TypeAlias = Callable[[Sequence[int]], float]

# Rounding of float32 weights causes errors of about 1e-14. Errors below this limit count as zero.
_ROUNDING = 1e-12


def tails_of(squares: np.ndarray) -> np.ndarray:
    """For each index, the sum of the entries from that index on, divided by the sum of all entries.

    Args:
        squares: `(n,)`, squared singular values in descending order.

    Returns:
        An array `(n + 1,)`, 1 first and 0 last; all 0 for a sum of 0.
    """
    left_out = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    return rounded(left_out / left_out[0] if left_out[0] > 0 else left_out)


def rounded(errors: np.ndarray) -> np.ndarray:
    """Sets errors that are only rounding, and errors below 0, to 0."""
    return np.where(errors < _ROUNDING, 0.0, errors)


def of_spectra(spectra: Sequence[np.ndarray]) -> Errors:
    """Returns `1 − Π_i (1 − tail_i)`: the exact error for one rank, an estimate for several.

    The estimate treats the ranks as independent: each rank keeps the same part of the whole kernel as of the part that
    the other ranks keep.

    Args:
        spectra: squared singular values of the unfolding in descending order, one array per rank.
    """
    tails = [tails_of(squares) for squares in spectra]

    def error(ranks):
        return 1.0 - float(np.prod([1.0 - tail[min(rank, len(tail) - 1)] for tail, rank in zip(tails, ranks)]))

    return error


def between(measured: Mapping[int, float]) -> Errors:
    """Interpolates measured errors of a format of one rank monotonically between the measured ranks.

    Args:
        measured: `{rank: error}`, from rank 0 (error 1) to the full rank.
    """
    from scipy.interpolate import PchipInterpolator  # imported here to keep the import of the package quick

    ranks = sorted(measured)
    # A higher rank never has a larger error. If an iteration returned one, the error of the lower rank counts.
    errors = np.minimum.accumulate([measured[rank] for rank in ranks])
    curve = PchipInterpolator(ranks, errors)
    return lambda ranks: float(rounded(curve(ranks[0])))


def weighted(parts: Sequence[tuple[float, Errors]]) -> Errors:
    """Errors of several kernels together, all at the same ranks.

    Args:
        parts: `(squared norm, errors)` of each kernel.
    """
    total = sum(norm for norm, _ in parts)
    return lambda ranks: sum(norm * errors(ranks) for norm, errors in parts) / total if total > 0 else 0.0
