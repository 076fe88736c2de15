"""Plans and `shrink` count a low-rank layer as it runs: through the chain or through its composed kernel."""

import itertools

import keras
import pytest
from common import conv_cases, random_array, thorough_but, to_numpy
from hypothesis import given
from hypothesis import strategies as st

import elrt_keras as elrt
from elrt_keras import formats
from elrt_keras.graph.view import View

layers = keras.layers


@pytest.fixture(scope="module")
def resnet():
    return elrt.models.build("resnet20", input_shape=(16, 16, 3))


def totals_of(model, plan):
    """Sums MACs and parameters of a model under a plan, from the plan's costs of its layers."""
    dense = elrt.count_costs(model)
    return tuple(
        getattr(dense, name) + sum(row[f"planned_{name}"] - row[name] for row in plan.costs.values())
        for name in ("macs", "params")
    )


@pytest.mark.parametrize("name", thorough_but(("cp",), formats.names()))
@pytest.mark.parametrize(
    "arguments",
    thorough_but(
        [{"max_macs": 0.9}],
        [{"max_macs": 0.9}, {"max_params": 0.9}, {"fraction": 0.9}, {"max_macs": 0.9, "method": "energy"}],
    ),
    ids=str,
)
def test_the_built_model_costs_what_the_plan_says(resnet, name, arguments):
    for break_even in (True, False):
        plan = elrt.plan_ranks(resnet, format=name, break_even=break_even, **arguments)
        low = elrt.count_costs(elrt.factorize(resnet, plan) if plan.factorized() else resnet)
        assert totals_of(resnet, plan) == (low.macs, low.params)


@pytest.mark.thorough
def test_a_plan_counts_a_layer_on_inputs_of_several_sizes_as_it_executes():
    conv = layers.Conv2D(12, 3, padding="valid", name="conv")
    inputs = keras.Input((4, 4, 12)), keras.Input((20, 20, 12))
    for first, second in itertools.permutations(inputs):
        model = keras.Model([first, second], [conv(first), conv(second)])
        for ranks in range(1, 13):
            low = elrt.factorize(model, {"conv": ("tucker2", ranks)})
            (candidate,) = elrt.ranks.survey.survey(View(model), "tucker2", [])[0]
            assert candidate.costs((ranks, ranks))["macs"] == elrt.count_costs(low).macs
            # An existing layer: `shrink` does not change layers within the budget.
            part = min(1.0, elrt.count_costs(low).macs / elrt.count_costs(model).macs + 1e-9)
            assert elrt.shrink(low, max_macs=part).get_layer("conv").ranks == (ranks, ranks)


@pytest.mark.parametrize("size, budget", [(1, 0.5), (5, 0.7), (40, 0.5)])
def test_budgets_of_open_models_are_met_at_the_size_they_are_planned_for(size, budget):
    down = layers.Conv2D(32, 2, strides=4, padding="same", name="down")
    model = keras.Sequential([keras.Input((None, None, 8)), down])
    plan = elrt.plan_ranks(model, max_macs=budget, input_shape=(size, size, 8), exclude=[], multiple_of=1)
    costs = elrt.count_costs(elrt.factorize(model, plan), (size, size, 8))
    assert costs.macs == plan.costs["down"]["planned_macs"]
    assert costs.macs <= budget * elrt.count_costs(model, (size, size, 8)).macs


@given(case=conv_cases(), times=st.integers(2, 40))
def test_the_input_size_does_not_decide_how_a_layer_executes(case, times):
    *kernel_size, _, filters = case["kernel_shape"]
    last = case["arguments"]["data_format"] == "channels_last"
    spatial = slice(1, -1) if last else slice(2, None)
    large, open_sizes = list(case["input_shape"]), list(case["input_shape"])
    large[spatial] = [times * size for size in large[spatial]]
    open_sizes[spatial] = [None] * len(kernel_size)
    layer_class = getattr(elrt.layers, f"LowRankConv{len(kernel_size)}D")
    built = []
    for shape in (case["input_shape"], large, open_sizes):
        built.append(layer_class(filters, tuple(kernel_size), case["ranks"], **case["arguments"]))
        built[-1].build(shape)
    (decided,) = {layer.runs_chain for layer in built}
    # On very large inputs, the decision must be the execution with fewer MACs.
    endless = [10_000 * stride for stride in built[0].strides]
    shape = (1, *endless, large[-1]) if last else (1, large[1], *endless)
    forced = []
    for execution in ("chain", "compose"):
        forced.append(layer_class.from_config({**built[0].get_config(), "execution": execution, "padding": "same"}))
        forced[-1].build(shape)
    chain, dense = (layer.compute_macs(shape) for layer in forced)
    assert decided == (chain <= dense)


def test_shrink_leaves_alone_what_composes_within_the_budget():
    inputs = keras.Input((12, 12, 6))
    conv = layers.Conv2D(6, 3, padding="same", name="conv")
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(conv(conv(inputs)))))
    low = elrt.factorize(model, {"conv": ("tucker2", 6)}, factor_initializer="decomposed")
    assert elrt.count_costs(low).macs == elrt.count_costs(model).macs
    copy = elrt.shrink(low, max_macs=1.0)
    images = random_array(2, 12, 12, 6)
    assert copy.get_layer("conv").ranks == (6, 6)
    assert (to_numpy(copy(images)) == to_numpy(low(images))).all()


@pytest.mark.parametrize("execution", ["chain", "compose"])
def test_shrink_counts_layers_that_were_told_how_to_execute(execution):
    layer = elrt.layers.Tucker2Conv2D(16, 3, (16, 16), execution=execution, padding="same", name="conv")
    model = keras.Sequential([keras.Input((8, 8, 16)), layer])
    dense = elrt.count_costs(elrt.merge(model)).macs
    if execution == "compose":
        with pytest.raises(ValueError, match=r"cannot be met.*Expected max_macs ≥ 1\.0000"):
            elrt.shrink(model, max_macs=0.9, multiple_of=1)
        assert elrt.shrink(model, max_macs=1.0).get_layer("conv").ranks == (16, 16)
    else:
        shrunk = elrt.shrink(model, max_macs=0.9, multiple_of=1)
        assert 0.85 * dense < elrt.count_costs(shrunk).macs <= 0.9 * dense
        assert shrunk.get_layer("conv").execution == "chain"
