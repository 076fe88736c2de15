"""The formats: chain against composition, decomposition against TensorLy and singular values, rank rules."""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorly
from common import (
    EPS,
    compose,
    conv_cases,
    depthwise_as_dense,
    numpy_conv,
    orthonormality,
    random_array,
    random_examples,
    random_factors,
    to_numpy,
)
from hypothesis import given
from hypothesis import strategies as st
from tensorly.cp_tensor import cp_to_tensor
from tensorly.decomposition import parafac, partial_tucker, tensor_train
from tensorly.tenalg import multi_mode_dot
from tensorly.tt_tensor import tt_to_tensor

import elrt_keras as elrt
from elrt_keras import formats
from elrt_keras.formats.arrays import MatrixView, leading_rows, squared_singular_values
from elrt_keras.formats.chain import conv_output_size

TUCKER2 = formats.get("tucker2")


# TensorLy completes the factor in that case, with a warning.
pytestmark = [
    pytest.mark.backends,
    pytest.mark.filterwarnings("ignore:Trying to compute SVD with n_eigenvecs:UserWarning"),
]


@pytest.mark.parametrize("name", formats.names())
@random_examples(60)
@given(data=st.data())
def test_chain_of_stages_equals_convolving_with_the_composed_kernel(name, data):
    case = data.draw(conv_cases(format_name=name))
    form, shape, arguments = formats.get(name), case["kernel_shape"], case["arguments"]
    ranks = case["resolved"]
    factors = random_factors(form.factor_shapes(shape, ranks))
    inputs = random_array(*case["input_shape"], seed=9)
    placement = {"padding": arguments["padding"], "data_format": arguments["data_format"]}
    strides, dilation_rate = arguments["strides"], arguments["dilation_rate"]

    def run(values, kernels):
        for stage, kernel in zip(form.stages(shape, ranks, strides, dilation_rate), kernels):
            assert kernel.shape[:-2] == stage.kernel_size
            kernel = depthwise_as_dense(kernel) if stage.depthwise else kernel
            assert kernel.shape[-2:] == (stage.in_channels, stage.out_channels)
            values = numpy_conv(values, kernel, stage.strides, dilation_rate=stage.dilation_rate, **placement)
        return values

    composed = to_numpy(form.compose([keras.ops.convert_to_tensor(factor) for factor in factors]))
    assert composed.shape == shape
    np.testing.assert_allclose(composed, compose(name, factors), rtol=1e-4, atol=1e-4)
    # Only composing rounds to float32; it has fewer roundings than the factors have elements.
    roundings = sum(factor.size for factor in factors)
    bound = roundings * EPS["float32"] * run(np.abs(inputs), [np.abs(factor) for factor in factors])
    error = np.abs(run(inputs, factors) - numpy_conv(inputs, composed, **arguments))
    assert np.all(error <= bound)


@st.composite
def kernels(draw, name, smallest_size=1):
    """A random kernel shape that the format takes, spatial axes first."""
    dims = draw(st.sampled_from([d for d in formats.get(name).spatial_dims if d]))
    return (*(draw(st.integers(1, 3)) for _ in range(dims)), *(draw(st.integers(smallest_size, 6)) for _ in range(2)))


@pytest.mark.parametrize("name", formats.names())
@random_examples(50)
@given(data=st.data(), seed=st.integers(0, 999))
def test_squared_norm_is_that_of_the_composed_kernel(name, data, seed):
    form, shape = formats.get(name), data.draw(kernels(name))
    ranks = tuple(data.draw(st.integers(1, limit)) for limit in form.max_ranks(shape))
    factors = random_factors(form.factor_shapes(shape, ranks), seed)
    found = float(form.squared_norm([keras.ops.convert_to_tensor(factor) for factor in factors]))
    magnitude = np.sum(compose(name, [np.abs(factor) for factor in factors]) ** 2)
    roundings = 2 * sum(factor.size for factor in factors)
    assert abs(found - np.sum(compose(name, factors) ** 2)) <= roundings * EPS["float32"] * magnitude


@pytest.mark.parametrize("name", formats.names())
@random_examples(50)
@given(data=st.data(), seed=st.integers(0, 999))
def test_every_format_is_exact_at_full_rank(name, data, seed):
    form, shape = formats.get(name), data.draw(kernels(name))
    kernel = random_array(*shape, seed=seed)
    factors = form.decompose(kernel, form.max_ranks(shape))
    assert [factor.shape for factor in factors] == form.factor_shapes(shape, form.max_ranks(shape))
    assert all(factor.dtype == kernel.dtype for factor in factors)
    assert np.linalg.norm(compose(name, factors) - kernel) <= 1e-5 * np.linalg.norm(kernel)


