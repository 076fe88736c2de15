"""Grouped convolutions in layers, plans and conversions: each group is a convolution with its own factors."""

import keras
import numpy as np
import pytest
from common import (
    EPS,
    GROUPED_PLAN,
    compose,
    conv_cases,
    gradients,
    grouped_model,
    model_of,
    numpy_conv,
    orthonormality,
    random_array,
    random_examples,
    thorough_but,
    to_numpy,
)
from hypothesis import given
from hypothesis import strategies as st

import elrt_keras as elrt
from elrt_keras import formats
from elrt_keras.layers.convolutions import layer_class
from elrt_keras.layers.factorized_conv import FactorizedConv

pytestmark = pytest.mark.backends

layers = keras.layers
FORMATS = formats.names()


def of_groups(format_name, factors, groups):
    """Splits factors by group: each group gets its outputs of a factor, or its channels of CP's depthwise factor."""
    axes = [-2 if format_name == "cp" and index == 1 else -1 for index in range(len(factors))]
    parts = [np.split(to_numpy(factor), groups, axis) for factor, axis in zip(factors, axes)]
    return list(zip(*parts))


def composed(format_name, factors, groups):
    return np.concatenate([compose(format_name, some) for some in of_groups(format_name, factors, groups)], -1)


def grouped_conv(inputs, kernel, groups, data_format="channels_last", **arguments):
    axis = -1 if data_format == "channels_last" else 1
    parts = zip(np.split(inputs, groups, axis), np.split(kernel, groups, -1))
    return np.concatenate([numpy_conv(x, w, data_format=data_format, **arguments) for x, w in parts], axis)


def grouped_case(case, groups):
    """Turns a random convolution into one with that many groups, each with its number of channels."""
    *kernel_size, channels, filters = case["kernel_shape"]
    axis = -1 if case["arguments"]["data_format"] == "channels_last" else 1
    shape = list(case["input_shape"])
    shape[axis] *= groups
    return tuple(kernel_size), (*kernel_size, channels, filters * groups), tuple(shape)


@pytest.mark.parametrize("format_name", thorough_but(("tucker2", "cp"), FORMATS))
@random_examples(30)
@given(
    data=st.data(),
    groups=st.integers(2, 4),
    execution=st.sampled_from(("auto", "chain", "compose")),
    training=st.booleans(),
)
def test_every_group_is_convolved_with_the_kernel_of_its_factors(format_name, data, groups, execution, training):
    case = data.draw(conv_cases(format_name=format_name))
    kernel_size, kernel_shape, input_shape = grouped_case(case, groups)
    leaf = layer_class(format_name, len(kernel_size))
    options = {"groups": groups, "execution": execution, "use_bias": False}
    layer = leaf(kernel_shape[-1], kernel_size, case["ranks"], **case["arguments"], **options)
    inputs = random_array(*input_shape, seed=3)
    outputs = to_numpy(layer(inputs, training=training))
    assert layer.ranks == case["resolved"] and tuple(layer.kernel.shape) == layer.kernel_shape == kernel_shape
    kernel = composed(format_name, layer.factors, groups)
    np.testing.assert_allclose(to_numpy(layer.kernel), kernel, atol=1e-5)
    expected = grouped_conv(inputs, kernel, groups, **case["arguments"])
    assert outputs.shape == expected.shape == tuple(layer.compute_output_shape(input_shape))
    absolute = [np.abs(to_numpy(factor)) for factor in layer.factors]
    bound = grouped_conv(np.abs(inputs), composed(format_name, absolute, groups), groups, **case["arguments"])
    roundings = sum(factor.size for factor in absolute) + np.prod(kernel_shape[:-1]) + 4
    assert np.all(np.abs(outputs - expected) <= roundings * EPS["float32"] * bound + np.finfo("float32").tiny)


@pytest.mark.parametrize("format_name", thorough_but(("tucker2",), FORMATS))
def test_full_ranks_give_the_stock_layer(format_name):
    for arguments in (
        {"strides": 2, "padding": "same"},
        {"dilation_rate": 2, "activation": "relu"},
        {"data_format": "channels_first", "padding": "same"},
    ):
        dense = layers.Conv2D(6, 3, groups=3, bias_initializer="ones", name="conv", **arguments)
        shape = (2, 12, 8, 9) if "data_format" in arguments else (2, 8, 9, 12)
        inputs = random_array(*shape)
        expected = to_numpy(dense(inputs))
        for execution in ("chain", "compose"):
            low = layer_class(format_name, 2).from_dense(dense, 1.0, execution=execution)
            assert low.groups == 3 and low.name == "conv"
            for training in (False, True):
                np.testing.assert_allclose(to_numpy(low(inputs, training=training)), expected, atol=1e-5)
        merged, weights = low.merged()
        merged.build(shape)
        merged.set_weights(weights)
        np.testing.assert_allclose(to_numpy(merged(inputs)), expected, atol=1e-5)


