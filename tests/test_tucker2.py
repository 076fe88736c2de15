"""Tucker-2: comparison with TensorLy and truncated spectra, costs of the method, and forms of ranks."""

import math
from fractions import Fraction

import keras
import numpy as np
import pytest
import tensorly
from common import EPS, orthonormality, random_array, random_factors, to_numpy, unfoldings
from hypothesis import example, given
from hypothesis import strategies as st
from tensorly.decomposition import partial_tucker
from tensorly.tenalg import multi_mode_dot

from elrt_keras import formats
from elrt_keras.formats.chain import Stage, chain_costs, dense_stage

TUCKER2 = formats.get("tucker2")
kernel_shapes = st.tuples(
    st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 6), st.integers(1, 6)
).map(lambda drawn: (*drawn[0], *drawn[1:]))


# TensorLy completes the factor in that case, with a warning.
pytestmark = [
    pytest.mark.backends,
    pytest.mark.filterwarnings("ignore:Trying to compute SVD with n_eigenvecs:UserWarning"),
]


@given(shape=kernel_shapes, seed=st.integers(0, 999), data=st.data())
def test_compose_and_squared_norm_against_tensorly(shape, seed, data):
    ranks = tuple(data.draw(st.integers(1, limit)) for limit in shape[-2:])
    factors = random_factors(TUCKER2.factor_shapes(shape, ranks), seed)
    left, core, right = (factor.astype("float64") for factor in factors)
    left, right = left.reshape(left.shape[-2:]), right.reshape(right.shape[-2:])
    modes = [len(shape) - 2, len(shape) - 1]
    with tensorly.backend_context("numpy"):
        expected = multi_mode_dot(core, [left, right.T], modes=modes)
        magnitude = multi_mode_dot(np.abs(core), [np.abs(left), np.abs(right.T)], modes=modes)
    tensors = [keras.ops.convert_to_tensor(factor) for factor in factors]
    bound = (sum(ranks) + 2) * EPS["float32"]
    np.testing.assert_array_less(np.abs(to_numpy(TUCKER2.compose(tensors)) - expected), bound * magnitude + 1e-30)
    # Gram matrices, two products and the sum of all elements of the core: terms may cancel, so the bound is absolute.
    roundings = sum(shape[-2:]) + sum(ranks) + core.size + 4
    grams = np.abs(left).T @ np.abs(left), np.abs(right) @ np.abs(right).T
    terms = np.sum((grams[0] @ np.abs(core) @ grams[1]) * np.abs(core))
    assert abs(float(TUCKER2.squared_norm(tensors)) - np.sum(expected**2)) <= roundings * EPS["float32"] * terms
    assert abs(float(formats.Format.squared_norm(TUCKER2, tensors)) - np.sum(expected**2)) <= (
        (2 * sum(ranks) + math.prod(shape) + 6) * EPS["float32"] * np.sum(magnitude**2)
    )


@given(shape=kernel_shapes, seed=st.integers(0, 999))
def test_decompose_at_full_rank_is_exact(shape, seed):
    kernel = random_array(*shape, seed=seed)
    factors = TUCKER2.decompose(kernel, TUCKER2.max_ranks(shape))
    composed = to_numpy(TUCKER2.compose(factors))
    # Orthonormal factors keep norms, so the error is relative to the whole kernel.
    assert np.abs(composed - kernel).max() <= (sum(shape[-2:]) + 4) * EPS["float32"] * np.linalg.norm(kernel)