@pytest.mark.parametrize("name", formats.names())
@random_examples(40)
@given(data=st.data(), seed=st.integers(0, 999))
def test_the_error_is_at_most_the_tails_of_the_spectra(name, data, seed):
    form, shape = formats.get(name), data.draw(kernels(name))
    ranks = tuple(data.draw(st.integers(1, limit)) for limit in form.max_ranks(shape))
    kernel = random_array(*shape, seed=seed).astype("float64")
    spectra = form.spectra(kernel)
    assert [len(spectrum) >= rank for spectrum, rank in zip(spectra, ranks)]
    for spectrum in spectra:
        assert np.all(np.diff(spectrum) <= 1e-12) and spectrum.sum() == pytest.approx(np.sum(kernel**2))
    tails = sum(spectrum[rank:].sum() for spectrum, rank in zip(spectra, ranks))
    error = np.sum((compose(name, form.decompose(kernel, ranks)) - kernel) ** 2)
    assert error <= tails + 1e-9 * np.sum(kernel**2)
    if name in ("svd", "spatial_svd"):  # Eckart–Young: the bound is exact
        assert error == pytest.approx(tails, abs=1e-9 * np.sum(kernel**2))


# Least ratio of estimated to real captured energy. The last two formats iterate, so they capture more than estimated.
LEAST_CAPTURED = {"svd": 1.0, "spatial_svd": 1.0, "tensor_train": 1.0, "tucker2": 0.8, "cp": 0.8}


@pytest.mark.parametrize("name", formats.names())
@random_examples(40)
@given(data=st.data(), seed=st.integers(0, 999), decay=st.floats(0.4, 1.0))
def test_errors_are_what_decompositions_leave_out(name, data, seed, decay):
    form, shape = formats.get(name), data.draw(kernels(name))
    kernel = random_array(*shape, seed=seed).astype("float64") * decay ** np.arange(shape[-1])
    ranks = tuple(data.draw(st.integers(1, limit)) for limit in form.max_ranks(shape))
    ranks = form.usable_ranks(shape, ranks)
    error = form.errors(kernel)(ranks)
    captured = 1 - np.sum((compose(name, form.decompose(kernel, ranks)) - kernel) ** 2) / np.sum(kernel**2)
    assert 0 <= error <= 1 - LEAST_CAPTURED[name] * captured + 1e-9
    if LEAST_CAPTURED[name] == 1:
        assert error == pytest.approx(1 - captured, abs=1e-9)
    assert form.errors(kernel)(form.max_ranks(shape)) == pytest.approx(0, abs=1e-9)
    assert form.errors(0 * kernel)(ranks) == 0


@pytest.mark.parametrize("name", ["tucker2", "cp", "tensor_train"])
def test_errors_of_a_wide_kernel_lie_on_a_falling_curve(name):
    """Checks wide kernels, whose errors are computed at some ranks only."""
    kernel = random_array(3, 3, 40, 130, seed=2)
    errors, full = formats.get(name).errors(kernel), np.array(formats.get(name).max_ranks(kernel.shape))
    curve = [errors(tuple(np.maximum(1, np.round(part * full)).astype(int))) for part in np.linspace(0.02, 1, 80)]
    assert np.all(np.diff(curve) <= 1e-9) and curve[0] > 0.9 and curve[-1] == pytest.approx(0, abs=1e-9)


def test_errors_of_a_format_that_overrides_nothing_are_estimated_from_its_spectra():
    class Plain(formats.get("tucker2").__class__):
        errors = formats.Format.errors

    kernel = random_array(3, 3, 24, 24, seed=1)
    for ranks in [(8, 8), (12, 6), (20, 20), (24, 24)]:
        captured = 1 - Plain().errors(kernel)(ranks)
        left_out = np.sum((compose("tucker2", Plain().decompose(kernel, ranks)) - kernel) ** 2) / np.sum(kernel**2)
        assert 0.7 * (1 - left_out) <= captured <= 1.05 * (1 - left_out)


@pytest.mark.parametrize("name", formats.names())
@pytest.mark.parametrize("shape", [(3, 3, 6, 8), (3, 2, 8, 5), (3, 1, 4, 4), (1, 1, 6, 6)])
def test_decompositions_are_no_worse_than_tensorlys(name, shape):
    form, kernel = formats.get(name), random_array(*shape).astype("float64")
    for fraction in (0.3, 0.6):
        ranks = tuple(max(1, math.floor(fraction * limit)) for limit in form.max_ranks(shape))
        error = np.linalg.norm(compose(name, form.decompose(kernel, ranks)) - kernel)
        reference = tensorly_error(name, kernel, ranks)
        assert error <= reference + 1e-5 * np.linalg.norm(kernel), (ranks, error, reference)


