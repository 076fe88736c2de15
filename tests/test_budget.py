"""Planning ranks: budgets, grids, exclusions."""

import itertools

import keras
import numpy as np
import pytest
from common import random_examples, thorough_but
from hypothesis import given
from hypothesis import strategies as st

import elrt_keras as elrt
from elrt_keras import formats
from elrt_keras.graph.view import View
from elrt_keras.ranks import methods
from elrt_keras.ranks.budget import Budget, on_grid
from elrt_keras.ranks.plan import DENSE
from elrt_keras.ranks.survey import survey
from elrt_keras.ranks.uniform import ScaledRanks

layers = keras.layers


@pytest.fixture(scope="module")
def resnet():
    return elrt.models.build("resnet20")


def planned(resnet, plan):
    """Returns MACs and parameters under a plan, relative to the dense model, from the plan's own layer costs."""
    dense = elrt.count_costs(resnet)
    saved = {
        resource: sum(row[resource] - row[f"planned_{resource}"] for row in plan.costs.values())
        for resource in ("macs", "params")
    }
    return (dense.macs - saved["macs"]) / dense.macs, (dense.params - saved["params"]) / dense.params


@pytest.fixture(scope="module")
def small():
    """Six layers of growing width, one of them a 1×1 convolution, one dense."""
    model = keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(16, 3, name="stem")])
    for index, filters in enumerate((24, 32, 48, 64)):
        model.add(layers.Conv2D(filters, 3, strides=1 + index % 2, padding="same", name=f"conv{index}"))
    model.add(layers.Conv2D(96, 1, name="pointwise"))
    for layer in (layers.GlobalAveragePooling2D(), layers.Dense(128, name="hidden"), layers.Dense(10, name="head")):
        model.add(layer)
    return model


@pytest.mark.tensorflow
@pytest.mark.parametrize("rank, expected", [(0.1, 8), (11.9, 8), (12, 16), (19.9, 16), (59.9, 56), (61, 62), (62, 62)])
def test_ranks_are_rounded_to_the_nearest_on_the_grid(rank, expected):
    assert on_grid(rank, limit=62, step=8) == expected


@pytest.mark.tensorflow
def test_a_budget_may_be_spent_to_the_last():
    budget = Budget([], {"macs": 100, "params": 50}, {"macs": 0.4, "params": 0.4})
    assert budget.allows({"macs": 40, "params": 20}) and not budget.allows({"macs": 40, "params": 20.5})


@pytest.mark.tensorflow
def test_the_scales_of_the_bisection_are_those_at_which_ranks_change(small):
    candidates, _ = survey(View(small), "tucker2", [])
    scaled = ScaledRanks(candidates, {c.name: c.limits for c in candidates}, 8, False, ["macs"], exact=True)

    def ranks(scale):
        return tuple(scaled.ranks(candidate, scale) for candidate in candidates)

    at_scales = {ranks(scale) for scale in scaled.scales()}
    assert {ranks(scale) for scale in np.linspace(1e-3, 1, 3000)} <= at_scales
    assert ranks(scaled.scales()[-1]) == tuple(candidate.limits for candidate in candidates)


@pytest.mark.tensorflow
def test_an_explicit_fraction_is_taken_at_its_word():
    conv = layers.Conv2D(8, (1, 3), padding="same", name="conv")
    plan = elrt.plan_ranks(
        keras.Sequential([keras.Input((8, 8, 64)), conv]), fraction=0.5, multiple_of=4, exclude=[], break_even=False
    )
    assert plan["conv"].ranks == (32, 4)  # though no kernel uses more than 3·4 of the 32


@pytest.mark.tensorflow
def test_a_name_that_is_there_is_no_pattern():
    assert elrt.graph.paths.matching(["conv1", "conv[1]"], "conv[1]") == ["conv[1]"]
    assert elrt.graph.paths.matching(["conv1", "conv2"], "conv[1]") == ["conv1"]


