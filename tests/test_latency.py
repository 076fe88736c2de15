"""Measured times and the ranks planned from them."""

import json
import math
import pathlib
from time import sleep

import keras
import numpy as np
import pytest

import elrt_keras as elrt
from elrt_keras import kept_times, litert
from elrt_keras.formats import Stage
from elrt_keras.graph.view import View
from elrt_keras.litert import timing
from elrt_keras.ranks import energy, latency
from elrt_keras.ranks.budget import Budget
from elrt_keras.ranks.survey import survey
from elrt_keras.ranks.times import TimeTable, chain_key

pytestmark = pytest.mark.tensorflow
pytest.importorskip("ai_edge_litert")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ELRT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def small_model():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((20, 20, 3)), keras.layers.Conv2D(32, 3, padding="same", name="stem")]
    for name, filters in (("a", 64), ("b", 64), ("c", 80)):
        layers.append(keras.layers.Conv2D(filters, 3, padding="same", activation="relu", name=name))
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(5, name="head")]
    return keras.Sequential(layers)


class SlowAtFirst:
    """A runner whose first inferences take longer."""

    def __init__(self, slow):
        self._slow = slow

    def set_random_input(self):
        pass

    def invoke(self):
        self._slow -= 1
        sleep(0.05 if self._slow >= 0 else 0.0)


def test_a_layer_that_is_called_twice_takes_the_time_of_two_calls(monkeypatch):
    inputs, shared = keras.Input((20, 20, 64)), keras.layers.Conv2D(64, 3, padding="same", name="shared")
    candidates, _ = survey(View(keras.Model(inputs, shared(shared(inputs)))), "tucker2", [])
    monkeypatch.setattr(latency, "_times", lambda candidate, choices, size, table: dict.fromkeys(choices, 0.5))
    (timed,) = latency.time_candidates(candidates, 32, TimeTable(1))
    assert len(timed.times) > 1 and set(timed.times.values()) == {1.0}


def test_smoothing_halves_scatter_and_keeps_what_the_stages_explain():
    (candidate,) = survey(View(keras.Sequential([keras.Input((20, 20, 64)), keras.layers.Conv2D(64, 3)])), "cp", [])[0]
    chains = {(rank,): candidate.stages((rank,)) for rank in range(8, 129, 8)}
    exact = {ranks: 1e-5 + 1e-9 * sum(stage.weights for stage in chain) for ranks, chain in chains.items()}
    smooth = latency.smoothed({None: 1.0, **exact}, chains)
    assert smooth.pop(None) == 1.0 and smooth == pytest.approx(exact, rel=1e-6)
    noise = dict(zip(chains, np.exp(np.random.default_rng(0).normal(0, 0.05, len(chains)))))
    smooth = latency.smoothed({None: 1.0, **{ranks: exact[ranks] * noise[ranks] for ranks in chains}}, chains)
    left = [math.log(smooth[ranks] / exact[ranks]) for ranks in chains]
    # Half of the noise stays, plus the error of a fit of 4 coefficients to 16 points: √(¼·¾ + ¼) = 0.66.
    assert np.std(left) < 0.7 * np.std(np.log(list(noise.values())))
    # The fit keeps a part of the time of a rank that is really slower.
    assert latency.smoothed({None: 1.0, **exact, (64,): 1.3 * exact[64,]}, chains)[64,] > 1.1 * exact[64,]
    few = dict(list(chains.items())[:5])
    assert latency.smoothed({None: 1.0, **dict.fromkeys(few, 2.0)}, few) == {None: 1.0, **dict.fromkeys(few, 2.0)}


