"""Learning rates over a run against closed forms, and the variables that decay."""

import keras
import numpy as np
import pytest

import elrt_keras as elrt
from elrt_keras.launch import checkpoints, modeling, rundir, training
from elrt_keras.launch.config import TrainConfig
from elrt_keras.launch.optimization import add_kernel_regularizer, frobenius_decay, learning_rate, make_optimizer


def rates(steps_per_epoch=10, **fields):
    schedule = learning_rate(TrainConfig(**fields), steps_per_epoch)
    total = fields["epochs"] * steps_per_epoch
    if isinstance(schedule, float):
        return np.full(total, schedule)
    return np.array([float(schedule(step)) for step in range(total)])


@pytest.mark.tensorflow
@pytest.mark.parametrize(("fields", "more"), [({}, {"cross_entropy"}), ({"weight_decay": 0, "format": "dense"}, set())])
def test_a_training_step_is_traced_once(monkeypatch, fields, more):
    """Counts the traces: tracing takes most of the start of a run, seconds for a ResNet."""
    traced, train_step = [], keras.Model.train_step
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    modeling.compile_model(model, TrainConfig(**fields), 2)
    model.optimizer.build(model.trainable_variables)  # as in a model from a checkpoint
    monkeypatch.setattr(model, "train_step", lambda data: traced.append(1) or train_step(model, data))
    logs = model.fit(np.ones((8, 4)), np.eye(3)[[0, 1, 2, 0, 1, 2, 0, 0]], batch_size=4, verbose=0).history
    assert set(logs) == {"accuracy", "loss"} | more and len(traced) == 1


@pytest.mark.thorough
def test_the_cross_entropy_is_the_loss_without_penalties():
    config = TrainConfig(model="resnet8", label_smoothing=0.1, weight_decay=0.01)
    dense = elrt.models.build("resnet8", (8, 8, 1), 10)
    model = modeling.build_model(config, dense, modeling.rank_plan(config, dense))
    modeling.compile_model(model, config, 2)
    x, y = np.random.default_rng(0).uniform(0, 255, (8, 8, 8, 1)), np.eye(10)[:8]
    results = model.evaluate(x, y, verbose=0, return_dict=True)
    smooth, outputs = 0.9 * y + 0.01, np.asarray(model.predict(x, verbose=0), "float64")
    expected = -np.mean(np.sum(smooth * np.log(outputs), axis=1))
    assert results["cross_entropy"] == pytest.approx(expected, rel=1e-4)
    assert results["loss"] == pytest.approx(expected + float(sum(model.losses)), rel=1e-4)