@pytest.mark.parametrize("method", thorough_but(("energy",), ["uniform", "energy", "vbmf", "stable_rank"]))
@pytest.mark.parametrize("name", formats.names())
def test_every_format_and_method_meets_budgets(small, name, method):
    for budgets in ({"max_macs": 0.5}, {"max_params": 0.5}, {"max_macs": 0.6, "max_params": 0.45}):
        plan = elrt.plan_ranks(small, format=name, method=method, multiple_of=2, **budgets)
        assert {entry.format for entry in plan.factorized().values()} <= {name, "svd"}
        spent = dict(zip(("max_macs", "max_params"), planned(small, plan)))
        assert all(spent[resource] <= budget for resource, budget in budgets.items())
        assert any(spent[resource] >= budget - 0.02 for resource, budget in budgets.items()), spent
        for row in plan.costs.values():  # break-even: no layer costs more in the resource of the budget
            judged = [resource.removeprefix("max_") for resource in budgets]
            assert all(row[f"planned_{resource}"] <= row[resource] for resource in judged)


@pytest.mark.thorough
def test_estimated_ranks_spend_the_budget_whatever_the_weights(small):
    copy = keras.models.clone_model(small)
    # Estimated ranks far from the budget need large, uneven steps; one step per layer would leave 3 % unspent.
    for seed in (113, 192, 205, 284, 319, 323, *range(10)):
        rng = np.random.default_rng(seed)
        copy.set_weights([rng.uniform(-1, 1, weight.shape) for weight in copy.weights])
        for method in ("stable_rank", "vbmf"):
            macs, _ = planned(copy, elrt.plan_ranks(copy, format="svd", method=method, multiple_of=2, max_macs=0.5))
            assert 0.48 <= macs <= 0.5


@pytest.mark.thorough
@random_examples(20)
@given(budget=st.floats(0.2, 0.95), multiple_of=st.sampled_from((None, 1, 4, 8)))
def test_budgets_are_met_from_below(resnet, budget, multiple_of):
    plan = elrt.plan_ranks(resnet, max_macs=budget, multiple_of=multiple_of)
    macs, _ = planned(resnet, plan)
    # One grid step of one rank costs less than 2 % of the whole, so the unspent rest of a budget is smaller.
    assert budget - 0.02 <= macs <= budget
    step = multiple_of or 8
    assert all(rank % step == 0 for entry in plan.factorized().values() for rank in entry.ranks)


def test_the_built_model_costs_what_the_plan_says(resnet):
    plan = elrt.plan_ranks(resnet, max_macs=0.4)
    dense, low = elrt.count_costs(resnet), elrt.count_costs(elrt.factorize(resnet, plan))
    assert planned(resnet, plan) == pytest.approx((low.macs / dense.macs, low.params / dense.params))


@pytest.mark.parametrize(
    "budgets", [{"max_params": 0.3}, {"max_params": 0.5, "max_macs": 0.3}, {"max_params": 0.25, "max_macs": 0.9}]
)
def test_parameter_budgets(resnet, budgets):
    macs, params = planned(resnet, elrt.plan_ranks(resnet, **budgets))
    spent = {"max_macs": macs, "max_params": params}
    assert all(spent[name] <= budget for name, budget in budgets.items())
    assert any(spent[name] >= budget - 0.02 for name, budget in budgets.items())


def test_an_impossible_budget_says_what_is_possible(resnet):
    with pytest.raises(
        ValueError, match=r"cannot be met.*Expected max_macs ≥ (0\.\d+)\. Received: max_macs=0.05"
    ) as caught:
        elrt.plan_ranks(resnet, max_macs=0.05)
    reachable = float(str(caught.value).split("≥ ")[1].split(". ")[0])
    macs, _ = planned(resnet, elrt.plan_ranks(resnet, max_macs=reachable))
    assert reachable - 1e-3 < macs <= reachable


def test_break_even_guard():
    model = keras.Sequential(
        [keras.Input((8, 8, 8)), layers.Conv2D(8, 3, name="first"), layers.Conv2D(64, 3, name="wide")]
    )
    plan = elrt.plan_ranks(model, fraction=1.0, exclude=[])
    assert plan["wide"] == DENSE and plan.reasons["wide"] == "would not get cheaper"
    assert elrt.plan_ranks(model, fraction=1.0, exclude=[], break_even=False)["wide"].ranks == (8, 64)


