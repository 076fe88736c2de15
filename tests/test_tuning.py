"""Tuning: all ways to train a layer are equal, the fastest is chosen, and nothing else in the model changes."""

import json
import math

import keras
import numpy as np
import pytest
from common import (
    conv_cases,
    conv_error_bound,
    depthwise_as_dense,
    gradients,
    numpy_conv,
    random_array,
    random_examples,
    to_numpy,
)
from hypothesis import given
from hypothesis import strategies as st
from test_factorized_conv import make

import elrt_keras as elrt
from elrt_keras import formats
from elrt_keras.kept_times import KeptTimes
from elrt_keras.layers import TrainingWay, ways
from elrt_keras.tuning import steps, tune

pytestmark = pytest.mark.backends


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ELRT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def small_model(recompute=False):
    keras.utils.set_random_seed(3)
    conv = {"padding": "same", "recompute": recompute}
    return keras.Sequential(
        [
            keras.Input((6, 5, 3)),
            elrt.layers.Tucker2Conv2D(8, 3, ranks=(2, 4), name="tucker", factor_regularizer="dso", **conv),
            keras.layers.BatchNormalization(),
            elrt.layers.CPConv2D(8, 3, ranks=5, name="cp", strides=2, **conv),
            elrt.layers.TensorTrainConv2D(6, 3, ranks=0.5, name="tt", execution="compose", **conv),
            keras.layers.Flatten(),
            elrt.layers.LowRankDense(4, ranks=2, name="dense", activation="softmax"),
        ]
    )


@pytest.mark.parametrize("name", [name for name in formats.names() if formats.get(name).spatial_dims != (0,)])
@random_examples(20)
@given(data=st.data())
def test_all_ways_are_equal_for_every_argument(name, data):
    case = data.draw(conv_cases(format_name=name))
    layer = make(case, name, use_bias=False)
    inputs = random_array(*case["input_shape"], seed=3)
    expected = to_numpy(layer(inputs))
    bound = 2 * conv_error_bound(inputs, layer, np.finfo("float32").eps, **case["arguments"])
    assert layer.default_way in layer.training_ways
    factors = [keras.ops.convert_to_tensor(factor) for factor in layer.factors]
    for way in layer.training_ways:
        assert sum(way.sizes) == len(factors)
        outputs = to_numpy(layer.run_training(keras.ops.convert_to_tensor(inputs), factors, way))
        assert np.all(np.abs(outputs - expected) <= bound), way


@pytest.mark.parametrize("name", ["tucker2", "cp", "tensor_train", "svd", "spatial_svd"])
def test_all_ways_have_equal_gradients(name):
    layer = elrt.layers.convolutions.layer_class(name, 2)(6, 3, ranks=3, strides=2, padding="same")
    inputs = random_array(2, 7, 6, 4)
    layer.build(inputs.shape)
    found = {}
    for way in layer.training_ways:
        layer.training_way = way
        results = gradients(lambda: keras.ops.sum(layer(inputs, training=True) ** 2), layer.trainable_weights)
        found[way] = [to_numpy(one) for one in results]
    first, *others = found.values()
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(a).max())


@pytest.mark.parametrize("size, stride, dilation", [((3, 2), 2, 1), ((4, 3), 1, 1), ((3, 3), 1, 2), ((2, 5), 3, 1)])
def test_shifted_products_are_a_depthwise_convolution(size, stride, dilation):
    inputs, kernel = random_array(2, 8, 7, 5), random_array(*size, 5, 1)
    stage = formats.Stage(size, 5, 5, (stride,) * 2, (dilation,) * 2, depthwise=True)
    outputs = ways.shift_channels(inputs, kernel, stage, *ways.same_padding((8, 7), stage))
    expected = numpy_conv(inputs, depthwise_as_dense(kernel), stride, "same", dilation)
    np.testing.assert_allclose(to_numpy(outputs), expected, rtol=1e-5, atol=1e-5)