def test_plans_hardly_change_with_times_that_are_five_percent_off(monkeypatch):
    """Uses simulated times of an untrained network: a constant for each MAC and each stage."""
    keras.utils.set_random_seed(0)
    candidates = survey(View(elrt.models.build("resnet20")), "tucker2", None)[0]

    def seconds(candidate, ranks):
        return candidate.costs(ranks)["macs"] * 1e-10 + 2e-5 * len(candidate.stages(ranks))

    def planned(noise, seed=0):
        random = np.random.default_rng(seed)

        def times(candidate, choices, size, table):
            return {ranks: seconds(candidate, ranks) * math.exp(random.normal(0, noise)) for ranks in choices}

        monkeypatch.setattr(latency, "_times", times)
        timed = latency.time_candidates(candidates, 8, TimeTable(1))
        budget = Budget(timed, {"latency": sum(candidate.times[None] for candidate in timed)}, {"latency": 0.6})
        chosen = energy.solve(timed, budget, 8, True, ["latency"])
        captured = [1 - c.errors(chosen[c.name]) if chosen[c.name] else 1.0 for c in candidates]
        return sum(seconds(c, chosen[c.name]) for c in candidates), np.mean(captured)

    exact = planned(0)
    for seed in range(8):
        assert planned(0.05, seed) == pytest.approx(exact, rel=0.05)


def test_rounds_of_warm_up_do_not_count():
    seconds = timing.time_interleaved([SlowAtFirst(2), SlowAtFirst(2)], runs=3, warmup=2)
    assert seconds.shape == (2, 3) and np.median(seconds) < 0.05  # the machine may be busy at one of them


def candidates_of(model):
    return survey(View(model), "tucker2", None)[0]


def written(cache, times):
    """Writes a table with chosen times to the disk; `times` is a function of a candidate and its ranks."""
    for candidate in candidates_of(small_model()):
        table = TimeTable(1)
        for ranks in [None, *latency.measured_ranks(candidate, 8)]:
            key = chain_key(candidate.stages(ranks), (20, 20), "same")
            table.add({key: times(candidate, ranks)})


def test_tables_from_before_there_were_groups_are_read():
    plain, grouped = (Stage((3, 3), 4, 8, (1, 1), (1, 1), groups=groups) for groups in (1, 2))
    assert chain_key([plain], (8, 8), "same") == '[[8, 8], "same", [[[3, 3], 4, 8, [1, 1], [1, 1], false]]]'
    assert chain_key([grouped], (8, 8), "same") == '[[8, 8], "same", [[[3, 3], 4, 8, [1, 1], [1, 1], false, 2]]]'


def test_chains_compute_what_the_format_says():
    """Checks that the timed model is the chain: it has the operators and the output shape of the layer."""
    model = small_model()
    for candidate in candidates_of(model):
        for ranks in (None, (16, 24)):
            content = litert.chain_to_litert(candidate.stages(ranks), (20, 20), candidate.padding)
            assert litert.operators(content) == {"CONV_2D": 1 if ranks is None else 3}
            out = litert.Runner(content)(np.ones((1, 20, 20, candidate.kernel_shape[-2]), "float32"))
            assert out.shape == (1, 20, 20, candidate.kernel_shape[-1])


@pytest.mark.parametrize(
    "name, shape, ranks, operators",
    [
        ("svd", (3, 3, 8, 16), (4,), {"CONV_2D": 2}),
        ("spatial_svd", (3, 3, 8, 16), (4,), {"CONV_2D": 2}),
        ("cp", (3, 3, 8, 16), (4,), {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 1}),
        ("tensor_train", (3, 3, 8, 16), (4, 4, 4), {"CONV_2D": 4}),
        ("svd", (8, 16), (4,), {"FULLY_CONNECTED": 2}),
    ],
)
def test_chains_of_every_format(name, shape, ranks, operators):
    dims = len(shape) - 2
    stages = elrt.formats.get(name).stages(shape, ranks, (1,) * dims, (1,) * dims)
    content = litert.chain_to_litert(stages, (10, 10)[:dims], "same")
    assert litert.operators(content) == operators