@pytest.mark.parametrize("format_name", FORMATS)
def test_the_format_is_the_one_of_each_group(format_name):
    one, groups, shape, ranks = formats.get(format_name), 3, (3, 3, 6, 15), 2
    many = formats.grouped(one, groups)
    assert formats.grouped(one, groups) is many and formats.grouped(one, 1) is one
    kernel = random_array(*shape, seed=5)
    parts = np.split(kernel, groups, -1)
    assert many.max_ranks(shape) == one.max_ranks((3, 3, 6, 5))
    ranks = many.resolve_ranks(shape, ranks)
    for found, expected in zip(many.spectra(kernel), zip(*map(one.spectra, parts))):
        np.testing.assert_allclose(found, np.sum(expected, axis=0))
    for found, expected in zip(many.unfoldings(kernel), zip(*map(one.unfoldings, parts))):
        values = np.sort(np.concatenate([np.linalg.svd(matrix, compute_uv=False) for matrix in expected]))
        found = np.sort(np.linalg.svd(found, compute_uv=False))[-len(values) :]
        np.testing.assert_allclose(found, values, atol=1e-5)
    widths = many.rank_estimates(kernel, lambda matrix: matrix.shape[0])
    assert widths == [matrix.shape[0] for matrix in one.unfoldings(parts[0])]
    for index, norm in enumerate(many.rank_estimates(kernel, np.linalg.norm)):
        assert norm == pytest.approx(np.mean([np.linalg.norm(one.unfoldings(part)[index]) for part in parts]))
    higher = tuple(rank + 2 for rank in ranks)
    whole = many.decompose(kernel, higher)
    assert [f.shape for f in whole] == many.factor_shapes(shape, higher)
    by_group = [[factor.astype("float32") for factor in some] for some in of_groups(format_name, whole, groups)]
    for found, expected in (
        (many.decompose(kernel, ranks), [one.decompose(part, ranks) for part in parts]),
        (many.truncate(whole, ranks), [one.truncate(some, ranks) for some in by_group]),
    ):
        for some, others in zip(of_groups(format_name, found, groups), expected):
            np.testing.assert_allclose(compose(format_name, some), compose(format_name, others), atol=1e-4)
    norm = to_numpy(many.squared_norm([keras.ops.convert_to_tensor(factor) for factor in whole]))
    np.testing.assert_allclose(norm, np.sum(composed(format_name, whole, groups) ** 2), rtol=1e-5)
    norms = [np.sum(part**2) for part in parts]
    expected = np.dot(norms, [one.errors(part)(ranks) for part in parts]) / np.sum(norms)
    assert many.errors(kernel)(ranks) == pytest.approx(expected, rel=1e-5)
    left_out = sum(np.sum(compose(format_name, some) ** 2) * one.errors_of_factors(some)(ranks) for some in by_group)
    norm = np.sum(composed(format_name, whole, groups) ** 2)
    assert many.errors_of_factors(whole)(ranks) == pytest.approx(left_out / norm, rel=1e-3)


@pytest.mark.parametrize("initializer", ["orthogonal_factors", "spectral"])
def test_initial_factors_of_each_group_are_orthonormal_and_the_kernel_has_its_variance(initializer):
    layer = elrt.layers.Tucker2Conv2D(128, 3, (8, 16), groups=4, factor_initializer=initializer)
    layer.build((None, 8, 8, 64))
    for factor_in, _, factor_out in of_groups("tucker2", layer.factors, 4):
        assert orthonormality(factor_in[0, 0]) < 1e-5 and orthonormality(factor_out[0, 0]) < 1e-5
    assert max(elrt.callbacks.factor_errors(model_of(layer, shape=(8, 8, 64))).values()) < 1e-5
    assert np.var(to_numpy(layer.kernel)) == pytest.approx(2 / (9 * 16), rel=0.1)  # He: over the inputs of a group


