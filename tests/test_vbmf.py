"""EVBMF against the free energy that it minimises, on matrices of known rank and noise, and in edge cases."""

import keras
import numpy as np
import pytest
from common import random_array, thorough_but
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

import elrt_keras as elrt
from elrt_keras.ranks import vbmf
from elrt_keras.ranks.estimates import vbmf_rank

pytestmark = pytest.mark.tensorflow  # the same on every backend


def free_energy(gamma, sigma2, a, b, sa2, sb2, ca2, cb2, short, long):
    """Returns 2F of one component minus that of the null solution: a, b are means, s variances, c prior variances.

    With a = b = 0 it is M(log r + 1/r − 1) + L(log q + 1/q − 1) + LM·sa2·sb2/σ² at r = ca2/sa2, q = cb2/sb2. No term is
    negative, and all vanish for r = q = 1, sa2·sb2 → 0: the null solution has 0.
    """
    first, second = a**2 + long * sa2, b**2 + short * sb2
    priors = long * np.log(ca2 / sa2) + short * np.log(cb2 / sb2) + first / ca2 + second / cb2 - (short + long)
    return priors + (first * second - 2 * a * b * gamma) / sigma2


def descend(gamma, sigma2, short, long, sweeps=1500):
    """Finds the minimum of 2F over components other than the null one, by exact minimisation along each argument."""
    gamma, sigma2 = np.broadcast_arrays(gamma, sigma2)
    a = b = np.sqrt(gamma)
    sb2, ca2, cb2 = sigma2 / gamma, gamma / long, gamma / short
    for _ in range(sweeps):
        sa2 = 1 / ((b**2 + short * sb2) / sigma2 + 1 / ca2)
        a = sa2 * b * gamma / sigma2
        sb2 = 1 / ((a**2 + long * sa2) / sigma2 + 1 / cb2)
        b = sb2 * a * gamma / sigma2
        ca2, cb2 = a**2 / long + sa2, b**2 / short + sb2
    return free_energy(gamma, sigma2, a, b, sa2, sb2, ca2, cb2, short, long)


def noisy(shape, rank, noise, rng, strength=(2.0, 8.0)):
    """Makes a noisy matrix of a rank; its singular values are `strength` times the largest one of the noise."""
    u, v = (np.linalg.qr(rng.standard_normal((side, rank)))[0] for side in shape)
    edge = np.sqrt(shape[0]) + np.sqrt(shape[1])
    return noise * ((u * edge * rng.uniform(*strength, rank)) @ v.T + rng.standard_normal(shape))


def exact(shape, rank, rng, dtype="float64"):
    u, v = (np.linalg.qr(rng.standard_normal((side, rank)))[0] for side in shape)
    return (u * rng.uniform(1, 10, rank)).astype(dtype) @ v.T.astype(dtype)


def most(shape):
    """Returns the largest integer below L/(1 + α)."""
    short, long = sorted(shape)
    return max(rank for rank in range(short) if rank * (long + short) < short * long)


@pytest.mark.parametrize("gamma", [7.0, 9.0, 12.0])
def test_the_oracle_finds_the_minimum(gamma):
    found = descend(gamma, 1.0, 5, 12)
    rng = np.random.default_rng(0)
    best = min(
        optimize.minimize(lambda logs: free_energy(gamma, 1.0, *np.exp(logs), 5, 12), rng.normal(size=6)).fun
        for _ in range(10)
    )
    assert min(found, 0) == pytest.approx(min(best, 0), abs=1e-4)


@pytest.mark.parametrize("sigma2", [0.3, 2.0])
@pytest.mark.parametrize("shape", [(20, 20), (30, 37), (10, 40), (5, 50), (3, 300), (1, 7)])
def test_threshold_is_where_a_component_pays(shape, sigma2):
    edge = np.sqrt(sigma2) * (np.sqrt(shape[0]) + np.sqrt(shape[1]))
    gammas = np.linspace(1.01, 1.25, 4000) * edge
    energies = descend(gammas, sigma2, *shape)
    pays = np.flatnonzero(energies < 0)
    assert 0 < pays[0] and len(pays) == len(gammas) - pays[0]
    crossing = np.interp(0, -energies[pays[0] - 1 : pays[0] + 1], gammas[pays[0] - 1 : pays[0] + 1])
    got = vbmf.evbmf_of_spectrum(np.zeros(shape[0]), shape, noise_variance=sigma2)
    assert got.threshold == pytest.approx(crossing, rel=1e-6)  # 2.5129 √α instead of the root: 1e-2 at (3, 300)
    kept = vbmf.evbmf_of_spectrum([(1.001 * crossing) ** 2] + [0] * (shape[0] - 1), shape, sigma2)
    dropped = vbmf.evbmf_of_spectrum([(0.999 * crossing) ** 2] + [0] * (shape[0] - 1), shape, sigma2)
    assert (kept.rank, dropped.rank) == (1, 0)