def test_which_factors_can_be_folded():
    def sizes(name, **options):
        layer = elrt.layers.convolutions.layer_class(name, 2)(8, 3, ranks=2, **options)
        layer.build((None, 8, 8, 8))
        return [way.sizes for way in dict.fromkeys(TrainingWay(way.sizes) for way in layer.training_ways)]

    assert sizes("tucker2") == [(1, 1, 1), (1, 2), (2, 1), (3,)] == sizes("cp")
    assert sizes("svd") == [(1, 1), (2,)] == sizes("spatial_svd")
    assert len(sizes("tensor_train")) == 8
    assert sizes("tucker2", groups=2) == [(1, 1, 1), (3,)]


def test_what_a_way_keeps():
    layer = elrt.layers.Tucker2Conv2D(8, 3, ranks=(2, 4), strides=2, padding="same")
    layer.build((None, 8, 8, 6))
    shape = (1, 8, 8, 6)
    assert layer.way_costs(TrainingWay((1, 1, 1)), shape) == (2 * 64 + 4 * 16, 0)
    assert layer.way_costs(TrainingWay((2, 1)), shape) == (4 * 16, 9 * 6 * 4)
    assert layer.way_costs(TrainingWay((1, 2)), shape) == (2 * 64, 9 * 2 * 8)
    assert layer.way_costs(TrainingWay((3,)), shape) == (0, 9 * 6 * 8)
    dense = elrt.layers.LowRankDense(5, ranks=2)
    dense.build((None, 7))
    assert [dense.way_costs(way, (1, 7)) for way in dense.training_ways] == [(2, 0), (0, 35)]
    again = elrt.layers.Tucker2Conv2D(8, 3, ranks=(2, 4), recompute=True)
    again.build((None, 8, 8, 6))
    assert again.way_costs(TrainingWay((2, 1)), shape) == (0, 0)


def made_passes(slow, calls=None):
    """Makes passes with a simulated clock: they take a microsecond, or a millisecond if `slow(way)`."""
    clock = [0.0]

    def training_pass(layer, way, input_shape, jit_compile):
        def run(count=1):
            clock[0] += count * (1e-3 if slow(layer, way) else 1e-6)
            if calls is not None:
                calls.append((layer.name, way))

        return run

    return training_pass, lambda: clock[0]


def tuned_with(monkeypatch, model, slow, batch_size=4, **options):
    calls = []
    training_pass, clock = made_passes(slow, calls)
    monkeypatch.setattr(tune, "training_pass", training_pass)
    monkeypatch.setattr(tune.time, "perf_counter", clock)
    return elrt.tune_training(model, batch_size, **options), calls


def test_a_way_that_is_made_slow_is_not_taken(monkeypatch):
    model = small_model()
    default = model.get_layer("tucker").default_way
    report, _ = tuned_with(monkeypatch, model, lambda layer, way: way == layer.default_way)
    assert list(report) == ["tucker", "cp", "tt", "dense"]
    for path, row in report.items():
        layer = model.get_layer(path)
        assert row.way == layer.training_way != layer.default_way == row.default_way
        assert row.default_seconds == pytest.approx(1e-3) and row.seconds == pytest.approx(1e-6)
    assert report["tucker"].default_way == default
    text = str(report)
    assert "1000.00×" in text and str(report["cp"].way) in text


def test_what_saves_little_changes_nothing(monkeypatch, cache):
    model = small_model()
    tuned_with(monkeypatch, model, lambda layer, way: False)
    layer = model.get_layer("tucker")
    assert layer.training_way == layer.default_way
    (path,) = cache.glob("training_*.json")
    kept = json.loads(path.read_text(encoding="utf-8"))
    for key in kept["seconds"]:  # one percent is noise, three percent are not
        kept["seconds"][key] = 1.0 if json.dumps(layer.default_way.to_json()) in key else 0.99
    path.write_text(json.dumps(kept), encoding="utf-8")
    elrt.tune_training(model, 4)
    assert layer.training_way == layer.default_way
    path.write_text(json.dumps(kept).replace("0.99", "0.97"), encoding="utf-8")
    report = elrt.tune_training(model, 4)
    assert layer.training_way != layer.default_way and report["tucker"].seconds == 0.97