@pytest.mark.parametrize("quantization", ["float16", "dynamic_int8", "int8"])
def test_chains_are_timed_quantised(quantization):
    stages = elrt.formats.get("tucker2").stages((3, 3, 64, 64), (16, 24), (1, 1), (1, 1))
    contents = [litert.chain_to_litert(stages, (10, 10), "same", kind) for kind in (None, quantization)]
    # A byte per weight, or two; beside them a few kilobytes.
    weights = 64 * 16 + 9 * 16 * 24 + 24 * 64
    size = 2 if quantization == "float16" else 1
    for content, bytes_of_weight in zip(contents, (4, size)):
        assert bytes_of_weight * weights <= len(content) < bytes_of_weight * weights + 6000
    assert litert.operators(contents[1])["CONV_2D"] == 3
    (seconds,) = litert.time_interleaved([litert.Runner(contents[1])], runs=2)
    assert (seconds > 0).all()
    # The ends of an int8 chain have no type conversion, as inside a model.
    assert quantization != "int8" or set(litert.operators(contents[1])) == {"CONV_2D"}


@pytest.mark.thorough
def test_ranks_are_planned_for_the_time_of_int8_files(cache):
    model = small_model()
    float_plan = elrt.plan_ranks(model, max_latency=0.7, multiple_of=16)
    timed = latency.time_candidates(candidates_of(model), 16, TimeTable(1, "int8"))
    least = sum(min(c.times.values()) for c in timed) / sum(c.times[None] for c in timed)
    machines = sorted(json.loads(path.read_text())["machine"] for path in cache.iterdir())
    assert machines[1] == machines[0] + ", int8"
    if least > 0.95:  # the processor multiplies int8 so fast that almost no chain of small products is faster
        with pytest.raises(ValueError, match="The budget cannot be met.*Expected max_latency ≥"):
            elrt.plan_ranks(model, max_latency=least / 2, multiple_of=16, quantization="int8")
    else:
        part = (1 + least) / 2
        plan = elrt.plan_ranks(model, max_latency=part, multiple_of=16, quantization="int8")
        assert plan.latency["planned"] <= part * plan.latency["dense"] * (1 + 1e-9)
        assert plan.latency["dense"] != float_plan.latency["dense"]
    dense = candidates_of(model)[0]
    key = chain_key(dense.stages(None), (20, 20), "same")
    assert TimeTable(1, "int8").get(key) != TimeTable(1).get(key) is not None


def test_times_are_measured_once_and_kept(cache):
    model = small_model()
    first = elrt.plan_ranks(model, max_latency=0.7, multiple_of=32)
    (path,) = cache.iterdir()
    content = path.read_bytes()
    assert set(json.loads(content)) == {"machine", "seconds"}
    second = elrt.plan_ranks(model, max_latency=0.7, multiple_of=32)
    assert path.read_bytes() == content  # nothing was measured again
    for name in ("a", "b"):
        assert first.costs[name]["latency"] == pytest.approx(second.costs[name]["latency"], rel=0.5)
    # There is one file per number of threads; a damaged file is measured again.
    assert TimeTable(2).path != str(path)
    for damage in ("{ damaged", *(f'{{"seconds": {{"anything": {time}}}}}' for time in ("0", "-1", "NaN", "Infinity"))):
        path.write_text(damage)
        assert TimeTable(1).get("anything") is None


INTEL = """processor : 0
model name : Intel(R) Xeon(R) Processor
cpu MHz : {mhz}
flags : fpu avx512f{more}

processor : 1
model name : Intel(R) Xeon(R) Processor
cpu MHz : 2100.5
flags : fpu avx512f{more}
"""
ARM = """processor : 0
BogoMIPS : 50.00
Features : fp asimd{more}
CPU part : 0xd0c
"""


@pytest.mark.parametrize("text, more", [(INTEL, " amx_int8"), (ARM, " sve i8mm")])
def test_times_hold_for_processors_that_can_do_the_same(text, more, tmp_path, monkeypatch, cache):
    """Distinguishes virtual machines of one name with and without matrix units; ignores the current clock rate."""

    def place(**fields):
        (tmp_path / "cpuinfo").write_text(text.format(**{"more": "", "mhz": 1999, **fields}))
        monkeypatch.setattr(kept_times, "_CPUINFO", tmp_path / "cpuinfo")
        return TimeTable(1).path

    assert place() == place(mhz=3500) != place(more=more)


