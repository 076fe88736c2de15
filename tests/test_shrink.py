"""`shrink` and `shrink_curve`: budgets are met, kernels of lower rank stay exact, everything else is kept."""

import keras
import numpy as np
import pytest
from common import functional, layer_table, random_array, thorough_but, to_numpy

import elrt_keras as elrt
from elrt_keras import formats

layers = keras.layers


@pytest.mark.backends
def test_shrink_is_exact_where_the_kernel_has_the_lower_rank():
    model = functional()
    inputs = random_array(3, 10, 10, 3, seed=2)
    exact = elrt.factorize(model, {"shared": ("tucker2", (3, 4)), "nested/conv": ("svd", 2), "head": ("svd", 1)})
    wider = elrt.factorize(
        elrt.merge(exact),
        {"shared": ("tucker2", (7, 6)), "nested/conv": ("svd", 5), "head": ("svd", 3)},
        factor_initializer="decomposed",
    )
    target = elrt.count_costs(exact).macs / elrt.count_costs(model).macs
    shrunk = elrt.shrink(wider, max_macs=target * (1 + 1e-9), multiple_of=1)
    ranks = {path: layer.ranks for path, layer in elrt.graph.paths.iterate_layers(shrunk) if hasattr(layer, "ranks")}
    assert ranks == {"shared": (3, 4), "nested/conv": (2,), "head": (1,)}
    expected = to_numpy(exact(inputs))
    np.testing.assert_allclose(to_numpy(shrunk(inputs)), expected, atol=1e-4 * np.abs(expected).max())
    assert elrt.count_costs(shrunk).macs == elrt.count_costs(exact).macs


@pytest.mark.tensorflow
def test_a_layer_may_stay_dearer_than_dense_where_others_lose_nothing():
    conv = {"padding": "same", "execution": "chain", "use_bias": False}
    free, flat = (elrt.layers.Tucker2Conv2D(16, 3, ranks=16, name=name, **conv) for name in ("free", "flat"))
    model = keras.Sequential([keras.Input((8, 8, 16)), free, flat])
    flat.assign_kernel(np.ones((3, 3, 16, 16)))  # of rank 1
    shrunk = elrt.shrink(model, max_macs=0.65, multiple_of=1)
    # Together they cost 0.62 of dense: the chain of the first costs 1.22 of its dense layer.
    assert shrunk.get_layer("free").ranks == (16, 16) and shrunk.get_layer("flat").ranks == (1, 1)


@pytest.mark.parametrize("name", thorough_but(("tucker2", "cp"), formats.names()))
def test_shrink_meets_budgets_and_keeps_everything_else(name):
    model = functional()
    low = elrt.factorize(
        model,
        {"shared": (name, 0.9), "nested/conv": (name, 0.9)},
        factor_regularizer=elrt.regularizers.SoftOrthogonality(),
    )
    dense = elrt.count_costs(model)
    smaller = elrt.shrink(low, max_macs=0.5, max_params=0.9, multiple_of=1)
    costs = elrt.count_costs(smaller)
    assert costs.macs <= 0.5 * dense.macs and costs.params <= 0.9 * dense.params
    assert layer_table(smaller) == layer_table(low)
    twins = dict(elrt.graph.paths.iterate_layers(smaller))
    for path, layer in elrt.graph.paths.iterate_layers(low):
        if isinstance(layer, elrt.layers.FactorizedLayer):
            assert all(new <= old for new, old in zip(twins[path].ranks, layer.ranks))
            assert twins[path].factor_regularizer is not None and twins[path].use_bias == layer.use_bias
        else:
            for a, b in zip(layer.weights, twins[path].weights):
                np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
    unchanged = elrt.shrink(smaller, max_macs=0.5)
    inputs = random_array(1, 10, 10, 3)
    np.testing.assert_array_equal(to_numpy(unchanged(inputs)), to_numpy(smaller(inputs)))