def test_equal_layers_are_timed_once_and_kept(monkeypatch):
    inputs = keras.Input((6, 6, 8))
    shared = elrt.layers.Tucker2Conv2D(8, 3, ranks=4, padding="same", name="shared")
    twin = elrt.layers.Tucker2Conv2D(8, 3, ranks=4, padding="same", name="twin")
    other = elrt.layers.Tucker2Conv2D(8, 3, ranks=3, padding="same", name="other")
    model = keras.Model(inputs, other(twin(shared(shared(inputs)))))
    report, calls = tuned_with(monkeypatch, model, lambda layer, way: False)
    assert len({name for name, _ in calls}) == 2 and {"shared", "twin"} - {name for name, _ in calls}
    assert report["shared"].seconds == pytest.approx(2 * report["twin"].seconds)  # it runs twice
    assert report["shared"].default_kept_bytes == 2 * 4 * 4 * 36 * 8
    _, calls = tuned_with(monkeypatch, model, lambda layer, way: False)
    assert not calls
    _, calls = tuned_with(monkeypatch, model, lambda layer, way: False, input_shape=(6, 6, 8))
    assert not calls


def test_times_are_kept_by_batch_and_precision_and_shared_by_processes(monkeypatch):
    counts = []
    for policy, batch_size in (("float32", 4), ("mixed_bfloat16", 4), ("float32", 8), ("float32", 4)):
        layer = elrt.layers.Tucker2Conv2D(8, 3, ranks=4, name="conv", dtype=policy)
        model = keras.Sequential([keras.Input((6, 6, 8)), layer])
        _, calls = tuned_with(monkeypatch, model, lambda layer, way: False, batch_size=batch_size)
        counts.append(bool(calls))
    assert counts == [True, True, True, False]
    one, other = KeptTimes("training", "device"), KeptTimes("training", "device")
    one.add({"a": 1.0})
    other.add({"b": 2.0})
    assert KeptTimes("training", "device").seconds == {"a": 1.0, "b": 2.0}
    assert KeptTimes("training", "other device").seconds == {}


def test_memory_before_time(monkeypatch):
    model = small_model()
    report, _ = tuned_with(monkeypatch, model, lambda layer, way: way.sizes == (2, 1), prefer="memory")
    chosen = {path: row.way.sizes for path, row in report.items()}
    assert chosen["tucker"] == (3,) and chosen["cp"] == (2, 1)  # for small images, a kernel is as large
    assert report["cp"].seconds > report["cp"].default_seconds
    assert report["cp"].kept_bytes == 4 * (4 * 9 * 5 + 9 * 8 * 5) < report["cp"].default_kept_bytes
    recomputed, _ = tuned_with(monkeypatch, small_model(recompute=True), lambda layer, way: len(way.sizes) > 1)
    assert recomputed["cp"].kept_bytes == 0 == recomputed["cp"].default_kept_bytes


def trained(model, tuned, after_compile):
    batch = random_array(8, 6, 5, 3), np.arange(8) % 4
    if not after_compile and tuned:
        tuned.apply(model)
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=keras.backend.backend() == "jax")
    model.fit(*batch, epochs=1, batch_size=4, shuffle=False, verbose=0)
    if after_compile and tuned:
        tuned.apply(model)
    model.fit(*batch, epochs=2, batch_size=4, shuffle=False, verbose=0)
    return [to_numpy(weight) for weight in model.weights]