def test_penalties_and_projections_are_those_of_a_layer_for_each_group():
    def make(filters, **arguments):
        return elrt.layers.Tucker2Conv2D(
            filters,
            3,
            2,
            factor_initializer="he_normal",
            factor_regularizer=elrt.regularizers.DoubleSoftOrthogonality(0.3),
            kernel_regularizer=keras.regularizers.L2(0.2),
            factor_constraint=elrt.constraints.Stiefel(),
            **arguments,
        )

    layer, parts = make(10, groups=2), [make(5), make(5)]
    layer.build((None, 6, 6, 8))
    for part, factors in zip(parts, of_groups("tucker2", layer.factors, 2)):
        part.build((None, 6, 6, 4))
        for variable, factor in zip(part.factors, factors):
            variable.assign(factor)
    expected = sum(float(to_numpy(loss)) for part in parts for loss in part.losses)
    assert sum(float(to_numpy(loss)) for loss in layer.losses) == pytest.approx(expected, rel=1e-5)
    errors = [elrt.regularizers.orthogonality_error(np.asarray(to_numpy(p.factors[0])[0, 0], "float32")) for p in parts]
    model = keras.Sequential([keras.Input((6, 6, 8)), layer])
    found = elrt.callbacks.factor_errors(model)[f"{layer.name}/factor_in"]
    assert found == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-5)
    projected = to_numpy(layer.factors[0].constraint(layer.factors[0].value))
    for part, some in zip(parts, np.split(projected, 2, -1)):
        np.testing.assert_allclose(some, to_numpy(part.factors[0].constraint(part.factors[0].value)), atol=1e-5)


@pytest.mark.parametrize("format_name", ["tucker2", "cp"])
@pytest.mark.parametrize("execution", ["chain", "compose"])
@pytest.mark.parametrize("recompute", thorough_but((False,), [False, True]))
def test_gradients_are_those_of_the_groups(format_name, execution, recompute):
    """Compares with one layer without groups for each group; training may run the groups one by one."""
    leaf, inputs = layer_class(format_name, 2), random_array(2, 6, 6, 12, seed=4)
    options = {"execution": execution, "strides": 2, "padding": "same", "recompute": recompute}
    layer, parts = leaf(9, 3, 2, groups=3, **options), [leaf(3, 3, 2, **options) for _ in range(3)]
    layer.build(inputs.shape)
    for part, factors in zip(parts, of_groups(format_name, layer.factors, 3)):
        part.build((None, 6, 6, 4))
        for variable, factor in zip(part.factors, factors):
            variable.assign(factor)

    def loss(of):
        return lambda: keras.ops.sum(keras.ops.square(of()))

    found = gradients(loss(lambda: layer(inputs, training=True)), layer.factors)
    images = np.split(inputs, 3, -1)
    expected = [
        gradients(loss(lambda part=part, x=x: part(x, training=True)), part.factors) for part, x in zip(parts, images)
    ]
    for group, of_group in zip(of_groups(format_name, found, 3), expected):
        for a, b in zip(group, of_group):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_conversions_keep_what_grouped_layers_compute(tmp_path):
    dense, inputs = grouped_model(), random_array(3, 12, 12, 3)
    low = elrt.factorize(dense, GROUPED_PLAN, factor_initializer="decomposed")
    expected = to_numpy(low(inputs))
    scale = np.abs(expected).max()
    merged, stock = elrt.merge(low), elrt.expand(low)
    for model in (merged, stock):
        np.testing.assert_allclose(to_numpy(model(inputs)), expected, atol=1e-4 * scale)
        assert not any(isinstance(layer, FactorizedConv) for layer in model.layers)
    assert merged.get_layer("grouped").groups == 2
    assert [stock.get_layer(f"grouped{end}").groups for end in ("_factor_in", "_core", "")] == [2, 2, 2]
    low.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(keras.models.load_model(tmp_path / "model.keras")(inputs)), expected)
    full = elrt.factorize(
        dense, {name: (form, 1.0) for name, (form, _) in GROUPED_PLAN.items()}, factor_initializer="decomposed"
    )
    np.testing.assert_allclose(to_numpy(full(inputs)), to_numpy(dense(inputs)), atol=1e-4 * scale)
    # Full ranks contain the lower ranks, so shrinking to those loses nothing.
    exact = elrt.factorize(elrt.merge(low), {"grouped": ("tucker2", (12, 24))}, factor_initializer="decomposed")
    target = elrt.count_costs(low).macs / elrt.count_costs(dense).macs
    shrunk = elrt.shrink(exact, max_macs=1.25 * target)
    assert shrunk.get_layer("grouped").ranks == (8, 16)
    np.testing.assert_allclose(to_numpy(shrunk(inputs)), expected, atol=1e-4 * scale)