def test_the_prediction_is_a_plan_s_own_sum(cache):
    written(cache, lambda candidate, ranks: 1e-6 * candidate.costs(ranks)["macs"] / 1e4)
    plan = elrt.plan_ranks(small_model(), max_latency=0.6)
    saved = sum(c["latency"] - c["planned_latency"] for c in plan.costs.values())
    assert plan.latency["planned"] == pytest.approx(plan.latency["dense"] - saved)
    assert plan.latency["planned"] <= 0.6 * plan.latency["dense"]
    text = str(plan)
    assert "planned ms" in text and f"{1e3 * plan.costs['b']['latency']:.3f}" in text


@pytest.mark.thorough
def test_ranks_that_are_slower_than_dense_are_never_taken(cache):
    """Makes layer a slow at every rank, and layers b and c at every rank but one."""

    def times(candidate, ranks):
        # Keep the proportions of the real times, which the time of the whole model depends on.
        dense = 1e-9 * candidate.dense_costs()["macs"]
        good = candidate.name != "a" and ranks == (16, 24)
        return dense if ranks is None else 0.1 * dense if good else 1.01 * dense

    written(cache, times)
    for break_even in (True, False):
        plan = elrt.plan_ranks(small_model(), max_latency=0.5, break_even=break_even)
        assert [plan[name].ranks for name in ("a", "b", "c")] == [None, (16, 24), (16, 24)]
    assert "faster dense" in plan.reasons["a"]
    with pytest.raises(ValueError, match=r"Expected max_latency ≥ 0\.[2-4]\d+. Received: max_latency=0.2"):
        elrt.plan_ranks(small_model(), max_latency=0.2)


@pytest.mark.thorough
def test_a_model_with_open_sizes_is_measured_at_the_size_that_is_given(cache):
    layers = [keras.Input((None, None, 3))] + [keras.layers.Conv2D(64, 3, padding="same", name=n) for n in "xy"]
    model = keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(5)])
    plan = elrt.plan_ranks(model, max_latency=0.7, multiple_of=16, input_shape=(20, 20, 3))
    assert plan["y"].ranks is not None and plan.latency["planned"] <= 0.7 * plan.latency["dense"]


@pytest.mark.thorough
def test_two_budgets_at_once(cache):
    written(cache, lambda candidate, ranks: 1e-2 if ranks is None else 5e-3)
    model = small_model()
    plan = elrt.plan_ranks(model, max_latency=0.9, max_macs=0.3)
    low = elrt.factorize(model, plan)
    assert elrt.count_costs(low).macs <= 0.3 * elrt.count_costs(model).macs


@pytest.mark.thorough
def test_an_edited_plan_forgets_its_prediction(cache, tmp_path):
    written(cache, lambda candidate, ranks: 1e-2 if ranks is None else 5e-3)
    plan = elrt.plan_ranks(small_model(), max_latency=0.9)
    plan.save(tmp_path / "plan.json")
    loaded = elrt.RankPlan.load(tmp_path / "plan.json")
    assert dict(loaded) == dict(plan) and loaded.latency == plan.latency
    loaded["a"] = None
    assert loaded.latency is None


@pytest.mark.thorough
def test_old_times_of_layers_and_a_new_one_of_the_model_fit_together(cache):
    """Makes all stored times a hundred times too large; the model's time must be scaled alike."""
    now = elrt.plan_ranks(small_model(), max_latency=0.9, multiple_of=16).latency["dense"]
    (path,) = cache.iterdir()
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "seconds": {key: 100 * value for key, value in kept["seconds"].items()}}))
    then = elrt.plan_ranks(small_model(), max_latency=0.9, multiple_of=16).latency["dense"]
    assert 10 < then / now < 1000  # the machine may have become busier in between