def variance_by_descent(gamma, shape):
    """Finds the noise variance of the lowest free energy: first far beyond the module's bounds, then closely."""
    lower, upper = 1e-3 * np.mean(gamma**2) / max(shape), 10 * np.mean(gamma**2) / max(shape)
    for points in (500, 300):
        sigma2 = np.geomspace(lower, upper, points)
        components = np.minimum(descend(gamma, sigma2[:, None], *shape, sweeps=400), 0).sum(axis=1)
        best = np.argmin(np.prod(shape) * np.log(sigma2) + np.sum(gamma**2) / sigma2 + components)
        lower, upper = sigma2[best - 1], sigma2[best + 1]
    return sigma2[best]


@pytest.mark.parametrize("strength", [(0.5, 1.5), (1.0, 3.0)])
@pytest.mark.parametrize("shape", [(12, 30), (10, 10)])
def test_noise_variance_minimises_the_free_energy(shape, strength):
    rng = np.random.default_rng(5)
    for rank in (1, 3, 5):
        gamma = np.linalg.svd(noisy(shape, rank, 0.7, rng, strength), compute_uv=False)
        got = vbmf.evbmf_of_spectrum(gamma**2, shape)
        assert got.noise_variance == pytest.approx(variance_by_descent(gamma, shape), rel=3e-4)
        assert got.rank == np.sum(gamma > got.threshold)


@pytest.mark.parametrize(
    "squares, shape",
    [([105, 103, 56.8, 55.4, 47.6, 5.1, 1.02], (7, 34)), ([40.6, 3.3, 0.03], (3, 3))],
)
def test_noise_variance_with_several_valleys(squares, shape):
    # A search for a single minimum between the bounds finds a wrong one.
    want = variance_by_descent(np.sqrt(squares), shape)
    assert vbmf.evbmf_of_spectrum(squares, shape).noise_variance == pytest.approx(want, rel=3e-4)


SHAPES_AND_RANKS = [
    ((60, 60), (1, 4, 7)),
    ((40, 120), (1, 3, 8)),
    ((120, 40), (1, 3, 8)),
    ((20, 300), (1, 4)),
    ((64, 65), (2, 6)),
]


@pytest.mark.parametrize("noise", [0.02, 3.0])
@pytest.mark.parametrize(
    "shape, ranks",
    thorough_but([((120, 40), (1, 3, 8)), ((20, 300), (1, 4))], SHAPES_AND_RANKS),
)
def test_recovers_rank_and_noise(shape, ranks, noise):
    rng = np.random.default_rng(1)
    for rank in ranks:
        found = [vbmf.evbmf(noisy(shape, rank, noise, rng)) for _ in range(40)]
        assert np.mean([estimate.rank == rank for estimate in found]) >= 0.95
        ratios = np.array([estimate.noise_variance for estimate in found]) / noise**2
        assert np.mean(ratios) == pytest.approx(1, abs=0.03) and np.all(np.abs(ratios - 1) < 0.15)


