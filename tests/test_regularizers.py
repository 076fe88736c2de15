"""Orthogonality regularizers against NumPy, their gradients, and the Stiefel retraction."""

import keras
import numpy as np
import pytest
from common import gradients, orthonormality, random_array, to_numpy
from hypothesis import given
from hypothesis import strategies as st

import elrt_keras as elrt
from elrt_keras import constraints, regularizers
from elrt_keras.launch.config import TrainConfig

pytestmark = pytest.mark.backends

SHAPES = [(7, 3), (3, 7), (5, 5), (40, 8)]


def grams(matrix):
    matrix = np.asarray(matrix, "float64")
    return matrix.T @ matrix - np.eye(matrix.shape[1]), matrix @ matrix.T - np.eye(matrix.shape[0])


def smaller(matrix):
    return min(grams(matrix), key=len)


def dso_oracle(matrix):
    """The paper's formula with both Gram matrices and 1/Φ."""
    return sum(np.sum(deviation**2) for deviation in grams(matrix)) / min(matrix.shape)


ORACLES = {
    regularizers.SoftOrthogonality: lambda m: np.sum(smaller(m) ** 2) / min(m.shape),
    regularizers.DoubleSoftOrthogonality: dso_oracle,
    regularizers.MutualCoherence: lambda m: np.abs(smaller(m)).max(),
}