@pytest.mark.thorough
def test_a_table_that_cannot_be_kept_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ELRT_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="Cannot keep measured times; .ELRT_CACHE_DIR sets the folder. Received: "):
        elrt.plan_ranks(small_model(), max_latency=0.5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"threads": 0}, "Received: threads=0"),
        ({"threads": 1.5}, "Received: threads=1.5"),
        ({"quantization": "int4"}, "Received: quantization='int4'"),
        ({"max_macs": 0.5, "max_params": 0.5}, "at most two budgets"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        elrt.plan_ranks(small_model(), max_latency=0.5, **options)


def test_several_outputs_are_refused(cache):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(32, 3, name="b")(keras.layers.Conv2D(32, 3, name="a")(inputs))
    model = keras.Model(inputs, [x, keras.layers.GlobalAveragePooling2D()(x)], name="two")
    with pytest.raises(ValueError, match="one input and one output, to measure times. Received: 'two' with 1 and 2"):
        elrt.plan_ranks(model, max_latency=0.5)


def scattered(seconds):
    """Returns a measurement whose interquartile range is 40 % of the median."""
    return np.outer([0.8, 1.0, 1.2], seconds)


@pytest.mark.thorough
def test_times_that_scatter_are_told_with_the_remedy(cache, monkeypatch, recwarn):
    def seconds(contents):
        return 1e-9 * np.array([len(content) for content in contents])

    def as_long_as_its_weights(stages, *arguments):
        return bytes(sum(math.prod((*stage.kernel_size, stage.in_channels, stage.out_channels)) for stage in stages))

    monkeypatch.setattr(latency.litert, "chain_to_litert", as_long_as_its_weights)
    monkeypatch.setattr(
        litert.LocalTimer, "measure", lambda self, contents, threads: np.tile(seconds(contents), (3, 1))
    )
    elrt.plan_ranks(small_model(), max_latency=0.95)
    monkeypatch.setattr(litert.LocalTimer, "measure", lambda self, contents, threads: scattered(seconds(contents)))
    elrt.plan_ranks(small_model(), max_latency=0.95)
    assert "scatter" not in "".join(str(one.message) for one in recwarn)  # the second call reads from the table
    table = TimeTable(1).path
    pathlib.Path(table).unlink()
    with pytest.warns(UserWarning, match="scatter by 40% .* stop other programs, remove ") as told:
        elrt.plan_ranks(small_model(), max_latency=0.95)
    (told,) = [one for one in told if "scatter" in str(one.message)]
    assert repr(table) in str(told.message) and told.filename == __file__


def test_the_command_tells_which_files_scatter(tmp_path, monkeypatch):
    from elrt_keras.launch import latency as command

    ranges = {"a.tflite": (0.9, 1.1), "b.tflite": (0.9, 1.2)}

    def benchmark_litert(paths, threads, runs):
        return [
            elrt.export.LatencyResult(path, 1, threads, runs, 1.0, *ranges[path], peak_memory_bytes=None)
            for path in paths
        ]

    monkeypatch.setattr(elrt.export, "benchmark_litert", benchmark_litert)
    with pytest.warns(UserWarning, match="Single runs of b scatter by more than 25% .* --runs=50"):
        assert len(command.measure(list(ranges), 1, 50)) == 2


@pytest.mark.slow
# Processors that multiply int8 matrices (AMX) gain less there.
@pytest.mark.parametrize(("quantization", "max_latency"), [(None, 0.6), ("int8", 0.8)])
def test_the_predicted_speed_up_is_the_measured_one(quantization, max_latency):
    model = elrt.models.build("resnet18", input_shape=(128, 128, 3))
    plan = elrt.plan_ranks(model, max_latency=max_latency, quantization=quantization)
    images = np.random.default_rng(0).integers(0, 256, (4, 128, 128, 3)).astype("float32")
    contents = [litert.model_to_litert(m, quantization, images) for m in (model, elrt.factorize(model, plan))]
    dense, fast = litert.LocalTimer().measure(contents, 1)[0]
    assert dense / fast == pytest.approx(plan.latency["dense"] / plan.latency["planned"], rel=0.15)