@given(shape=kernel_shapes, seed=st.integers(0, 999), data=st.data())
def test_decompose_is_as_good_as_hosvd_guarantees(shape, seed, data):
    ranks = tuple(data.draw(st.integers(1, limit)) for limit in shape[-2:])
    kernel = random_array(*shape, seed=seed)
    factors = TUCKER2.decompose(kernel, ranks)
    assert [factor.shape for factor in factors] == TUCKER2.factor_shapes(shape, ranks)
    assert all(factor.dtype == kernel.dtype for factor in factors)
    for index in (0, 2):
        assert orthonormality(factors[index].reshape(factors[index].shape[-2:])) <= 1e-5
    kernel = kernel.astype("float64")
    discarded = [
        np.sum(np.linalg.svd(unfolding, compute_uv=False)[rank:] ** 2)
        for unfolding, rank in zip(unfoldings(kernel), ranks)
    ]
    squared_error = np.sum((kernel - to_numpy(TUCKER2.compose(factors))) ** 2)
    slack = 1e-5 * np.sum(kernel**2)
    # Lower bound: Eckart–Young for each unfolding. Upper bound: that of the HOSVD.
    assert max(discarded) - slack <= squared_error <= sum(discarded) + slack


def test_decompose_reaches_the_error_of_a_converged_tensorly_decomposition():
    kernel = np.random.default_rng(3).standard_normal((3, 3, 6, 5))
    with tensorly.backend_context("numpy"):
        (core, factors), _ = partial_tucker(kernel, rank=[3, 2], modes=[2, 3], n_iter_max=500, tol=1e-12)
        converged = np.linalg.norm(kernel - multi_mode_dot(core, factors, modes=[2, 3]))
    error = np.linalg.norm(kernel - to_numpy(TUCKER2.compose(TUCKER2.decompose(kernel, (3, 2)))))
    # The iteration stops once a step improves the relative error by less than 1e-6; a few such steps remain.
    assert abs(error - converged) <= 1e-5 * np.linalg.norm(kernel)


@pytest.mark.thorough
def test_decompose_of_a_large_kernel_comes_close_to_the_converged_error():
    kernel = np.random.default_rng(3).standard_normal((3, 3, 192, 160))
    with tensorly.backend_context("numpy"):
        _, errors = partial_tucker(kernel, rank=[48, 40], modes=[2, 3], n_iter_max=60, tol=1e-12)
    error = np.linalg.norm(kernel - to_numpy(TUCKER2.compose(TUCKER2.decompose(kernel, (48, 40)))))
    # A random kernel converges slowest; with a tolerance of 1e-4, the error was 0.09 % above.
    assert errors[-1] - 1e-9 <= error / np.linalg.norm(kernel) <= 1.002 * errors[-1]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_decompose_of_a_zero_kernel_is_zero_with_orthonormal_factors():
    factors = TUCKER2.decompose(np.zeros((3, 3, 4, 5), "float32"), (2, 3))
    assert not np.any(to_numpy(TUCKER2.compose(factors)))
    assert max(orthonormality(factors[index][0, 0]) for index in (0, 2)) <= 1e-5


def test_decompose_recovers_a_kernel_of_exactly_the_given_rank():
    kernel = to_numpy(TUCKER2.compose(random_factors(TUCKER2.factor_shapes((3, 2, 6, 7), (2, 3))))).astype("float32")
    composed = to_numpy(TUCKER2.compose(TUCKER2.decompose(kernel, (2, 3))))
    assert np.linalg.norm(composed - kernel) <= 20 * EPS["float32"] * np.linalg.norm(kernel)


def test_tucker2_shapes_stages_and_views():
    shape, ranks = (3, 5, 16, 32), (8, 12)
    assert TUCKER2.max_ranks(shape) == (16, 32)
    assert TUCKER2.factor_shapes(shape, ranks) == [(1, 1, 16, 8), (3, 5, 8, 12), (1, 1, 12, 32)]
    assert TUCKER2.stages(shape, ranks, (2, 1), (1, 3)) == [
        Stage((1, 1), 16, 8, (1, 1), (1, 1)),
        Stage((3, 5), 8, 12, (2, 1), (1, 3)),
        Stage((1, 1), 12, 32, (1, 1), (1, 1)),
    ]
    assert len(TUCKER2.factor_names) == 3 and TUCKER2.factor_names[TUCKER2.core_index] == "core"
    factors = random_factors(TUCKER2.factor_shapes(shape, ranks))
    views = TUCKER2.orthogonal_factors(2)
    assert [view.index for view in views] == [0, 2]
    for view in views:
        np.testing.assert_array_equal(to_numpy(view.to_matrix(factors[view.index])), factors[view.index][0, 0])