def tensorly_error(name, kernel, ranks):
    """Returns the error of TensorLy's decomposition, with the format's order of modes or its matrix."""
    height, width, channels, filters = kernel.shape
    with tensorly.backend_context("numpy"):
        if name == "tucker2":
            (core, factors), _ = partial_tucker(kernel, rank=list(ranks), modes=[2, 3])
            return np.linalg.norm(kernel - multi_mode_dot(core, factors, modes=[2, 3]))
        if name == "cp":
            tensor = kernel.reshape(-1, channels, filters)
            return np.linalg.norm(tensor - cp_to_tensor(parafac(tensor, ranks[0], random_state=0)))
        if name == "tensor_train":
            train = kernel.transpose(2, 0, 1, 3)
            return np.linalg.norm(train - tt_to_tensor(tensor_train(train, [1, *ranks, 1])))
        matrix = kernel.reshape(-1, filters)
        if name == "spatial_svd":
            matrix = kernel.transpose(0, 2, 1, 3).reshape(height * channels, width * filters)
        left, values, right = tensorly.truncated_svd(matrix, n_eigenvecs=ranks[0])
        return np.linalg.norm(matrix - left * values @ right)


@pytest.mark.parametrize("name", formats.names())
def test_factors_of_a_decomposition_are_orthonormal(name):
    if name == "cp":
        pytest.skip("CP factors of a given kernel are not orthogonal; theirs have unit columns, tested below")
    form, kernel = formats.get(name), random_array(3, 3, 6, 8)
    factors = form.decompose(kernel, tuple(math.ceil(limit / 2) for limit in form.max_ranks(kernel.shape)))
    views = form.orthogonal_factors(2)
    assert views and form.core_index not in {view.index for view in views}
    for view in views:
        assert orthonormality(to_numpy(view.to_matrix(factors[view.index]))) <= 1e-5