def test_ranks_are_multiples_or_below_one_multiple():
    inputs = keras.Input((8, 8, 64))
    x = layers.Conv2D(64, 3, padding="same", name="wide")(inputs)
    x = layers.Conv2D(6, 3, padding="same", name="narrow")(x)
    model = keras.Model(inputs, layers.Conv2D(32, 3, padding="same", name="last")(x))
    plan = {"wide": ("tucker2", (8, 24)), "narrow": ("tucker2", (12, 6)), "last": ("tucker2", (6, 8))}
    low = elrt.factorize(model, plan)
    for budget in (0.12, 0.08, 0.05, 0.031):
        small = elrt.shrink(low, max_macs=budget)
        for name, (_, present) in plan.items():
            for new, old in zip(small.get_layer(name).ranks, present):
                assert new == old or new % 8 == 0 or new < old <= 8
        assert elrt.count_costs(small).macs <= budget * elrt.count_costs(model).macs
    assert small.get_layer("wide").ranks[0] < 8
    with pytest.raises(ValueError, match=r"multiples of 8 \(a smaller `multiple_of` may reach less\)\. Expected"):
        elrt.shrink(low, max_macs=0.015)
    assert (
        elrt.count_costs(elrt.shrink(low, max_macs=0.015, multiple_of=1)).macs <= 0.015 * elrt.count_costs(model).macs
    )


def test_the_curve_of_a_shrunk_model():
    model = functional()
    low = elrt.factorize(model, {"shared": ("tucker2", 6), "nested/conv": ("tucker2", 5)})
    seen = []
    curve = elrt.shrink_curve(low, [0.6, 0.45], multiple_of=1, evaluate=lambda m: seen.append(m) or len(seen))
    assert [point.metric for point in curve.points] == [1, 2, 3] and seen[0] is low
    assert curve.dense_macs == elrt.count_costs(model).macs and curve.dense_params == elrt.count_costs(model).params
    for point, budget in zip(curve.points[1:], (0.6, 0.45)):
        assert point.macs == elrt.count_costs(point.model).macs <= budget * curve.dense_macs
    assert 0 == curve.points[0].loss < curve.points[1].loss < curve.points[2].loss < 1
    assert str(curve).count("\n") >= 4 and f"{curve.points[1].macs:,}" in str(curve)
    for arguments in ({}, {"max_macs": 0}, {"max_macs": 0.001}):
        with pytest.raises(ValueError, match="Received"):
            elrt.shrink(low, **arguments)
    with pytest.raises(ValueError, match="Expected a list of budgets. Received: max_macs=0.3"):
        elrt.shrink_curve(low, 0.3)
    with pytest.raises(ValueError, match="nothing to shrink"):
        elrt.shrink(model, max_macs=0.5)


def test_trained_cp_terms_are_left_out_where_it_costs_nothing():
    inputs = keras.Input((8, 8, 32))
    outputs = layers.Conv2D(32, 3, padding="same", name="b")(layers.Conv2D(32, 3, padding="same", name="a")(inputs))
    plan = {"a": ("cp", (24,)), "b": ("cp", (24,))}
    low = elrt.factorize(keras.Model(inputs, outputs), plan, factor_initializer="random_normal")
    factor = low.get_layer("a").factors[1]
    factor.assign(to_numpy(factor) * (np.arange(24) < 8)[:, None])  # 8 terms do all
    part = elrt.count_costs(low).macs / elrt.count_costs(elrt.merge(low)).macs
    curve = elrt.shrink_curve(low, [0.9, 0.7 * part], multiple_of=1)
    assert [point.loss for point in curve.points[:2]] == [0, 0]
    small = curve.points[2].model
    assert [small.get_layer(name).ranks for name in ("a", "b")] == [(8,), (24,)] and curve.points[2].loss <= 1e-9
    images = random_array(2, 8, 8, 32)
    np.testing.assert_allclose(to_numpy(small(images)), to_numpy(low(images)), atol=1e-6)


@pytest.mark.parametrize("format_name", formats.names())
def test_the_loss_is_what_the_kernel_lost(format_name):
    model = keras.Sequential([keras.Input((8, 8, 16)), layers.Conv2D(16, 3, name="conv")])
    ranks = tuple((limit + 1) // 2 for limit in formats.get(format_name).max_ranks((3, 3, 16, 16)))
    low = elrt.factorize(model, {"conv": (format_name, ranks)})
    curve = elrt.shrink_curve(low, [0.2, 0.1], multiple_of=1)
    whole = to_numpy(low.get_layer("conv").kernel).astype("float64")
    for point in curve.points:
        kernel = to_numpy(point.model.get_layer("conv").kernel)
        lost = np.sum((kernel - whole) ** 2) / np.sum(whole**2)
        assert point.loss == pytest.approx(lost, rel=1e-3, abs=1e-6) and point.loss <= 1
