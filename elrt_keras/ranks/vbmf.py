"""Rank of a noisy matrix by empirical variational Bayes, in closed form."""

import functools
import math
import numbers
import typing
from collections.abc import Sequence

import numpy as np

from elrt_keras.checks import number_in

_GRID_POINTS = 200


class VBMF(typing.NamedTuple):
    """The rank of a matrix, the variance of its noise, and the singular value above which components are kept."""

    rank: int
    noise_variance: float
    threshold: float


def evbmf(matrix: np.ndarray, noise_variance: float | None = None) -> VBMF:
    """Estimates the rank of a matrix by empirical variational Bayes matrix factorisation (EVBMF), globally optimal.

    The model is `V = B Aᵀ + noise` with V of shape `(L, M)`, L ≤ M (or its transpose), independent Gaussian noise of
    variance σ², Gaussian priors on the columns of A and B, and prior variances learnt from V. With α = L/M, components
    with a singular value γ above a threshold are kept; the others vanish:

        γ > sqrt(M · σ² · x̲),  x̲ = (1 + τ̲)(1 + α/τ̲),  Φ(τ̲) + Φ(τ̲/α) = 0,  Φ(z) = log(z + 1)/z − 1/2

    An unknown σ² is chosen to minimise the free energy. The estimate keeps fewer than L/(1 + α) components, even
    without noise: less than half for a square matrix, none for a single row. Near this limit it treats weak components
    as noise.

    Args:
        matrix: array of shape `(rows, columns)`, finite real numbers.
        noise_variance: float ≥ 0; `None` to estimate it. With 0 the result is the rank up to rounding errors.

    Returns:
        A `VBMF(rank, noise_variance, threshold)`.

    Raises:
        ValueError: if `matrix` is empty or not a matrix of finite real numbers, or for a noise variance out of range.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> signal = rng.standard_normal((60, 4)) @ rng.standard_normal((4, 90))
    >>> estimate = elrt_keras.ranks.vbmf.evbmf(signal + 0.1 * rng.standard_normal((60, 90)))
    >>> estimate.rank, round(estimate.noise_variance, 3)
    (4, 0.01)

    Reference: Nakajima, Sugiyama, Babacan, Tomioka, "Global analytic solution of fully-observed variational Bayesian
    matrix factorization", JMLR 14 (2013). This form of the threshold and the bounds of σ²: Nakajima, Tomioka,
    Sugiyama, Babacan, "Condition for perfect dimensionality recovery by variational Bayesian PCA", JMLR 16 (2015).
    """
    matrix, eps = _validated("matrix", matrix, ndim=2)
    return _solve(np.linalg.svd(matrix, compute_uv=False) ** 2, matrix.shape, noise_variance, eps)


def evbmf_of_spectrum(
    squared_singular_values: np.ndarray | Sequence[float],
    shape: Sequence[int],
    noise_variance: float | None = None,
    precision: float | None = None,
) -> VBMF:
    """Returns the same `VBMF` as `evbmf`, from the known singular values of a matrix.

    Args:
        squared_singular_values: array of shape `(min(shape),)`, in any order.
        shape: `(rows, columns)` of the matrix.
        noise_variance: float ≥ 0; `None` to estimate it.
        precision: float, relative rounding error of the matrix entries and of the decomposition: that of float32 for
            weights trained in float32; `None` for that of the array. Values below the rounding error count as zero.

    Raises:
        ValueError: for a spectrum that is not `min(shape)` finite numbers ≥ 0, or a noise variance out of range.

    Example:

    >>> elrt_keras.ranks.vbmf.evbmf_of_spectrum([100.0, 5.0, 4.0, 3.0], (4, 8), noise_variance=1.0).rank
    1
    """
    squares, eps = _validated("squared_singular_values", squared_singular_values, ndim=1)
    if len(shape) != 2 or not all(isinstance(n, numbers.Integral) for n in shape) or min(shape) != squares.size:
        raise ValueError(f"Expected a shape of two ints, the smaller one {squares.size}. Received: shape={shape}")
    if squares.min() < 0:
        raise ValueError(f"Expected squares, none negative. Received: squared_singular_values={squares}")
    return _solve(squares, shape, noise_variance, eps if precision is None else float(precision))


