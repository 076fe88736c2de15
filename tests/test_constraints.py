"""The Stiefel constraint against NumPy's QR decomposition, at the special points, and on a layer's factors."""

import keras
import numpy as np
import pytest
from common import EPS, matrices, orthonormality, random_array, to_numpy
from hypothesis import given
from hypothesis import strategies as st

import elrt_keras as elrt

pytestmark = pytest.mark.backends

STIEFEL = elrt.constraints.Stiefel()
# Householder QR in float32 is orthonormal to a small multiple of eps times the number of rows (Higham, theorem 19.4).
TOLERANCE = 1e-6


def numpy_retraction(matrix):
    """Returns the Q of QR with a positive diagonal of R, in float64; transposes a wide matrix first."""
    if matrix.shape[0] < matrix.shape[1]:
        return numpy_retraction(matrix.T).T
    q, r = np.linalg.qr(matrix.astype("float64"))
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


@given(rows=st.integers(1, 8), columns=st.integers(1, 8), seed=st.integers(0, 999))
def test_result_is_the_orthonormal_factor_of_numpy(rows, columns, seed):
    matrix = random_array(rows, columns, seed=seed)
    result = to_numpy(STIEFEL(matrix))
    assert orthonormality(result) <= TOLERANCE
    # The factor's error is the input's error times its condition number.
    tolerance = 16 * EPS["float32"] * np.linalg.cond(matrix.astype("float64"))
    np.testing.assert_allclose(result, numpy_retraction(matrix), rtol=0, atol=tolerance)


@given(rows=st.integers(1, 8), columns=st.integers(1, 8), seed=st.integers(0, 999))
def test_an_orthonormal_matrix_stays_where_it_is(rows, columns, seed):
    orthonormal = numpy_retraction(random_array(rows, columns, seed=seed)).astype("float32")
    np.testing.assert_allclose(to_numpy(STIEFEL(orthonormal)), orthonormal, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "matrix",
    [np.zeros((4, 2)), np.zeros((2, 4)), np.ones((5, 3)), np.diag([1.0, 0.0, 2.0]), -np.eye(3), 1e-20 * np.eye(4, 2)],
    ids=["zero tall", "zero wide", "one direction", "rank two", "negative", "tiny"],
)
def test_rank_deficient_matrices_become_orthonormal_too(matrix):
    assert orthonormality(to_numpy(STIEFEL(matrix.astype("float32")))) <= TOLERANCE


@pytest.mark.parametrize("shape", [(1, 1, 6, 3), (3, 3, 2, 5), (2, 3, 7)])
def test_more_axes_are_flattened_to_the_last(shape):
    weight = random_array(*shape, seed=2)
    flat = to_numpy(STIEFEL(weight.reshape(-1, shape[-1])))
    np.testing.assert_array_equal(to_numpy(STIEFEL(weight)), flat.reshape(shape))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_retracted_in_float32_and_rounded_once(dtype):
    weight = keras.ops.cast(random_array(6, 3, seed=1), dtype)
    result = STIEFEL(weight)
    assert keras.backend.standardize_dtype(result.dtype) == dtype
    exact = to_numpy(STIEFEL(to_numpy(weight).astype("float32")))
    assert np.all(np.abs(to_numpy(result) - exact) <= EPS[dtype] / 2 * np.abs(exact) + TOLERANCE)


@pytest.mark.parametrize("shape", [(), (4,)])
def test_vectors_are_refused(shape):
    with pytest.raises(ValueError, match=r"at least two axes\. Received: shape=\(") as error:
        STIEFEL(np.ones(shape, "float32"))
    assert str(error.value).endswith(f"shape={shape}")


def test_config_round_trip():
    revived = keras.constraints.get(keras.constraints.serialize(STIEFEL))
    assert type(revived) is elrt.constraints.Stiefel
    matrix = random_array(5, 2)
    np.testing.assert_array_equal(to_numpy(revived(matrix)), to_numpy(STIEFEL(matrix)))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_layer_projects_its_factors_as_matrices_and_not_its_core(dims):
    layer_class = getattr(elrt.layers, f"Tucker2Conv{dims}D")
    layer = layer_class(7, 3, (3, 4), factor_constraint=STIEFEL, factor_initializer="he_normal")
    layer.build((None, *(6,) * dims, 5))
    assert [factor.constraint is not None for factor in layer.factors] == [True, False, True]
    before = matrices(layer)
    assert max(map(orthonormality, before)) > 0.1
    for factor in (layer.factors[0], layer.factors[2]):
        factor.assign(factor.constraint(factor))
    for matrix, start in zip(matrices(layer), before):
        np.testing.assert_array_equal(matrix, to_numpy(STIEFEL(start.astype("float32"))))
        assert orthonormality(matrix) <= TOLERANCE