def test_what_stays_dense_and_why():
    inputs = keras.Input((16, 16, 16))
    x = layers.Conv2D(16, 3, name="stem")(inputs)
    x = layers.Conv2D(32, 3, groups=2, name="grouped")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.Conv2D(32, 3, groups=32, name="single_channels")(x)
    x = layers.Conv2D(64, 1, name="pointwise")(x)
    x = layers.Conv2D(32, 3, kernel_constraint="non_neg", name="constrained")(x)
    nested = keras.Sequential([keras.Input((None, None, 32)), layers.Conv2D(64, 3, name="conv")], name="nested")
    x = layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(nested(x)))
    plan = elrt.plan_ranks(keras.Model(inputs, x), fraction=0.5)
    planned = {"grouped": ("tucker2", (4, 8)), "pointwise": ("svd", (16,)), "nested/conv": ("tucker2", (16, 32))}
    assert plan.factorized() == planned
    for name, words in {
        "stem": "excluded",
        "depthwise": "depthwise",
        "single_channels": "depthwise",
        "constrained": "constraint",
        "head": "excluded",
    }.items():
        assert plan[name].is_dense and words in plan.reasons[name] and words in str(plan)


@pytest.mark.parametrize(
    "exclude, dense",
    [(None, {"stem_conv", "classifier"}), ("stage1*", 6), (["stage1*", "stem_conv"], 7), ([], 0)],
)
def test_exclude(resnet, exclude, dense):
    plan = elrt.plan_ranks(resnet, fraction=0.5, exclude=exclude)
    excluded = {name for name, reason in plan.reasons.items() if reason == "excluded"}
    assert excluded == dense if isinstance(dense, set) else len(excluded) == dense


def test_the_classifiers_of_all_outputs_stay_dense():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3, name="body")(layers.Conv2D(16, 3, name="stem")(inputs))
    pooled = layers.GlobalAveragePooling2D()(x)
    outputs = {
        "kind": layers.Softmax()(layers.Dense(8, name="kind")(layers.Dense(16, name="hidden")(pooled))),
        "age": layers.Dense(1, name="age")(pooled),
        "mask": layers.Conv2D(8, 3, name="mask")(x),
    }
    plan = elrt.plan_ranks(keras.Model(inputs, outputs), fraction=0.5, multiple_of=1, break_even=False)
    assert {name for name, reason in plan.reasons.items() if reason == "excluded"} == {"stem", "kind", "age"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"max_macs": 0.4, "exclude": "layer4*"}, r"Nothing matched.*Received: exclude='layer4\*'"),
        ({"max_macs": 0.4, "exclude": 3}, "Received: exclude=3"),
        ({"max_macs": 0}, "Received: max_macs=0"),
        ({"max_macs": 1.5}, "Received: max_macs=1.5"),
        ({"max_params": True}, "Received: max_params=True"),
        ({"fraction": 0.0}, "Received: fraction=0.0"),
        ({}, "either `fraction` or a budget"),
        ({"fraction": 0.5, "max_macs": 0.5}, "either `fraction` or a budget"),
        ({"max_macs": 0.5, "method": "magic"}, "Received: method='magic'"),
        ({"max_latency": 0.5, "method": "energy"}, "Received: max_latency=0.5, method='energy'"),
        ({"max_latency": 0.5, "method": "uniform"}, "Received: max_latency=0.5, method='uniform'"),
        ({"max_macs": 0.5, "quantization": "int8"}, "Received: quantization='int8', method='uniform'"),
        ({"max_macs": 0.5, "method": "latency"}, "Received: max_latency=None, method='latency'"),
        ({"max_latency": 0.5, "max_macs": 0.5, "max_params": 0.5}, "at most two budgets"),
        ({"max_latency": 1.2}, "Received: max_latency=1.2"),
        ({"max_macs": 0.5, "format": "tucker3"}, "Received: format='tucker3'"),
        ({"max_macs": 0.5, "multiple_of": 0}, "Received: multiple_of=0"),
    ],
)
def test_bad_arguments(resnet, arguments, message):
    with pytest.raises(ValueError, match=message):
        elrt.plan_ranks(resnet, **arguments)


def test_one_more_method_is_one_more_function(small, monkeypatch):
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))

    @methods.method("smallest", kept_dense="smallest leaves it")
    def smallest(problem):
        """Chooses the first rank of the grid; the first layer stays dense."""
        first, *others = problem.candidates
        ranks = {one.name: tuple(map(min, zip(one.limits, one.steps(problem.multiple_of)))) for one in others}
        return methods.Solution({first.name: None, **ranks}, problem.candidates)

    plan = elrt.plan_ranks(small, method="smallest", max_macs=0.9, multiple_of=4)
    chosen = [entry.ranks for entry in plan.values() if entry.ranks is not None]
    assert chosen and {rank for ranks in chosen for rank in ranks} == {4}
    assert "smallest leaves it" in plan.reasons.values()
    assert "smallest" in methods.names() and "smallest" not in methods.reading_weights()


