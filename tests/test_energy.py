"""The energy method: against exhaustive search, and on weights whose best ranks are known."""

import itertools

import keras
import numpy as np
import pytest
from common import random_array, thorough_but, to_numpy

import elrt_keras as elrt
from elrt_keras import formats
from elrt_keras.graph.view import View
from elrt_keras.ranks import energy
from elrt_keras.ranks.budget import Budget
from elrt_keras.ranks.survey import survey

pytestmark = pytest.mark.tensorflow  # the same on every backend
layers = keras.layers


def decaying(shape, decay, seed=0):
    """Returns a kernel whose channel unfoldings have singular values that fall by the factor `decay`."""
    tucker2 = formats.get("tucker2")
    left, core, right = tucker2.decompose(random_array(*shape, seed=seed), tucker2.max_ranks(shape))
    scale = decay ** np.arange(max(shape[-2:]))
    core = core * scale[: shape[-2], None] * scale[: shape[-1]]
    return np.asarray(keras.ops.convert_to_numpy(tucker2.compose([left, core, right])))


def model_of(decays, channels=16, size=8):
    model = keras.Sequential([keras.Input((size, size, channels))])
    for index, decay in enumerate(decays):
        layer = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"conv{index}")
        model.add(layer)
        layer.kernel.assign(decaying((3, 3, channels, channels), decay, seed=index))
    return model


def problem(model, format_name, **limits):
    candidates, _ = survey(View(model), format_name, [])
    costs = elrt.count_costs(model)
    totals = {"macs": costs.macs, "params": costs.params}
    return candidates, Budget(candidates, totals, limits)


LIMITS = [{"macs": 0.5}, {"macs": 0.3}, {"macs": 0.7}, {"params": 0.4}, {"macs": 0.5, "params": 0.4}]


@pytest.mark.parametrize("format_name", ["svd", "tucker2", "spatial_svd"])
def test_close_to_the_best_of_all_choices(format_name):
    models = [model_of(decays) for decays in ([0.6, 0.8, 0.95], [0.9] * 3)]
    ratios = [over_best(model, format_name, limits) for model in models for limits in LIMITS]
    # With three layers of a few steps each, a greedy rule can lose more than with a real model.
    assert min(ratios) >= 1 - 1e-9 and np.median(ratios) <= 1.001 and np.mean(ratios) <= 1.05


TRAINED, RANDOM = [0.6, 0.8, 0.95], [1.0] * 3


@pytest.mark.parametrize("decays", [TRAINED, RANDOM], ids=["trained", "random"])
@pytest.mark.parametrize("format_name", thorough_but(("tucker2", "cp"), formats.names()))
def test_close_to_the_best_by_the_errors_of_real_decompositions(format_name, decays):
    """Uses kernels with falling singular values, as after training, and random ones."""
    model = model_of(decays, channels=8) if decays is TRAINED else random_model_of(3, channels=8)

    def loss(candidate, ranks):
        if ranks is None:
            return 0.0
        kernel = candidate.kernel()
        near = keras.ops.convert_to_numpy(candidate.format.compose(candidate.format.decompose(kernel, ranks)))
        return -np.log(max(1 - np.sum((near - kernel) ** 2) / np.sum(kernel**2), 1e-9))

    limits = [{"macs": 0.3}, {"macs": 0.5}, {"params": 0.4}]
    ratios = [over_best(model, format_name, one, multiple_of=2, loss=loss) for one in limits]
    assert max(ratios) <= 1.1


def random_model_of(count, channels):
    """Builds an untrained model."""
    convolutions = [layers.Conv2D(channels, 3, padding="same", name=f"conv{index}") for index in range(count)]
    return keras.Sequential([keras.Input((8, 8, channels)), *convolutions])


def planned_loss(candidate, ranks):
    """Returns the planner's loss of a layer."""
    return energy.total_loss([candidate], {candidate.name: ranks})


def over_best(model, format_name, limits, multiple_of=4, loss=planned_loss):
    """Divides the loss of the planner's choice by the least loss of all choices within the budget."""
    candidates, budget = problem(model, format_name, **limits)
    chosen = energy.solve(candidates, budget, multiple_of)
    assert budget.fits(chosen)
    tables = []  # by layer: (loss, costs) of every choice
    for candidate in candidates:
        ranks = itertools.product(*candidate.grids(multiple_of))
        choices = [*(r for r in ranks if candidate.is_cheaper(r, ["macs"])), None]
        tables.append([(loss(candidate, r), candidate.costs(r)) for r in choices])
    rest = {r: budget.totals[r] - sum(c.dense_costs()[r] for c in candidates) for r in limits}
    allowed = (
        sum(loss for loss, _ in choice)
        for choice in itertools.product(*tables)
        if all(rest[r] + sum(cost[r] for _, cost in choice) <= budget.amounts[r] for r in limits)
    )
    return sum(loss(candidate, chosen[candidate.name]) for candidate in candidates) / min(allowed)


def test_before_training_no_layer_is_starved():
    """Checks that each layer keeps about as much of a random kernel as with one fraction for all ranks."""
    keras.utils.set_random_seed(0)
    model = elrt.models.build("resnet20")
    by_method = {}
    for method in ("uniform", "energy"):
        plan = elrt.plan_ranks(model, max_macs=0.28, method=method, multiple_of=1)
        kernels = {name: to_numpy(model.get_layer(name).kernel) for name in plan.factorized()}
        errors = {name: formats.get("tucker2").errors(kernel)(plan[name].ranks) for name, kernel in kernels.items()}
        by_method[method] = 1 - np.array(list(errors.values()))
    assert np.log(by_method["energy"]).mean() >= np.log(by_method["uniform"]).mean()
    assert by_method["energy"].min() >= 0.9 * by_method["uniform"].min()