def _validated(name, value, ndim):
    """Checks an array. Returns it in float64, where squares underflow much later, and its original precision."""
    array = np.asarray(value)
    if array.ndim != ndim or array.size == 0 or not np.can_cast(array.dtype, "float64", "same_kind"):
        received = f"{name} of shape {array.shape}, dtype {array.dtype}"
        raise ValueError(f"Expected an array with {ndim} axes of real numbers, not empty. Received: {received}")
    eps = np.finfo("float32" if array.dtype == np.float32 else "float64").eps
    array = array.astype("float64")
    if not np.isfinite(np.sum(array**2)):
        raise ValueError(f"Expected finite numbers, with squares that float64 can sum. Received: {name}={array}")
    return array, float(eps)


def _solve(squares, shape, noise_variance, eps):
    short, long = (int(n) for n in sorted(shape))
    squares = np.sort(squares)[::-1]
    # After a product and an SVD an exact zero is about eps · γ_max, and more for larger matrices. Smaller values cannot
    # be distinguished from zero. So they count neither as components nor as noise.
    rounding = 4 * (short + long) * eps**2 * squares[0]
    squares = np.where(squares > rounding, squares, 0.0)
    limit = _ratio_limit(short / long)
    if noise_variance is None:
        noise_variance = _noise_variance(squares / long, short, long, limit)
    noise_variance = number_in(noise_variance, "[0, inf)", "noise_variance")
    threshold = math.sqrt(max(long * noise_variance * limit, rounding))
    return VBMF(int(np.sum(np.sqrt(squares) > threshold)), noise_variance, threshold)


def _ratio_limit(alpha):
    """x̲: the smallest γ²/(M σ²) of a component that is kept."""
    from scipy import optimize

    def balance(tau):
        return math.log1p(tau) / tau + math.log1p(tau / alpha) * alpha / tau - 1

    # The function decreases in τ. It is positive at √α. At 2.6 both terms of Φ are negative, because Φ(2.5129) = 0 and
    # α ≤ 1. The root is often approximated by 2.5129 √α. This is right at α = 1; at α = 0.01 it is 11 % too small, and
    # x̲ 2 %.
    tau = optimize.brentq(balance, math.sqrt(alpha), 2.6, xtol=1e-14)
    return (1 + tau) * (1 + alpha / tau)


def _noise_variance(energies, short, long, limit):
    """Finds the global minimiser of the free energy from γ²/M in descending order."""
    from scipy import optimize

    most = (short * long - 1) // (short + long)  # ⌈L/(1+α)⌉ − 1, in integers
    lower, upper = max(energies[most] / limit, energies[most:].mean()), energies.mean()
    if lower == 0:
        # There are at most `most` components and otherwise exact zeros: the free energy has no lower bound as σ² → 0.
        return 0.0
    # In units of the upper bound, so that the search does not depend on the scale of the matrix.
    objective = functools.partial(_free_energy, energies=energies / upper, alpha=short / long, limit=limit)
    grid = np.linspace(math.log(lower / upper), 0, _GRID_POINTS)
    values = [objective(point) for point in grid]
    # The function has a kink wherever a component starts to count. Next to each kink there may be a minimum, and each
    # of them may be the global one.
    around = [slice(max(point - 1, 0), point + 2) for point in range(_GRID_POINTS)]
    brackets = [grid[near] for point, near in enumerate(around) if np.argmin(values[near]) == min(point, 1)]
    search = functools.partial(optimize.minimize_scalar, objective, method="bounded", options={"xatol": 1e-9})
    minima = [search(bounds=(bracket[0], bracket[-1])) for bracket in brackets]
    return upper * math.exp(min(minima, key=lambda result: result.fun).x)


def _free_energy(log_variance, energies, alpha, limit):
    """Σ ψ(x), x = γ²/(M σ²), ψ(x) = x − log x + [x > x̲] (log(τ + 1) + α log(τ/α + 1) − τ), up to a constant.

    The constant is −Σ log(γ²/M). It is left out because it is infinite if a singular value is zero.
    """
    ratios = energies * math.exp(-log_variance)
    kept = ratios[ratios > limit] - (1 + alpha)
    tau = (kept + np.sqrt(kept**2 - 4 * alpha)) / 2
    gains = np.log1p(tau) + alpha * np.log1p(tau / alpha) - tau
    return ratios.sum() + ratios.size * log_variance + gains.sum()