def test_formats_by_layer(resnet):
    plan = elrt.plan_ranks(
        resnet,
        format={"stage3*": "svd", "stage2_block1_1_conv": "cp", "stage2*": "dense", "*": "tucker2"},
        fraction=0.25,
    )
    kinds = {name: entry.format for name, entry in plan.items()}
    assert kinds["stage3_block1_1_conv"] == "svd" and kinds["stage2_block1_1_conv"] == "cp"
    assert kinds["stage2_block2_1_conv"] == "dense" and kinds["stage1_block1_1_conv"] == "tucker2"
    partial = elrt.plan_ranks(resnet, format={"stage3*": "svd"}, fraction=0.25)
    assert set(partial.factorized()) == {name for name in partial if name.startswith("stage3")}
    assert partial.reasons["stage1_block1_1_conv"] == "no format asked for"
    with pytest.raises(ValueError, match=r"Nothing matched.*Received: format='layer9\*'"):
        elrt.plan_ranks(resnet, format={"layer9*": "svd"}, fraction=0.25)


def test_dense_layers_and_pointwise_convolutions_are_planned_as_matrices():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 16)),
            layers.Conv2D(64, 3, name="stem"),
            layers.Conv2D(64, 1, name="pointwise"),
            layers.Dense(96, name="per_pixel"),
            layers.Flatten(),
            layers.Dense(128, name="hidden"),
            layers.Dense(10, name="classifier"),
        ]
    )
    for name in formats.names():
        plan = elrt.plan_ranks(model, format=name, fraction=0.25)
        assert plan.factorized() == {"pointwise": ("svd", (16,)), "per_pixel": ("svd", (16,)), "hidden": ("svd", (32,))}
    low = elrt.factorize(model, plan)
    assert type(low.get_layer("hidden")) is elrt.layers.LowRankDense
    costs, dense = elrt.count_costs(low), elrt.count_costs(model)
    assert planned(model, plan) == pytest.approx((costs.macs / dense.macs, costs.params / dense.params))


def test_a_shared_layer_is_planned_once_and_priced_per_call():
    shared = layers.Conv2D(16, 3, padding="same", name="shared")
    inputs = keras.Input((12, 12, 16))
    x = shared(layers.MaxPooling2D()(shared(layers.Conv2D(16, 3, padding="same", name="stem")(inputs))))
    model = keras.Model(inputs, x)
    plan = elrt.plan_ranks(model, fraction=0.5)
    assert plan.costs["shared"]["macs"] == (144 + 36) * 9 * 256
    costs, dense = elrt.count_costs(elrt.factorize(model, plan)), elrt.count_costs(model)
    assert planned(model, plan) == pytest.approx((costs.macs / dense.macs, costs.params / dense.params))


def test_fraction_one_is_the_full_rank_whatever_the_multiple():
    model = keras.Sequential([keras.Input((8, 8, 19)), layers.Conv2D(21, 3, name="conv")])
    plan = elrt.plan_ranks(model, fraction=1.0, exclude=[], break_even=False)
    assert plan["conv"].ranks == (19, 21)


def test_a_model_without_candidates():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="only")])
    with pytest.raises(ValueError, match="can be factorised.*'only': 'excluded'"):
        elrt.plan_ranks(model, fraction=0.5)


@pytest.mark.backends
@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="TensorFlow takes no such names")
def test_a_name_with_brackets_is_no_pattern():
    convolutions = [layers.Conv2D(16, 3, name=f"conv[{index}]") for index in range(3)]
    model = keras.Sequential([keras.Input((12, 12, 16)), *convolutions])
    plan = elrt.plan_ranks(model, fraction=0.5, exclude="conv[1]", format={"conv[0]": "svd", "conv*": "tucker2"})
    assert [entry.format for entry in plan.values()] == ["svd", "dense", "tucker2"]
    assert plan.matching("conv[1]") == ["conv[1]"]
    with pytest.raises(ValueError, match="Expected a name or pattern. Received: None"):
        plan.matching(None)