def test_costs_are_those_of_the_groups():
    dense = grouped_model()
    low = elrt.factorize(dense, GROUPED_PLAN)
    by_name = {row.name: (row.macs, row.params) for row in elrt.count_costs(low).layers}
    # Two groups from 16 to 32 channels at ranks (8, 16) on 12×12 pixels; the parameters include biases.
    weights = 2 * (16 * 8 + 9 * 8 * 16 + 16 * 32)
    assert by_name["grouped"] == (144 * weights, weights + 64)
    assert by_name["pointwise"] == (144 * 4 * (16 * 4 + 4 * 16), 4 * (16 * 4 + 4 * 16) + 64)
    assert elrt.count_costs(elrt.expand(low)).macs == elrt.count_costs(low).macs


@pytest.mark.parametrize("method", ["uniform", "energy", "vbmf", "stable_rank"])
def test_plans_of_grouped_layers(method):
    dense = grouped_model()
    plan = elrt.plan_ranks(dense, max_macs=0.6, method=method)
    assert plan["depthwise"].is_dense and "depthwise" in plan.reasons["depthwise"]
    assert set(plan.factorized()) <= {"grouped", "pointwise"} and "grouped" in plan.factorized()
    assert plan["grouped"].ranks[0] <= 16 and plan["grouped"].ranks[1] <= 32
    low = elrt.factorize(dense, plan)
    costs = elrt.count_costs(low).macs
    assert costs <= 0.6 * elrt.count_costs(dense).macs
    rows = plan.costs.values()
    saved = sum(row["macs"] - row["planned_macs"] for row in rows)
    assert elrt.count_costs(dense).macs - saved == costs


def test_the_table_file_and_plot_of_a_plan_know_the_groups(tmp_path):
    plan = elrt.plan_ranks(grouped_model(), fraction=0.5)
    assert "3×3×16×64, 2 groups" in str(plan)
    plan.save(tmp_path / "plan.json")
    assert elrt.RankPlan.load(tmp_path / "plan.json").costs == plan.costs
    (axis, _) = elrt.plot.rank_plan(tmp_path / "plan.json").axes
    widths = [patch.get_width() for patch in axis.patches]
    assert max(widths) == 32  # the full rank of a group's outputs
    figure = elrt.plot.spectra(grouped_model())
    assert [panel.get_title() for panel in figure.axes] == ["stem", "grouped", "pointwise", "head"]


def test_group_sizes_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="multiple of groups=4. Received: input_shape=.*6"):
        elrt.layers.Tucker2Conv2D(8, 3, 1, groups=4).build((None, 8, 8, 6))
    with pytest.raises(ValueError, match="groups"):
        elrt.layers.Tucker2Conv2D(9, 3, 1, groups=4)
    with pytest.raises(ValueError, match=r"r_in of at most the full rank, 2, .*Received: ranks=\(4, 2\)"):
        elrt.layers.Tucker2Conv2D(8, 3, (4, 2), groups=4).build((None, 8, 8, 8))
    with pytest.raises(ValueError, match="'grouped': Expected r_in of at most the full rank, 16"):
        elrt.factorize(grouped_model(), {"grouped": ("tucker2", (17, 1))})
    with pytest.raises(ValueError, match=r"full rank, 2, for a kernel of shape \(3, 3, 2, 8\) in 4 groups"):
        elrt.layers.Tucker2Conv2D(8, 3, (2, 4), groups=4).build((None, 8, 8, 8))
    for groups in (0, 2.0, True):
        with pytest.raises(ValueError, match=f"int of at least 1. Received: groups={groups}"):
            formats.grouped("svd", groups)
    with pytest.raises(ValueError, match="Expected C_out a multiple of groups=3. Received: "):
        formats.grouped("svd", 3).max_ranks((3, 3, 8, 16))


@pytest.mark.thorough
def test_a_grouped_network_learns():
    keras.utils.set_random_seed(0)
    penalty = elrt.regularizers.DoubleSoftOrthogonality(0.01)
    images, labels = random_array(96, 8, 8, 8, seed=1), np.arange(96) % 2
    images[..., 0] += labels[:, None, None] - 0.5
    model = model_of(
        elrt.layers.Tucker2Conv2D(32, 3, 0.5, padding="same", groups=4, activation="relu", factor_regularizer=penalty),
        layers.GlobalAveragePooling2D(),
        layers.Dense(2),
        shape=(8, 8, 8),
    )
    model.compile(keras.optimizers.Adam(0.02), keras.losses.SparseCategoricalCrossentropy(True), metrics=["accuracy"])
    history = model.fit(images, labels, epochs=12, batch_size=32, verbose=0).history
    assert history["accuracy"][-1] > 0.85