@pytest.mark.backends
def test_averaged_weights_stay_apart_until_they_are_asked_for():
    x, y = np.eye(4)[[0, 1, 2, 3] * 4], np.eye(3)[[0, 1, 2, 0, 1, 1, 2, 2] * 2]
    plain, averaged = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")]) for _ in range(2))
    averaged.set_weights(plain.get_weights())
    for model, momentum in ((plain, None), (averaged, 0.5)):
        config = TrainConfig(format="dense", ema=momentum, learning_rate=1.0, lr_schedule="constant")
        modeling.compile_model(model, config, 4)
    seen = []
    for start in range(0, 16, 4):
        plain.train_on_batch(x[start : start + 4], y[start : start + 4])
        seen.append(plain.get_weights())
    averaged.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    after, expected = averaged.get_weights(), seen[0]
    averaged.optimizer.use_averages(averaged.trainable_variables)
    for weights in seen[1:]:
        expected = [(average + weight) / 2 for average, weight in zip(expected, weights)]
    for weight, last, used, average in zip(after, seen[-1], averaged.get_weights(), expected, strict=True):
        np.testing.assert_allclose(weight, last, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(used, average, rtol=1e-5, atol=1e-6)
        assert np.abs(used - last).max() > 1e-3


def test_cosine():
    expected = 0.1 * 0.5 * (1 + np.cos(np.pi * np.arange(40) / 40))
    np.testing.assert_allclose(rates(lr_schedule="cosine", learning_rate=0.1, epochs=4), expected, rtol=1e-5, atol=1e-8)


def test_cosine_after_warm_up():
    got = rates(lr_schedule="cosine", learning_rate=0.1, epochs=4, lr_warmup_epochs=1)
    np.testing.assert_allclose(got[:10], 0.1 * np.arange(1, 11) / 10, rtol=1e-5)
    np.testing.assert_allclose(got[10:], 0.05 * (1 + np.cos(np.pi * np.arange(30) / 30)), rtol=1e-4, atol=1e-8)


def test_step_with_warm_up_keeps_the_epochs_of_its_steps():
    got = rates(
        lr_schedule="step", learning_rate=1.0, epochs=6, lr_warmup_epochs=1, lr_step_epochs=2, lr_step_factor=0.5
    )
    np.testing.assert_allclose(got[[10, 19, 22, 39, 42, 59]], [1, 1, 0.5, 0.5, 0.25, 0.25])


def test_one_cycle_rises_to_the_peak_and_ends_near_zero():
    got = rates(lr_schedule="one_cycle", learning_rate=0.2, epochs=10)
    assert got[0] == pytest.approx(0.2 / 25)
    assert np.argmax(got) == 30 and got.max() == pytest.approx(0.2)
    assert (np.diff(got[:31]) > 0).all() and (np.diff(got[30:]) < 0).all()
    assert got[-1] < 0.2 * 1e-3


def test_constant_with_warm_up():
    got = rates(lr_schedule="constant", learning_rate=0.3, epochs=2, lr_warmup_epochs=0.5)
    np.testing.assert_allclose(got, 0.3 * np.minimum(np.arange(1, 21) / 5, 1), rtol=1e-6)


@pytest.mark.tensorflow
@pytest.mark.parametrize("rollbacks", [1, 2, 3])
def test_each_rollback_halves_the_learning_rate(rollbacks):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    config = TrainConfig(lr_schedule="constant", learning_rate=0.4)
    modeling.compile_model(model, config, 2)
    modeling.slow_down(model, config, 2, rollbacks)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.4 / 2**rollbacks)


@pytest.mark.tensorflow
def test_the_loss_of_a_run_smooths_labels():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, activation="softmax")])
    modeling.compile_model(model, TrainConfig(label_smoothing=0.2), 2)
    scores = np.array([[0.7, 0.1, 0.1, 0.1]], "float32")
    expected = -(0.85 * np.log(0.7) + 3 * 0.05 * np.log(0.1))  # 0.8 for the class and 0.2 over all four
    assert float(model.loss(np.eye(4, dtype="float32")[:1], scores)) == pytest.approx(expected, rel=1e-5)


def small_model():
    dense = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(8, 3, name="stem"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.Conv2D(16, 3, name="body"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4, name="classifier"),
        ]
    )
    return elrt.factorize(dense, {"body": ("tucker2", (4, 4))})