def test_outer_cp_factors_have_unit_columns():
    left, depthwise, right = formats.get("cp").decompose(random_array(3, 3, 6, 8), (10,))
    assert depthwise.shape == (3, 3, 10, 1)
    np.testing.assert_allclose(np.linalg.norm(left[0, 0], axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(right[0, 0], axis=1), 1, rtol=1e-5)


def test_the_horizontal_factor_is_read_as_rank_by_the_rest():
    (view,) = formats.get("spatial_svd").orthogonal_factors(2)
    factor = random_array(1, 3, 4, 5)
    np.testing.assert_array_equal(to_numpy(view.to_matrix(factor)), factor[0].transpose(1, 0, 2).reshape(4, 15))


@pytest.mark.parametrize("name", formats.names())
def test_truncate_is_as_good_as_decomposing_the_composed_kernel(name):
    form, shape = formats.get(name), (3, 3, 8, 10)
    ranks = tuple(math.ceil(0.7 * limit) for limit in form.max_ranks(shape))
    lower = tuple(math.ceil(0.3 * limit) for limit in form.max_ranks(shape))
    factors = random_factors(form.factor_shapes(shape, ranks))
    kernel = compose(name, factors)
    truncated = form.truncate(factors, lower)
    assert [factor.shape for factor in truncated] == form.factor_shapes(shape, lower)
    best = np.linalg.norm(compose(name, form.decompose(kernel, lower)) - kernel)
    assert np.linalg.norm(compose(name, truncated) - kernel) <= best * (1 + 1e-3)


def test_truncating_orthonormal_tucker2_factors_costs_what_the_core_loses():
    form, shape, ranks = TUCKER2, (3, 3, 12, 10), (8, 6)
    factors = form.decompose(random_array(*shape), ranks)
    core = factors[1].astype("float64")
    lost = np.linalg.norm(compose("tucker2", form.truncate(factors, (4, 3))) - compose("tucker2", factors))
    small = form.decompose(core, (4, 3))
    assert lost == pytest.approx(np.linalg.norm(compose("tucker2", small) - core), rel=1e-4)


@pytest.mark.tensorflow
@pytest.mark.parametrize("shape, axis", [((3, 3, 4, 10), 2), ((3, 3, 10, 4), 3)])
def test_the_rank_of_cp_is_estimated_from_the_narrower_channel_axis(shape, axis):
    kernel = random_array(*shape)
    (unfolding,) = formats.get("cp").unfoldings(kernel)
    np.testing.assert_array_equal(unfolding, np.moveaxis(kernel, axis, 0).reshape(4, -1))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # TensorLy's relative error of nothing
@pytest.mark.parametrize("name", formats.names())
def test_a_zero_kernel_and_one_of_known_rank(name):
    form, shape = formats.get(name), (3, 3, 5, 6)
    ranks = tuple(max(1, limit // 3) for limit in form.max_ranks(shape))
    assert not np.any(compose(name, form.decompose(np.zeros(shape, "float32"), ranks)))
    kernel = compose(name, random_factors(form.factor_shapes(shape, ranks))).astype("float32")
    error = np.linalg.norm(compose(name, form.decompose(kernel, ranks)) - kernel) / np.linalg.norm(kernel)
    # Alternating least squares converges slowly to an exact CP; the other formats are direct.
    assert error <= (1e-2 if name == "cp" else 1e-5)


@pytest.mark.parametrize("rows, columns", [(60, 45), (45, 60)])
def test_large_matrices_take_the_way_over_the_gram_matrix(monkeypatch, rows, columns):
    monkeypatch.setattr(formats.arrays, "_GRAM_SIZE", 20)
    matrix = np.random.default_rng(0).standard_normal((rows, columns)) * np.linspace(1, 3, columns)
    values = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(squared_singular_values(matrix), values**2, rtol=1e-9, atol=1e-9 * values[0] ** 2)
    leading = leading_rows(matrix, 10)
    assert orthonormality(leading) <= 1e-9
    error = np.linalg.norm(matrix - matrix @ leading.T @ leading) ** 2
    assert error == pytest.approx(np.sum(values[10:] ** 2), rel=1e-9)


def test_one_more_format_is_one_more_file():
    class Halves(formats.get("svd").__class__):
        name = "halves"

    formats.register(Halves)
    try:
        dense = keras.layers.Conv2D(6, 3, name="conv")
        model = keras.Sequential([keras.Input((8, 8, 6)), dense])
        plan = elrt.plan_ranks(model, format="halves", fraction=0.5, exclude=[])
        low = elrt.factorize(model, plan)
        conv = low.get_layer("conv")
        assert type(conv) is elrt.layers.LowRankConv2D and conv.get_config()["format"] == "halves"
        assert elrt.count_costs(low).macs == 36 * 3 * (9 * 6 + 6)
        inputs = random_array(1, 8, 8, 6)
        for back in (elrt.merge, elrt.expand):
            np.testing.assert_allclose(to_numpy(back(low)(inputs)), to_numpy(low(inputs)), atol=1e-5)
    finally:
        formats.base._FORMATS.pop("halves")


@given(case=conv_cases())
def test_conv_output_size_is_that_of_the_stock_layer(case):
    arguments = case["arguments"]
    *kernel_size, _, filters = case["kernel_shape"]
    dims = len(kernel_size)
    stock = getattr(keras.layers, f"Conv{dims}D")(filters, kernel_size, **arguments)
    last = arguments["data_format"] == "channels_last"

    def spatial(shape):
        return tuple(shape[1:-1] if last else shape[2:])

    arguments = (kernel_size, arguments["strides"], arguments["padding"], arguments["dilation_rate"])
    expected = spatial(stock.compute_output_shape(case["input_shape"]))
    assert conv_output_size(spatial(case["input_shape"]), *arguments) == expected
    assert conv_output_size((None,) * dims, *arguments) == (None,) * dims


@given(shape=st.lists(st.integers(1, 3), min_size=4, max_size=4), data=st.data())
def test_matrix_view_reads_and_restores_any_axes(shape, data):
    axes = data.draw(st.permutations(range(4)))
    split = data.draw(st.integers(1, 3))
    view = MatrixView(0, tuple(axes[:split]), tuple(axes[split:]))
    factor = random_array(*shape)
    matrix = to_numpy(view.to_matrix(keras.ops.convert_to_tensor(factor)))
    rows, columns = ([shape[axis] for axis in part] for part in (view.rows, view.columns))
    assert matrix.shape == (math.prod(rows), math.prod(columns))
    for position in itertools.product(*map(range, shape)):
        row = np.ravel_multi_index([position[axis] for axis in view.rows], rows)
        column = np.ravel_multi_index([position[axis] for axis in view.columns], columns)
        assert matrix[row, column] == factor[position]
    restored = view.from_matrix(keras.ops.convert_to_tensor(matrix.astype("float32")), factor.shape)
    np.testing.assert_array_equal(to_numpy(restored), factor)


def test_formats_are_found_by_name():
    assert "tucker2" in formats.names() and formats.names() == sorted(formats.names())
    assert formats.get("tucker2").name == "tucker2" and formats.get(TUCKER2) is TUCKER2
    with pytest.raises(ValueError, match=r"Expected one of \[.*'tucker2'.*\]\. Received: format='tucker9'"):
        formats.get("tucker9")


def test_cp_where_orthogonal_terms_are_multiples_in_two_modes():
    kernel = np.zeros((1, 3, 2, 2), "float32")
    kernel[0, 0], kernel[0, 1] = [[6, 0], [0, 2]], [[1, 0], [0, -2]]
    for ranks in [(1,), (2,), (3,), (4,)]:
        factors = formats.get("cp").decompose(kernel, ranks)
        assert all(np.all(np.isfinite(factor)) for factor in factors)
    assert np.linalg.norm(compose("cp", factors) - kernel) <= 1e-5 * np.linalg.norm(kernel)


@pytest.mark.thorough
def test_a_large_cp_decomposition_is_as_close_as_many_plain_steps():
    kernel = random_array(3, 3, 112, 112)
    error = np.linalg.norm(compose("cp", formats.get("cp").decompose(kernel, (150,))) - kernel)
    tensor = kernel.reshape(-1, 112, 112).astype("float64")
    with tensorly.backend_context("numpy"):
        cp = parafac(tensor, 150, random_state=0, n_iter_max=200, tol=1e-8)
    assert error <= np.linalg.norm(tensor - cp_to_tensor(cp))


@pytest.mark.parametrize("name, shape", [("tucker2", (1, 3, 8, 8)), ("tensor_train", (3, 3, 6, 6))])
def test_ranks_above_the_usable_ones_add_nothing(name, shape):
    form = formats.get(name)
    kernel = random_array(*shape)
    for ranks in itertools.product(*(range(1, limit + 1, 3) for limit in form.max_ranks(shape))):
        usable = form.usable_ranks(shape, ranks)
        assert all(1 <= few <= many for few, many in zip(usable, ranks)) and form.usable_ranks(shape, usable) == usable
        # Oracle: the usable ranks are the ranks of the unfoldings of a kernel composed of random factors.
        unfolded = form.unfoldings(compose(name, random_factors(form.factor_shapes(shape, ranks))).astype("float64"))
        assert tuple(np.linalg.matrix_rank(matrix, rtol=1e-5) for matrix in unfolded) == usable
        if usable != ranks and name == "tucker2":  # TT-SVD is not quite the best, and differs by how far it is from it
            errors = [np.linalg.norm(compose(name, form.decompose(kernel, r)) - kernel) for r in (ranks, usable)]
            assert errors[0] == pytest.approx(errors[1], rel=1e-2)


def test_components_that_a_decomposition_has_no_use_for_can_still_learn():
    factors = formats.get("tensor_train").decompose(random_array(3, 3, 8, 8), (8, 2, 8))
    for factor in (factors[0][0, 0].T, factors[3][0, 0]):
        assert orthonormality(factor) <= 1e-5


def test_leaving_out_terms_of_cp_against_all_ways_to_do_so():
    form, shape = formats.get("cp"), (2, 2, 4, 5)
    factors = random_factors(form.factor_shapes(shape, (5,)))
    whole = compose("cp", factors)
    norm = np.linalg.norm(whole) ** 2
    errors = form.errors_of_factors(factors)
    tails = np.array([norm * errors((rank,)) for rank in range(6)])
    assert np.all(np.diff(tails) <= 1e-9 * norm) and tails[0] == pytest.approx(norm, rel=1e-4)
    assert form.errors_of_factors([0 * factor for factor in factors])((2,)) == 0

    def error(kept):
        some = (factors[0][..., kept], factors[1][:, :, kept], factors[2][..., kept, :])
        return np.linalg.norm(compose("cp", some) - whole) ** 2

    for rank in (1, 2, 3, 4, 5):
        least = min(error(list(kept)) for kept in itertools.combinations(range(5), rank))
        # Terms are removed one after another. That is never better than the best subset, and equal for the first term.
        assert tails[rank] >= min(least, norm) * (1 - 1e-4) - 1e-6 * norm
        assert rank != 4 or tails[rank] == pytest.approx(min(least, norm), rel=1e-3)
        truncated = compose("cp", form.truncate(factors, (rank,)))
        assert np.linalg.norm(truncated - whole) ** 2 <= tails[rank] + 1e-6 * norm


@pytest.mark.parametrize("name", [["svd"], None, 3])
def test_a_format_goes_by_its_name(name):
    with pytest.raises(ValueError, match="Expected one of .* Received: format="):
        elrt.formats.get(name)