@pytest.mark.parametrize("after_compile", [False, True])
def test_training_is_the_same_and_no_step_mixes_two_ways(monkeypatch, after_compile):
    model = small_model()
    report, _ = tuned_with(monkeypatch, small_model(), lambda layer, way: len(way.sizes) > 1)
    monkeypatch.undo()
    expected = trained(small_model(), None, after_compile)
    ran = []
    monkeypatch.setattr(
        ways, "folded_kernels", lambda *given, f=ways.folded_kernels: (ran.append(tuple(given[-1])), f(*given))[1]
    )
    actual = trained(model, report, after_compile)
    assert {3, 4} == {sizes[0] for sizes in ran[-3:]}, ran  # the last trace composes all layers
    for a, b in zip(expected, actual, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_measured_for_real_and_untouched_otherwise(tmp_path):
    model = small_model()
    inputs = random_array(4, 6, 5, 3)
    before, config = to_numpy(model(inputs)), model.get_config()
    report = elrt.tune_training(model, 4)
    assert all(0 < row.seconds <= row.default_seconds < 10 for row in report.values())
    np.testing.assert_array_equal(to_numpy(model(inputs)), before)
    assert model.get_config() == config
    report.save(tmp_path / "report.json")
    loaded = elrt.TrainingReport.load(tmp_path / "report.json")
    assert dict(loaded) == dict(report) and (loaded.device, loaded.batch_size) == (report.device, 4)
    fresh = keras.models.clone_model(model)
    loaded.apply(fresh)
    assert [fresh.get_layer(path).training_way for path in report] == [row.way for row in report.values()]
    assert math.isclose(sum(row.seconds for row in loaded.values()), sum(row.seconds for row in report.values()))


def test_taught_and_nested_models_and_open_sizes(monkeypatch):
    conv = elrt.layers.Tucker2Conv2D(8, 3, ranks=2, padding="same", name="conv")
    nested = keras.Sequential([keras.Input((None, None, 3)), conv], name="nested")
    model = keras.Sequential([nested, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="input_shape"):
        elrt.tune_training(model, 4)
    report, _ = tuned_with(monkeypatch, model, lambda layer, way: False, input_shape=(6, 6, 3))
    assert list(report) == ["nested/conv"]
    student, teacher = small_model(), small_model()
    report, _ = tuned_with(monkeypatch, elrt.Taught(student, teacher), lambda layer, way: way == layer.default_way)
    assert student.get_layer("cp").training_way == report["cp"].way
    assert teacher.get_layer("cp").training_way == teacher.get_layer("cp").default_way
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    assert str(elrt.tune_training(plain, 2)) == "No low-rank layers to tune."


def test_wrong_arguments(tmp_path):
    model = small_model()
    for arguments, message in (
        (("model", 4), "Keras model"),
        ((model, 0), "batch_size"),
        ((model, 2.5), "batch_size"),
    ):
        with pytest.raises(ValueError, match=message):
            elrt.tune_training(*arguments)
    with pytest.raises(ValueError, match="prefer"):
        elrt.tune_training(model, 4, prefer="speed")
    layer = model.get_layer("tucker")
    with pytest.raises(ValueError, match="Expected a way to train 'tucker'"):
        layer.training_way = TrainingWay((2, 2))
    with pytest.raises(ValueError, match="Expected a way to train"):
        TrainingWay.from_json({"sizes": [1, "2"], "products": False, "shifts": False})
    with pytest.raises(ValueError, match="Expected a way to train"):
        TrainingWay.from_json(["chain"])
    (tmp_path / "damaged.json").write_text('{"kind": 3', encoding="utf-8")
    for name in ("damaged.json", "missing.json"):
        with pytest.raises(ValueError, match=f"Expected a training report. Received: .*{name}"):
            elrt.TrainingReport.load(tmp_path / name)
    report = elrt.TrainingReport({"gone": None}, "", 1)
    with pytest.raises(ValueError, match="layers \\['gone'\\]"):
        report.apply(model)


def test_slow_ways_drop_out_and_lower_quartiles_count():
    turns = {"default": [], "fast": [], "slow": []}
    clock = iter(range(10**6))

    def of(name, milliseconds):
        def run(count=1):
            turns[name].append(count)
            now[0] += count * milliseconds / 1e3

        return run

    now = [0.0]
    del clock
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune.time, "perf_counter", lambda: now[0])
        found = tune.in_turns({"default": of("default", 9), "fast": of("fast", 3), "slow": of("slow", 30)}, "default")
    assert found == pytest.approx({"default": 9e-3, "fast": 3e-3, "slow": 30e-3})
    # One pass to estimate the time, then turns of at least 20 ms.
    assert turns["fast"] == [1] + 9 * [7] and turns["default"] == [1] + 9 * [3] and turns["slow"] == [1] + 3 * [1]


def test_an_accelerator_is_seen_on_every_backend(monkeypatch):
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        pretend = [(torch.cuda, "is_available", lambda value=value: value) for value in (False, True)]
    else:
        devices = (["cpu:0"], ["gpu:0"])
        pretend = [(keras.distribution, "list_devices", lambda value=value: value) for value in devices]
    for replacement, expected in zip(pretend, (False, True)):
        monkeypatch.setattr(*replacement)
        assert steps.has_accelerator() is expected


def test_device_key_tells_what_times_hold_for():
    assert f"Keras {keras.__version__}" in steps.device_key(False) != steps.device_key(True)