@pytest.mark.parametrize("shape", [(60, 60), (40, 120), (120, 40), (20, 300), (2, 50), (1, 9)])
def test_pure_noise_has_rank_zero(shape):
    rng = np.random.default_rng(2)
    found = [vbmf.evbmf(0.1 * rng.standard_normal(shape)) for _ in range(60)]
    assert np.mean([estimate.rank == 0 for estimate in found]) >= 0.95
    assert np.mean([estimate.noise_variance for estimate in found]) == pytest.approx(0.01, rel=0.03)
    known = [vbmf.evbmf(0.1 * rng.standard_normal(shape), noise_variance=0.01) for _ in range(60)]
    assert np.mean([estimate.rank == 0 for estimate in known]) >= 0.95


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    rank=st.integers(0, 3),
    seed=st.integers(0, 99),
    scale=st.sampled_from((1e-30, 1e-3, 7.0, 1e20)),
    known=st.booleans(),
)
def test_transpose_rotation_and_scale(shape, rank, seed, scale, known):
    rng = np.random.default_rng(seed)
    matrix = noisy(shape, min(rank, *shape), 1.0, rng)
    noise = 0.9 if known else None
    left, right = (np.linalg.qr(rng.standard_normal((side, side)))[0] for side in shape)
    want = vbmf.evbmf(matrix, noise)
    for other in (matrix.T, left @ matrix, matrix @ right):
        got = vbmf.evbmf(other, noise)
        assert got.rank == want.rank
        np.testing.assert_allclose(got[1:], want[1:], rtol=1e-6)
    scaled = vbmf.evbmf(scale * matrix, noise and scale**2 * noise)
    assert scaled.rank == want.rank
    np.testing.assert_allclose(scaled[1:], [scale**2 * want.noise_variance, scale * want.threshold], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(shape=st.tuples(st.integers(1, 40), st.integers(1, 40)), seed=st.integers(0, 99), data=st.data())
def test_rank_without_noise(dtype, shape, seed, data):
    rank = data.draw(st.sampled_from(sorted({0, most(shape) // 3, most(shape)})))
    matrix = exact(shape, rank, np.random.default_rng(seed), dtype)
    rank_found, noise, threshold = vbmf.evbmf(matrix)
    assert (rank_found, noise) == (rank, 0.0)
    assert threshold <= 1e-5 * np.linalg.norm(matrix)
    # With a given (not estimated) noise variance of 0, higher ranks are possible too.
    rank = data.draw(st.integers(0, min(shape)))
    assert vbmf.evbmf(exact(shape, rank, np.random.default_rng(seed), dtype), noise_variance=0).rank == rank


@pytest.mark.parametrize("shape", [(10, 10), (6, 9), (1, 4)])
def test_an_estimated_noise_leaves_room_for_itself(shape):
    for rank in range(most(shape) + 1, min(shape) + 1):
        estimate = vbmf.evbmf(exact(shape, rank, np.random.default_rng(0)))
        assert estimate.rank <= most(shape) and estimate.noise_variance > 0


def test_edges():
    for noise, threshold in ((None, 0), (0, 0), (1.0, None)):
        estimate = vbmf.evbmf(np.zeros((3, 5)), noise)
        assert estimate.rank == 0 and estimate.noise_variance == (noise or 0)
        assert threshold is None or estimate.threshold == threshold
    assert vbmf.evbmf([[-3.0]]) == (0, pytest.approx(9), pytest.approx(3 * np.sqrt(4.910815)))
    assert vbmf.evbmf([[-3.0]], noise_variance=1).rank == 1
    row = vbmf.evbmf(np.arange(1, 6)[None])
    assert row.rank == 0 and row.noise_variance == pytest.approx(11)
    assert vbmf.evbmf(np.eye(4, dtype="bool")).rank == 0
    assert vbmf.evbmf(np.eye(4), noise_variance=np.float32(1e-3)).rank == 4
    assert all(type(value) in (int, float) for value in vbmf.evbmf(random_array(3, 4), np.float32(1)))


def test_precision_of_the_input():
    matrix = noisy((30, 50), 3, 0.5, np.random.default_rng(0))
    want = vbmf.evbmf(matrix)
    assert want.rank == 3
    for dtype, rtol in (("float32", 1e-5), ("float16", 1e-2), ("bfloat16", 1e-1)):
        got = vbmf.evbmf(keras.ops.convert_to_numpy(keras.ops.cast(matrix, dtype)))
        assert got.rank == 3
        np.testing.assert_allclose(got[1:], want[1:], rtol=rtol)
    assert vbmf.evbmf((1e-25 * matrix).astype("float32")).rank == 3
    spectrum = np.linalg.svd(matrix, compute_uv=False)[::-1] ** 2
    assert vbmf.evbmf_of_spectrum(spectrum, (50, 30)) == pytest.approx(want)


BAD = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize(
    "matrix",
    [*([[1.0, value]] for value in BAD), [1.0, 2.0], 3.0, np.ones((2, 2, 2)), np.ones((0, 3)), np.ones((2, 2)) * 1j]
    + [[["a", "b"]], None],
)
def test_bad_matrix(matrix):
    with pytest.raises(ValueError, match="Expected .* Received: matrix"):
        vbmf.evbmf(matrix)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_numbers_too_large_to_square():
    with pytest.raises(ValueError, match="squares that float64 can sum. Received: matrix="):
        vbmf.evbmf(np.full((2, 3), 1e200))


@pytest.mark.parametrize("noise_variance", [*BAD, -1e-9, "1", True, 1j, [1.0]])
def test_bad_noise_variance(noise_variance):
    with pytest.raises(ValueError, match="Expected .* Received: noise_variance="):
        vbmf.evbmf(np.eye(3), noise_variance)


@pytest.mark.parametrize(
    "spectrum, shape, message",
    [
        ([1.0, -1e-9], (2, 3), "none negative. Received: squared_singular_values="),
        ([1.0, np.nan], (2, 3), "finite numbers, .* Received: squared_singular_values="),
        ([[1.0]], (1, 1), "Received: squared_singular_values of shape"),
        ([1.0, 2.0], (3, 4), "the smaller one 2. Received: shape="),
        ([1.0, 2.0], (2, 3, 4), "the smaller one 2. Received: shape="),
        ([1.0, 2.0], (2.0, 3), "the smaller one 2. Received: shape="),
    ],
)
def test_bad_spectrum(spectrum, shape, message):
    with pytest.raises(ValueError, match=message):
        vbmf.evbmf_of_spectrum(spectrum, shape)


@pytest.mark.parametrize("shape", [(64, 576), (1100, 1200)], ids=str)  # the larger one uses the Gram matrix
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_float32_rounds_off_is_no_rank_of_weights(shape, dtype):
    weights = random_array(shape[0], 8) @ random_array(8, shape[1], seed=1)
    assert vbmf_rank(weights.astype(dtype)) == 8


def test_merged_layers_are_planned_at_the_ranks_they_had():
    layer = keras.layers.Conv2D(96, 3, name="conv")
    low_rank = elrt.factorize(keras.Sequential([keras.Input((8, 8, 64)), layer]), {"conv": ("tucker2", (16, 24))})
    plan = elrt.plan_ranks(elrt.merge(low_rank), method="vbmf", multiple_of=1, exclude=[])
    assert plan["conv"].ranks == (16, 24)
