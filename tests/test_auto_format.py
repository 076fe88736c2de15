"""`format="auto"`: each layer has the format that keeps most of its kernel for its cost."""

import itertools
import math

import keras
import numpy as np
import pytest
from common import random_array, to_numpy

import elrt_keras as elrt
from elrt_keras import formats
from elrt_keras.graph.view import View
from elrt_keras.launch.config import TrainConfig
from elrt_keras.ranks import energy, latency
from elrt_keras.ranks.budget import Budget
from elrt_keras.ranks.candidate import MixedCandidate
from elrt_keras.ranks.survey import survey
from elrt_keras.ranks.times import TimeTable

layers = keras.layers


def network(channels=16):
    """Convolutions of several kinds, before training: strided, grouped, of one position."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(channels, 3, padding="same", activation="relu", name="stem")(inputs)
    x = layers.Conv2D(channels, 3, padding="same", activation="relu", name="square")(x)
    x = layers.Conv2D(2 * channels, 3, strides=2, padding="same", activation="relu", name="strided")(x)
    x = layers.Conv2D(2 * channels, 3, groups=2, padding="same", activation="relu", name="grouped")(x)
    x = layers.Conv2D(3 * channels, 1, activation="relu", name="pointwise")(x)
    return keras.Model(inputs, layers.Dense(5, name="head")(layers.GlobalAveragePooling2D()(x)))


def loss_of(model, plan):
    """Returns −log of the energy that all kernels together keep under a plan."""
    kernels = {name: to_numpy(model.get_layer(name).kernel) for name in plan.factorized()}
    losses = []
    for name, entry in plan.factorized().items():
        form = formats.grouped(entry.format, getattr(model.get_layer(name), "groups", 1))
        losses.append(-math.log(max(1 - form.errors(kernels[name])(entry.ranks), 1e-9)))
    return sum(losses)


@pytest.mark.tensorflow
@pytest.mark.parametrize("macs, params", [(0.5, None), (None, 0.4), (0.5, 0.4)])
def test_no_single_format_keeps_more(macs, params):
    model = network()
    budget = {name: part for name, part in (("max_macs", macs), ("max_params", params)) if part}
    plan = elrt.plan_ranks(model, format="auto", multiple_of=2, **budget)
    assert len({entry.format for entry in plan.factorized().values()}) > (1 if len(budget) == 1 else 0)
    costs, dense = elrt.count_costs(elrt.factorize(model, plan)), elrt.count_costs(model)
    assert all(getattr(costs, name[4:]) <= part * getattr(dense, name[4:]) for name, part in budget.items())
    for name in formats.names():
        single = elrt.plan_ranks(model, format=name, method="energy", multiple_of=2, **budget)
        # A greedy rule may lose a little with more choices.
        assert loss_of(model, plan) <= 1.02 * loss_of(model, single)


@pytest.mark.tensorflow
def test_close_to_the_best_of_all_formats_and_ranks():
    model = keras.Sequential([keras.Input((6, 6, 8))])
    for name, strides in (("a", 1), ("b", 2)):
        model.add(layers.Conv2D(8, 3, strides=strides, padding="same", name=name))
    for part in (0.3, 0.5):
        candidates, _ = survey(View(model), "auto", [])
        budget = Budget(candidates, {"macs": elrt.count_costs(model).macs}, {"macs": part})
        chosen = energy.solve(candidates, budget, multiple_of=2)
        tables = []
        for one in candidates:
            every = [(n, r) for n, c in one.by_format.items() for r in itertools.product(*c.grids(2))]
            every = [choice for choice in every if one.is_cheaper(choice, ["macs"])]
            tables.append([(one.loss(choice), one.costs(choice)["macs"]) for choice in every])
            tables[-1].append((0.0, one.dense_costs()["macs"]))
        rest = budget.totals["macs"] - sum(one.dense_costs()["macs"] for one in candidates)
        allowed = [
            sum(loss for loss, _ in pair)
            for pair in itertools.product(*tables)
            if rest + sum(macs for _, macs in pair) <= budget.amounts["macs"]
        ]
        assert budget.fits(chosen) and energy.total_loss(candidates, chosen) <= 1.05 * min(allowed)


@pytest.mark.tensorflow
def test_the_plan_says_what_the_other_formats_would_keep(tmp_path):
    model = network()
    plan = elrt.plan_ranks(model, format="auto", max_macs=0.35, multiple_of=2)
    assert plan["pointwise"].format == "svd" and "rivals" not in plan.costs["pointwise"]  # a matrix has one format
    for name in ("square", "strided", "grouped"):
        costs = plan.costs[name]
        kernel = to_numpy(model.get_layer(name).kernel)
        form = formats.grouped(plan[name].format, model.get_layer(name).groups)
        assert costs["kept"] == pytest.approx(1 - form.errors(kernel)(plan[name].ranks))
        assert costs["rivals"] and plan[name].format not in costs["rivals"]
        best = max(costs["rivals"], key=costs["rivals"].get)
        line = next(line for line in str(plan).splitlines() if line.split()[:1] == [name])
        assert line.rstrip().endswith(f"{costs['kept']:.0%} ({best} {costs['rivals'][best]:.0%})")
    form, kernel = formats.get("svd"), to_numpy(model.get_layer("square").kernel)
    costs = {rank: form.costs(kernel.shape, (rank,), (12, 12), (1, 1), "same", (1, 1)).macs for rank in range(2, 17, 2)}
    most = max(rank for rank, macs in costs.items() if macs <= plan.costs["square"]["planned_macs"])
    assert plan.costs["square"]["rivals"]["svd"] == pytest.approx(1 - form.errors(kernel)((most,)))
    plan.save(tmp_path / "plan.json")
    loaded = elrt.RankPlan.load(tmp_path / "plan.json")
    assert dict(loaded) == dict(plan) and loaded.costs == plan.costs and str(loaded) == str(plan)
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text.replace('"rivals": {', '"rivals": [], "kernel": {', 1))
    with pytest.raises(ValueError, match="Expected kernel_shape, groups, rivals"):
        elrt.RankPlan.load(tmp_path / "plan.json")


@pytest.mark.tensorflow
def test_auto_may_stand_for_some_layers():
    plan = elrt.plan_ranks(network(), format={"s*": "auto", "grouped": "cp"}, max_macs=0.5, exclude=[], multiple_of=2)
    assert "rivals" in plan.costs["strided"] and plan["grouped"].format in ("cp", "dense")
    assert plan.reasons["pointwise"] == "no format asked for"


@pytest.mark.tensorflow
@pytest.mark.parametrize("quick_format", ["cp", "spatial_svd"])
def test_with_measured_times_the_faster_format_is_taken(monkeypatch, quick_format):
    def times(candidate, choices, size, table):
        speed = 1.0 if candidate.format.name == quick_format else 4.0
        return {r: candidate.costs(r)["macs"] * (1.0 if r is None else speed) for r in choices}

    monkeypatch.setattr(latency, "_times", times)
    candidates, _ = survey(View(network(channels=32)), "auto", None)
    timed = latency.time_candidates(candidates, 8, TimeTable(1))
    mixed = [one for one in timed if isinstance(one, MixedCandidate)]
    assert len(mixed) == 3
    budget = Budget(timed, {"latency": sum(one.dense.times[None] for one in timed)}, {"latency": 0.5})
    chosen = energy.solve(timed, budget, 8, True, ["latency"])
    assert budget.fits(chosen)
    assert {chosen[one.name][0] for one in mixed if chosen[one.name]} == {quick_format}


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"method": "uniform"}, r"one of the methods \['energy', 'latency'\] with format='auto'.*method='uniform'"),
        ({"fraction": 0.5, "max_macs": None}, "`fraction` only with method='uniform'"),
        ({"format": "autos"}, r"Expected one of \['auto', .*'autos'. Did you mean 'auto'"),
        ({"max_macs": 0.001}, r"cannot be met with format 'cp', 'spatial_svd', 'svd'.*Expected max_macs ≥"),
    ],
    ids=["method", "fraction", "misspelt", "budget"],
)
def test_what_auto_cannot_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        elrt.plan_ranks(network(), **{"format": "auto", "max_macs": 0.5, **arguments})


@pytest.mark.tensorflow
def test_a_run_plans_with_the_method_that_mixes_formats():
    assert TrainConfig(format="auto").rank_method == "energy"
    assert TrainConfig(format="auto", max_latency=0.5).rank_method == "latency"
    with pytest.raises(ValueError, match="format='auto', rank_plan='plan.json'"):
        TrainConfig(format="auto", rank_plan="plan.json")
    with pytest.raises(ValueError, match="with format='auto'. Received: method='uniform'"):
        TrainConfig(format="auto", rank_method="uniform")


@pytest.mark.backends
def test_mixed_plans_train_and_go_everywhere(tmp_path):
    model = network()
    plan = elrt.plan_ranks(model, format="auto", max_macs=0.5, multiple_of=2)
    low = elrt.factorize(model, plan, factor_regularizer="dso")
    low.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images, labels = random_array(16, 12, 12, 3), np.arange(16) % 5
    before = [to_numpy(weight) for weight in low.trainable_weights]
    low.fit(images, labels, batch_size=8, verbose=0)
    assert all(np.any(to_numpy(w) != value) for w, value in zip(low.trainable_weights, before))
    outputs = to_numpy(low(images))
    low.save(tmp_path / "low.keras")
    reloaded = keras.models.load_model(tmp_path / "low.keras")
    for copy in (reloaded, elrt.merge(low), elrt.expand(low), elrt.shrink(low, max_macs=0.5)):
        np.testing.assert_allclose(to_numpy(copy(images)), outputs, atol=1e-4 * np.abs(outputs).max())
    smaller = elrt.shrink(low, max_macs=0.4, multiple_of=1)
    assert elrt.count_costs(smaller).macs <= 0.4 * elrt.count_costs(model).macs
    assert [type(a) for a in smaller.layers] == [type(a) for a in low.layers]


@pytest.mark.tensorflow
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_mixed_models_are_exported(tmp_path, quantization):
    pytest.importorskip("ai_edge_litert")
    model = network()
    low = elrt.factorize(model, elrt.plan_ranks(model, format="auto", max_macs=0.5, multiple_of=2))
    images = random_array(32, 12, 12, 3)
    calibration = {} if quantization is None else {"representative_data": images}
    report = elrt.export.to_litert(low, tmp_path / "model.tflite", quantization=quantization, **calibration)
    assert (tmp_path / "model.tflite").exists() and report.size_bytes > 0