def test_a_layer_of_low_rank_costs_nothing_and_is_found():
    model = model_of([0.97, 0.97])
    low = formats.get("tucker2")
    kernel = low.compose(low.decompose(random_array(3, 3, 16, 16), (4, 4)))
    model.get_layer("conv0").kernel.assign(kernel)
    plan = elrt.plan_ranks(model, method="energy", max_macs=0.6, multiple_of=4, exclude=[])
    assert plan["conv0"].ranks == (4, 4)
    assert plan["conv1"].is_dense or min(plan["conv1"].ranks) > 4
    uniform = elrt.plan_ranks(model, max_macs=0.6, multiple_of=4, exclude=[])
    candidates, _ = problem(model, "tucker2")
    losses = [energy.total_loss(candidates, {c.name: p[c.name].ranks for c in candidates}) for p in (plan, uniform)]
    assert losses[0] < 0.7 * losses[1]


def test_no_budget_goes_into_rounding():
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((8, 8, 16)), keras.layers.Conv2D(32, 3, name="a")])
    exact = np.einsum("ip,hwpq,qo->hwio", *(rng.normal(size=s) for s in ((16, 4), (3, 3, 4, 8), (8, 32))))
    model.get_layer("a").kernel.assign(exact)
    plan = elrt.plan_ranks(model, max_macs=0.9, method="energy", multiple_of=1, exclude=())
    assert plan["a"].ranks == (4, 8)


def test_more_budget_never_loses_more():
    model = model_of([0.6, 0.9, 0.8, 0.97])
    candidates, _ = problem(model, "tucker2")
    losses = []
    for budget in (0.2, 0.3, 0.4, 0.5, 0.7, 0.9):
        plan = elrt.plan_ranks(model, method="energy", max_macs=budget, multiple_of=2, exclude=[])
        losses.append(energy.total_loss(candidates, {c.name: plan[c.name].ranks for c in candidates}))
    assert all(a >= b - 1e-9 for a, b in zip(losses, losses[1:])) and losses[0] > losses[-1]


def test_scaling_a_layer_changes_nothing():
    model = model_of([0.6, 0.9])
    before = elrt.plan_ranks(model, method="energy", max_macs=0.4, exclude=[])
    model.get_layer("conv0").kernel.assign(100 * model.get_layer("conv0").kernel)
    assert dict(elrt.plan_ranks(model, method="energy", max_macs=0.4, exclude=[])) == dict(before)


def test_weights_that_are_not_finite_are_named():
    model = model_of([0.6, 0.9])
    kernel = np.array(keras.ops.convert_to_numpy(model.get_layer("conv1").kernel))
    kernel[0, 0, 0, 0] = np.nan
    model.get_layer("conv1").kernel.assign(kernel)
    for method in ("energy", "vbmf", "stable_rank"):
        with pytest.raises(ValueError, match="finite.*layer 'conv1'"):
            elrt.plan_ranks(model, method=method, max_macs=0.4, exclude=[])


def test_an_impossible_budget_says_what_is_possible():
    model = model_of([0.6, 0.9])
    with pytest.raises(ValueError, match=r"cannot be met.*Expected max_macs ≥ (0\.\d+)") as caught:
        elrt.plan_ranks(model, method="energy", max_macs=0.01, exclude=[])
    reachable = float(str(caught.value).split("≥ ")[1].split(". ")[0])
    elrt.plan_ranks(model, method="energy", max_macs=reachable, exclude=[])


def test_estimated_ranks_without_a_budget_are_those_of_the_unfoldings():
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((8, 8, 32)), layers.Conv2D(48, 3, use_bias=False, name="conv")])
    signal = np.einsum("pa,hwab,bq->hwpq", *(rng.standard_normal(s) for s in ((32, 5), (3, 3, 5, 7), (7, 48))))
    kernel = signal / np.std(signal) + 0.05 * rng.standard_normal(signal.shape)
    model.get_layer("conv").kernel.assign(kernel.astype("float32"))
    assert elrt.plan_ranks(model, method="vbmf", multiple_of=1, exclude=[])["conv"].ranks == (5, 7)
    for index, rank in enumerate(elrt.plan_ranks(model, method="stable_rank", multiple_of=1, exclude=[])["conv"].ranks):
        values = np.linalg.svd(np.moveaxis(kernel, 2 + index, 0).reshape(kernel.shape[2 + index], -1), compute_uv=False)
        assert rank == max(1, np.floor(np.sum(values**2) / values[0] ** 2 + 0.5))


@pytest.mark.parametrize("method", ["uniform", "energy"])
@pytest.mark.parametrize("format_name, kernel_size", [("tensor_train", 3), ("tucker2", (7, 1)), ("tucker2", (1, 3))])
def test_no_rank_is_bought_that_no_kernel_can_use(method, format_name, kernel_size):
    model = keras.Sequential([keras.Input((8, 8, 64)), layers.Conv2D(64, kernel_size, padding="same", name="conv")])
    for budget in (0.15, 0.2, 0.3, 0.5):
        plan = elrt.plan_ranks(model, format=format_name, method=method, max_macs=budget, exclude=[])
        shape, ranks = tuple(model.get_layer("conv").kernel.shape), plan["conv"].ranks
        assert formats.get(format_name).usable_ranks(shape, ranks) == ranks