def test_a_model_of_open_size_is_planned_for_a_given_one(tmp_path):
    def network(size):
        inputs = keras.Input((size, size, 3))
        x = layers.Conv2D(32, 3, strides=2, padding="same", name="stem")(inputs)
        x = layers.Conv2D(48, 3, padding="same", name="body")(x)
        x = layers.Conv2D(64, 3, padding="same", name="tail")(x)
        return keras.Model(inputs, layers.GlobalAveragePooling2D()(x))

    keras.utils.set_random_seed(0)
    fixed, free = network(40), network(None)
    free.set_weights(fixed.get_weights())
    with pytest.raises(ValueError, match="Expected `input_shape`"):
        elrt.plan_ranks(free, max_macs=0.5)
    for method in ("uniform", "energy"):
        plan = elrt.plan_ranks(free, max_macs=0.6, multiple_of=2, method=method, input_shape=(40, 40, 3))
        assert dict(plan) == dict(elrt.plan_ranks(fixed, max_macs=0.6, multiple_of=2, method=method))
    low_rank = elrt.factorize(free, plan, factor_initializer="decomposed")
    small = elrt.shrink(low_rank, max_macs=0.4, multiple_of=2, input_shape=(40, 40, 3))
    curve = elrt.shrink_curve(low_rank, [0.4], multiple_of=2, input_shape=(40, 40, 3))
    assert curve.points[-1].macs == elrt.count_costs(small, (40, 40, 3)).macs <= 0.4 * curve.dense_macs
    small.save(tmp_path / "small.keras")
    images = np.random.default_rng(0).uniform(size=(1, 24, 32, 3)).astype("float32")
    for model in (elrt.expand(small), elrt.merge(small), keras.models.load_model(tmp_path / "small.keras")):
        np.testing.assert_allclose(model.predict(images, verbose=0), small.predict(images, verbose=0), atol=1e-5)


NETS = {  # filters, kernel size, stride of each convolution
    "five": [(16, 3, 1), (16, 1, 1), (24, 3, 1), (48, 5, 2), (48, 5, 2)],
    "three": [(32, 3, 1), (64, 5, 1), (24, 3, 1)],
    "four": [(48, 3, 2), (16, 5, 1), (64, 3, 1), (32, 3, 2)],
}


def reachable(model, format_name, budget):
    """Returns the largest part of the dense MACs below a budget that the ranks of the grid reach, to 1/20000."""
    total = elrt.count_costs(model).macs
    sums = {0}
    for candidate in survey(View(model), format_name, None)[0]:
        ranks = itertools.product(*candidate.grids(8))
        saved = {candidate.dense_costs()["macs"] - candidate.costs(r)["macs"] for r in ranks}
        sums = {a + b for a in sums for b in {0, *(round(s / total * 20000) for s in saved if s > 0)}}
    return max((1 - s / 20000 for s in sums if 1 - s / 20000 <= budget), default=0)


@pytest.mark.parametrize("format_name", thorough_but(("tucker2",), ["tucker2", "svd", "spatial_svd"]))
@pytest.mark.parametrize("net", NETS)
def test_small_networks_meet_budgets_where_the_grid_allows(net, format_name):
    inputs = x = keras.Input((32, 32, 3))
    for index, (filters, size, strides) in enumerate(NETS[net]):
        x = layers.Conv2D(filters, size, strides=strides, padding="same", name=f"conv{index}")(x)
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    met = 0
    for budget in (0.4, 0.5, 0.7, 0.9):
        if budget - reachable(model, format_name, budget) <= 0.02:
            spent, _ = planned(model, elrt.plan_ranks(model, format=format_name, max_macs=budget))
            assert budget - 0.02 <= spent <= budget
            met += 1
    assert met > 1


def test_uniform_ranks_of_few_layers_stay_near_one_scale():
    layer = keras.layers.Conv2D(192, (7, 1), padding="same", use_bias=False, name="conv")
    model = keras.Sequential([keras.Input((16, 16, 192)), layer])
    for budget in (0.2, 0.25, 0.3):
        plan = elrt.plan_ranks(model, max_macs=budget, exclude=[])
        low, high = sorted(plan["conv"].ranks)
        assert high <= 2 * low and plan.costs["conv"]["planned_macs"] >= (budget - 0.01) * plan.costs["conv"]["macs"]