@pytest.mark.tensorflow
def test_the_factors_of_a_run_are_those_of_its_seed():
    dense = elrt.merge(small_model())
    plan = elrt.RankPlan({"body": ("tucker2", (4, 4))})
    first, again, other = (
        modeling.build_model(TrainConfig(seed=seed), dense, plan).get_layer("body").get_weights()[0]
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


@pytest.mark.backends
def test_decoupled_decay_shrinks_matrices_and_leaves_vectors():
    model = small_model()
    config = TrainConfig(
        weight_decay=0.1, weight_decay_kind="decoupled", lr_schedule="constant", learning_rate=0.5, momentum=0.0
    )
    optimizer = make_optimizer(config, steps_per_epoch=1)
    optimizer.build(model.trainable_variables)
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    optimizer.apply([keras.ops.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
    for variable, value in zip(model.trainable_variables, before):
        shrink = 1 - 0.1 * 0.5 if value.ndim > 1 else 1.0
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(variable), shrink * value, rtol=1e-6, err_msg=variable.path
        )


@pytest.mark.backends
def test_frobenius_decay_is_half_lambda_times_the_norm_of_all_kernels():
    config = TrainConfig(weight_decay=0.2)  # with SGD
    decay = frobenius_decay(config)
    dense = elrt.merge(small_model())
    model = elrt.factorize(dense, {"body": ("tucker2", (4, 4))}, kernel_regularizer=decay)
    add_kernel_regularizer(model, decay)
    kernels = [model.get_layer(name).kernel for name in ("stem", "body", "classifier")]
    expected = 0.1 * sum(np.sum(keras.ops.convert_to_numpy(kernel).astype("float64") ** 2) for kernel in kernels)
    got = sum(float(keras.ops.convert_to_numpy(loss)) for loss in model.losses)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    optimizer = make_optimizer(config, steps_per_epoch=1)
    assert optimizer.weight_decay is None


@pytest.mark.thorough
def test_decay_through_momentum_is_as_strong_as_decoupled_decay_over_one_minus_it():
    momentum, strength, steps = 0.9, 1e-3, 600
    ends = []
    for decoupled in (None, strength / (1 - momentum)):
        weights = keras.Variable(np.ones((2, 2), "float32"))
        optimizer = keras.optimizers.SGD(0.3, momentum=momentum, nesterov=True, weight_decay=decoupled)
        for _ in range(steps):
            gradient = 0 * weights.value if decoupled else strength * weights.value
            optimizer.apply([gradient], [weights])
        ends.append(float(keras.ops.max(weights)))
    # Both decay by exp(−lr·λ·steps/(1 − m)), except in the first steps, while momentum builds up.
    assert ends == pytest.approx([np.exp(-0.3 * strength * steps / (1 - momentum))] * 2, rel=0.03)


@pytest.mark.backends
@pytest.mark.parametrize("optimizer, precision", [("adamw", "float32"), ("sgd", "float32"), ("adamw", "mixed_float16")])
def test_a_checkpoint_knows_what_decays(tmp_path, optimizer, precision):
    if precision == "mixed_float16" and keras.backend.backend() == "jax":
        pytest.skip("a step with loss scaling runs in a compiled function alone")
    config = TrainConfig(
        optimizer=optimizer, precision=precision, weight_decay=0.1, weight_decay_kind="decoupled", momentum=0.0
    )
    model = small_model()
    modeling.compile_model(model, config, steps=4)
    model.optimizer.build(model.trainable_variables)
    checkpoints.save(model, str(tmp_path), checkpoints.Progress())
    model, _ = checkpoints.newest(str(tmp_path))
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    model.optimizer.apply([keras.ops.zeros(v.shape) for v in before], model.trainable_variables)
    for variable, value in zip(model.trainable_variables, before):
        shrink = 1 - 0.1 * 0.1 if value.ndim > 1 else 1.0
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(variable), shrink * value, rtol=1e-6, err_msg=variable.path
        )


@pytest.mark.thorough
def test_decay_of_depthwise_kernels_is_saved(tmp_path):
    model = elrt.models.build("mobilenet_v2", (32, 32, 3), 4, width=0.25)
    add_kernel_regularizer(model, keras.regularizers.L2(0.1))
    kernels = [layer.kernel for layer in model.layers if hasattr(layer, "kernel")]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(model.losses) == len(loaded.losses) == len(kernels)
    np.testing.assert_allclose(float(sum(loaded.losses)), float(sum(model.losses)), rtol=1e-5)


def test_a_run_trains_fused_and_alone_in_its_directory(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "_fit_epochs", lambda job, model, progress, epochs, *_: seen.append(model) or epochs)
    monkeypatch.setattr(training, "_publish", lambda job: None)
    config, run_dir = TrainConfig(smoke=True), str(tmp_path / "run")
    with rundir.held(run_dir), pytest.raises(ValueError, match="no other process trains in.*Received: run_dir="):
        training.run(config, run_dir)
    assert not list(tmp_path.iterdir()) and not seen
    training.run(config, run_dir)
    norms = [layer for layer in seen[0].layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert norms and all(("call" in vars(layer)) == (keras.backend.backend() == "tensorflow") for layer in norms)


def test_a_finished_run_without_its_summary_is_not_trained_over(tmp_path):
    config = TrainConfig()
    rundir.prepare(config, str(tmp_path), None)
    (tmp_path / "model.keras").write_bytes(b"precious")
    with pytest.raises(ValueError, match="summary.json beside the model of a finished run.*Received: run_dir="):
        training.run(config, str(tmp_path))
    assert (tmp_path / "model.keras").read_bytes() == b"precious"