def test_costs_are_those_of_the_method():
    size, (r_in, r_out) = (9, 11), (8, 12)
    costs = TUCKER2.costs((3, 5, 16, 32), (r_in, r_out), size, (2, 3), "same", (1, 1))
    inputs, outputs = 9 * 11, 5 * 4
    assert costs.params == 16 * r_in + 15 * r_in * r_out + r_out * 32
    assert costs.macs == inputs * 16 * r_in + outputs * (15 * r_in * r_out + r_out * 32)
    assert costs.activations == inputs * r_in + outputs * (r_out + 32)
    dense = chain_costs([dense_stage((3, 5, 16, 32), (2, 3), (1, 1))], size, "valid")
    assert (dense.params, dense.macs, dense.activations) == (15 * 16 * 32, 4 * 3 * 15 * 16 * 32, 4 * 3 * 32)
    depthwise = chain_costs([Stage((3, 3), 6, 6, (1, 1), (1, 1), depthwise=True)], (4, 4), "same")
    assert (depthwise.params, depthwise.macs) == (9 * 6, 16 * 9 * 6)


@pytest.mark.parametrize(
    "ranks, expected",
    [(3, (3, 3)), ((2, 5), (2, 5)), ([2, 5], (2, 5)), (1.0, (10, 25)), (1, (1, 1)), (0.5, (5, 13)), (1e-9, (1, 1))]
    + [((0.5, 7), (5, 7)), ((4, 0.2), (4, 5)), (np.int64(4), (4, 4)), (np.float32(0.5), (5, 13))],
)
def test_ranks_resolve(ranks, expected):
    resolved = TUCKER2.resolve_ranks((3, 3, 10, 25), ranks)
    assert resolved == expected
    assert all(type(rank) is int for rank in resolved)


@example(hundredths=7, limit=100)
@example(hundredths=28, limit=25)
@given(hundredths=st.integers(1, 100), limit=st.integers(1, 512))
def test_fractions_round_up_as_the_decimal_number_they_are_written_as(hundredths, limit):
    # 0.07 of 100 is 7, although 0.07 · 100 is a little more in floating point.
    expected = math.ceil(Fraction(hundredths, 100) * limit)
    assert TUCKER2.resolve_ranks((1, limit, limit), hundredths / 100) == (expected, expected)


BAD_RANKS = [0, -1, (0, 3), (3, -2), True, False, (True, 3), 0.0, -0.5, 1.5, math.nan, math.inf, (0.5, math.nan)]


@pytest.mark.parametrize("ranks", BAD_RANKS + [None, "half", (None, 2), 2 + 0j], ids=str)
def test_bad_ranks_are_refused_with_what_was_received(ranks):
    with pytest.raises(ValueError, match=r"int of at least 1, or a float in \(0, 1\].*Received: ranks=") as error:
        TUCKER2.resolve_ranks((3, 3, 10, 25), ranks)
    assert str(error.value).endswith(f"ranks={ranks}")


@pytest.mark.parametrize("ranks", [(), (3,), (3, 3, 3), [3]], ids=str)
def test_wrong_number_of_ranks(ranks):
    with pytest.raises(
        ValueError, match=r"2 entries in `ranks` of format 'tucker2', \(r_in, r_out\)\. Received: ranks=\("
    ) as error:
        TUCKER2.resolve_ranks((3, 3, 10, 25), ranks)
    assert str(tuple(ranks)) in str(error.value)


@pytest.mark.parametrize("ranks, name, limit", [(11, "r_in", 10), ((11, 3), "r_in", 10), ((3, 26), "r_out", 25)])
def test_ranks_above_the_full_rank(ranks, name, limit):
    with pytest.raises(ValueError, match=rf"{name} of at most the full rank, {limit}, .*\(3, 3, 10, 25\)\. Received"):
        TUCKER2.resolve_ranks((3, 3, 10, 25), ranks)