@pytest.mark.parametrize("regularizer", ORACLES)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 99))
def test_against_numpy(regularizer, rows, columns, seed):
    matrix = random_array(rows, columns, seed=seed)
    expected = 0.3 * ORACLES[regularizer](matrix)
    # Sum of positive terms of up to ten products: a relative error of some tens of units in the last place.
    np.testing.assert_allclose(to_numpy(regularizer(0.3)(matrix)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [*SHAPES, (256, 128)])  # the largest eigenvalues of the last shape lie close together
@pytest.mark.parametrize("scale", [0.05, 0.1, 0.5, 2.0])
def test_srip_against_the_spectral_norm(shape, scale):
    matrix = random_array(*shape, seed=4, scale=scale)
    exact = np.linalg.norm(smaller(matrix), 2)
    got = float(to_numpy(regularizers.SpectralIsometry(1.0)(matrix)))
    assert exact * (1 - 1e-3) <= got <= exact * (1 + 1e-5)  # from below, by the nature of power iteration
    few = float(to_numpy(regularizers.SpectralIsometry(1.0, power_iterations=6)(matrix)))
    start = np.random.default_rng(0).standard_normal(min(shape))
    direction = np.linalg.matrix_power(smaller(matrix), 5) @ start
    expected = np.linalg.norm(smaller(matrix) @ direction) / np.linalg.norm(direction)
    assert few == pytest.approx(expected, rel=1e-4)


def test_srip_gradient_is_that_of_the_norm():
    variable = keras.Variable(random_array(6, 4, seed=2))
    penalty = regularizers.SpectralIsometry(1.0, power_iterations=100)
    (got,) = gradients(lambda: penalty(variable.value), [variable])
    matrix, step = to_numpy(variable), 1e-6
    expected = np.zeros_like(matrix)
    for index in np.ndindex(*matrix.shape):
        shift = np.zeros_like(matrix)
        shift[index] = step
        up, down = (np.linalg.norm(smaller(matrix + s * shift), 2) for s in (1, -1))
        expected[index] = (up - down) / (2 * step)
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_of_so_is_that_of_its_formula(shape, dtype):
    variable = keras.Variable(random_array(*shape, seed=3), dtype=dtype)
    penalty = regularizers.SoftOrthogonality(0.5)
    (got,) = gradients(lambda: 3.0 * penalty(variable.value), [variable])
    matrix, step = to_numpy(variable), 1e-5
    expected = np.zeros_like(matrix)
    for index in np.ndindex(*matrix.shape):
        shift = np.zeros_like(matrix)
        shift[index] = step
        up, down = (np.sum(smaller(matrix + s * shift) ** 2) for s in (1, -1))
        expected[index] = 3.0 * 0.5 / min(shape) * (up - down) / (2 * step)
    # The computation is in float32 for both types; the result is rounded to the type of the variable.
    tolerance = 1e-5 if dtype == "float32" else 2.0**-8
    np.testing.assert_allclose(got, expected, rtol=2 * tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalize", [True, False])
def test_gradient_of_dso_is_twice_that_of_so(shape, normalize):
    variable = keras.Variable(random_array(*shape, seed=1))
    pair = [
        kind(0.7, normalize=normalize)
        for kind in (regularizers.SoftOrthogonality, regularizers.DoubleSoftOrthogonality)
    ]
    single, double = (gradients(lambda r=r: r(variable.value), [variable])[0] for r in pair)
    assert np.abs(single).max() > 0
    np.testing.assert_allclose(double, 2 * single, rtol=1e-5, atol=1e-6 * np.abs(single).max())


@pytest.mark.parametrize("kind", [regularizers.SoftOrthogonality, regularizers.DoubleSoftOrthogonality])
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_gradients_can_be_derived_again(kind, shape):
    """Compares a Hessian-vector product with the closed form of SO; that of DSO is twice as large."""
    matrix, direction = random_array(*shape, seed=3), random_array(*shape, seed=4)
    got = hessian_product(kind(1.0), matrix, direction)
    tall = matrix.astype("float64") if shape[0] >= shape[1] else matrix.T.astype("float64")
    along = direction.astype("float64") if shape[0] >= shape[1] else direction.T.astype("float64")
    deviation = tall.T @ tall - np.eye(tall.shape[1])
    expected = 4 / min(shape) * (along @ deviation + tall @ (along.T @ tall + tall.T @ along))
    expected = expected if shape[0] >= shape[1] else expected.T
    factor = 2 if kind is regularizers.DoubleSoftOrthogonality else 1
    np.testing.assert_allclose(got, factor * expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def hessian_product(function, matrix, direction):
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        variable = tf.Variable(matrix)
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                value = function(variable)
            slope = tf.reduce_sum(inner.gradient(value, variable) * direction)
        return outer.gradient(slope, variable).numpy()
    if backend == "torch":
        import torch

        variable = torch.tensor(matrix, requires_grad=True)
        (slope,) = torch.autograd.grad(function(variable), variable, create_graph=True)
        return torch.autograd.grad((slope * torch.tensor(direction)).sum(), variable)[0].numpy()
    import jax

    return np.asarray(jax.grad(lambda v: (jax.grad(function)(v) * direction).sum())(matrix))


def test_names_stand_for_objects_wherever_these_do():
    model = keras.Sequential([keras.Input((6, 6, 4)), keras.layers.Conv2D(6, 3, name="conv")])
    for name, kind in regularizers.BY_NAME.items():
        assert type(regularizers.get(name)) is kind and regularizers.get(name).strength == regularizers.DEFAULT_STRENGTH
        layer = elrt.layers.Tucker2Conv2D(6, 3, (2, 3), factor_regularizer=name, factor_constraint="stiefel")
        low = elrt.factorize(
            model, {"conv": ("tucker2", (2, 3))}, factor_regularizer=name, factor_constraint="stiefel"
        ).get_layer("conv")
        for one in (layer, low, type(low).from_config(low.get_config())):
            assert type(one.factor_regularizer) is kind and type(one.factor_constraint) is elrt.constraints.Stiefel
    assert regularizers.get(None) is None and type(regularizers.get("l2")) is keras.regularizers.L2
    with pytest.raises(ValueError, match="Received: factor_regularizer='dsoo'. Did you mean 'dso'?"):
        elrt.layers.LowRankDense(6, 2, factor_regularizer="dsoo")
    with pytest.raises(ValueError, match="Received: factor_constraint='stifel'. Did you mean 'stiefel'?"):
        elrt.factorize(model, {"conv": ("tucker2", 2)}, factor_constraint="stifel")


@pytest.mark.parametrize("regularizer", regularizers.BY_NAME.values())
@pytest.mark.parametrize("matrix", [np.eye(6, 3), np.eye(3, 6), np.zeros((4, 3)), np.ones((1, 1))])
def test_gradients_are_finite_at_the_special_points(regularizer, matrix):
    variable = keras.Variable(matrix.astype("float32"))
    instance = regularizer(1.0)
    (gradient,) = gradients(lambda: instance(variable.value), [variable])
    assert gradient is not None and np.isfinite(gradient).all()


@pytest.mark.parametrize("regularizer", regularizers.BY_NAME.values())
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_accumulate_in_float32(regularizer, dtype):
    # 2048 ones: a float16 sum of their squares stalls at 2048, and its square would overflow.
    weight = keras.ops.ones((2048, 2), dtype=dtype)
    value = regularizer(1.0)(weight)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    expected = regularizer(1.0)(np.ones((2048, 2), "float32"))
    np.testing.assert_allclose(to_numpy(value), to_numpy(expected), rtol=1e-6)


@pytest.mark.parametrize("regularizer", regularizers.BY_NAME.values())
def test_a_kernel_is_read_as_a_matrix(regularizer):
    kernel = random_array(3, 3, 2, 5)
    np.testing.assert_allclose(
        to_numpy(regularizer(0.5)(kernel)), to_numpy(regularizer(0.5)(kernel.reshape(18, 5))), rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"at least two axes. Received: shape=\(4,\)"):
        regularizer()(np.ones(4, "float32"))


@pytest.mark.parametrize("regularizer", regularizers.BY_NAME.values())
def test_strength_can_be_set_and_is_saved(regularizer):
    matrix = random_array(5, 3)
    instance = regularizer(0.5)
    before = float(to_numpy(instance(matrix)))
    instance.strength = 1.5
    assert float(to_numpy(instance(matrix))) == pytest.approx(3 * before, rel=1e-5)
    revived = keras.regularizers.get(keras.regularizers.serialize(instance))
    assert type(revived) is regularizer and revived.strength == 1.5
    for value in (-1, float("nan"), float("inf"), "much"):
        with pytest.raises(ValueError, match=f"Received: strength={value!r}"):
            regularizer(value)


def test_further_arguments_round_trip_and_are_checked():
    assert regularizers.SoftOrthogonality(1.0, normalize=False).get_config() == {"strength": 1.0, "normalize": False}
    assert regularizers.SpectralIsometry.from_config({"strength": 1.0, "power_iterations": 3}).power_iterations == 3
    assert regularizers.SpectralIsometry(1.0, 3).get_config() == {"strength": 1.0, "power_iterations": 3}
    with pytest.raises(ValueError, match="Received: power_iterations=0"):
        regularizers.SpectralIsometry(power_iterations=0)


@pytest.mark.parametrize(
    "matrix", [np.eye(3), np.eye(6, 3), np.eye(3, 6), np.eye(1), -np.eye(2)], ids=lambda m: str(m.shape)
)
def test_penalties_of_exactly_orthonormal_matrices(matrix):
    # S − I is exactly zero here, without rounding; only an epsilon that guards a division may remain.
    matrix = matrix.astype("float32")
    for kind in (regularizers.SoftOrthogonality, regularizers.MutualCoherence, regularizers.SpectralIsometry):
        assert float(to_numpy(kind(1.0)(matrix))) <= 1e-9, kind.__name__
    constant = abs(matrix.shape[0] - matrix.shape[1]) / min(matrix.shape)
    assert float(to_numpy(regularizers.DoubleSoftOrthogonality(1.0)(matrix))) == constant


@pytest.mark.parametrize("value", [True, 2.0, "3", None, -1])
def test_power_iterations_are_a_positive_int(value):
    with pytest.raises(ValueError, match=f"Received: power_iterations={value!r}"):
        regularizers.SpectralIsometry(power_iterations=value)


@given(rows=st.integers(1, 8), columns=st.integers(1, 8), seed=st.integers(0, 99))
def test_orthogonality_error_against_numpy(rows, columns, seed):
    matrix = random_array(rows, columns, seed=seed)
    deviation = smaller(matrix)
    expected = np.linalg.norm(deviation) / np.sqrt(len(deviation))
    assert regularizers.orthogonality_error(matrix) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("shape", [*SHAPES, (3, 3, 4, 6)])
def test_stiefel_retracts_and_keeps_what_is_orthonormal(shape):
    project = constraints.Stiefel()
    weight = random_array(*shape, seed=6)
    result = to_numpy(project(weight))
    assert result.shape == shape and orthonormality(result.reshape(-1, shape[-1])) < 1e-5
    again = to_numpy(project(result.astype("float32")))
    np.testing.assert_allclose(again, result, atol=1e-5)
    # QR keeps the column space of a tall matrix.
    matrix, flat = weight.reshape(-1, shape[-1]).astype("float64"), result.reshape(-1, shape[-1])
    if matrix.shape[0] < matrix.shape[1]:
        matrix, flat = matrix.T, flat.T
    np.testing.assert_allclose(flat @ (flat.T @ matrix), matrix, atol=1e-4)


def test_stiefel_in_half_precision_and_bad_input():
    result = constraints.Stiefel()(keras.ops.cast(random_array(6, 3), "bfloat16"))
    assert keras.backend.standardize_dtype(result.dtype) == "bfloat16"
    with pytest.raises(ValueError, match="at least two axes"):
        constraints.Stiefel()(np.ones(3, "float32"))


@pytest.mark.parametrize("regularizer", regularizers.BY_NAME.values())
def test_the_default_strength_is_the_one_of_elrt_train(regularizer):
    assert regularizer().strength == TrainConfig(dataset="digits").orthogonality_strength


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2), (0, 3)])
def test_an_orthogonality_error_is_that_of_a_matrix(shape):
    with pytest.raises(ValueError, match="Expected a matrix. Received: an array of shape"):
        regularizers.orthogonality_error(np.zeros(shape, "float32"))
