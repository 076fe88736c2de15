"""Runs with a teacher, with averaged weights, and at the training cost of the dense network."""

import csv
import json
import signal

import keras
import numpy as np
import pytest
from test_faults import assert_same_weights, finish, history, start, wait_until

import elrt_keras as elrt
from elrt_keras.launch import checkpoints, modeling, rundir, training
from elrt_keras.launch.config import TrainConfig

pytestmark = pytest.mark.tensorflow
FLAGS = ("--run_dir=run", "--model=resnet8", "--batch_size=128", "--max_macs=0.3", "--epochs=2", "--teacher=teacher")
FLAGS = (*FLAGS, "--temperature=4", "--ema=0.9")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("teacher") / "teacher")
    training.run(TrainConfig(model="resnet8", format="dense", smoke=True), path)
    return path


def test_a_taught_run_saves_its_averaged_student_and_counts_the_teacher(tmp_path, teacher):
    fields = {"model": "resnet8", "smoke": True, "max_macs": 0.4}
    config = TrainConfig(**fields, teacher=teacher, temperature=2.0, ema=0.9)
    summary = training.run(config, str(tmp_path / "run"))
    model = keras.models.load_model(tmp_path / "run" / "model.keras", compile=False)
    assert not isinstance(model, elrt.Taught)
    of_teacher = elrt.count_costs(keras.models.load_model(f"{teacher}/model.keras", compile=False)).macs
    assert summary["training_macs"] == 2 * 4 * 32 * (3 * elrt.count_costs(model).macs + of_teacher)
    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").open()))
    # Each evaluation uses the averaged weights, and so does the summary of the saved model.
    np.testing.assert_allclose(float(rows[-1]["val_cross_entropy"]), summary["test_loss"], rtol=1e-5)
    plain = training.run(TrainConfig(**fields), str(tmp_path / "plain"))
    assert plain["training_macs"] == 2 * 4 * 32 * 3 * elrt.count_costs(model).macs
    assert plain["test_loss"] != summary["test_loss"]


def test_averages_are_those_of_the_steps(tmp_path):
    """Computes the averages of two epochs from the weights after each step, and compares with the saved weights."""
    seen = []

    class Steps(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append([keras.ops.convert_to_numpy(variable) for variable in self.model.trainable_variables])

    callbacks = training._callbacks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_callbacks", lambda *arguments: [*callbacks(*arguments), Steps()])
        training.run(TrainConfig(model="resnet8", smoke=True, ema=0.5), str(tmp_path / "run"))
    saved = keras.models.load_model(tmp_path / "run" / "model.keras").trainable_variables
    expected = seen[0]
    for weights in seen[1:]:
        expected = [0.5 * average + 0.5 * weight for average, weight in zip(expected, weights)]
    for variable, average in zip(saved, expected, strict=True):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), average, rtol=1e-4, atol=1e-6)


@pytest.mark.thorough
def test_averages_begin_with_the_low_rank_weights_after_full_rank_warmup(tmp_path):
    fields = {"model": "resnet8", "smoke": True, "warmup_epochs": "1", "learning_rate": 1e-6}
    for name, momentum in (("plain", None), ("averaged", 0.999)):
        training.run(TrainConfig(**fields, ema=momentum), str(tmp_path / name))
    plain, averaged = (
        keras.models.load_model(tmp_path / name / "model.keras").trainable_variables for name in ("plain", "averaged")
    )
    # At this learning rate the weights stay constant; averages that start at zero would be 4/1000 of them.
    for one, two in zip(plain, averaged, strict=True):
        np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (two, one)), atol=1e-3)


def test_epochs_at_the_cost_of_the_dense_network(tmp_path, teacher, capsys):
    fields = {"model": "resnet8", "batch_size": 718, "max_macs": 0.4, "training_macs_of_dense": 1.5}
    summary = training.run(TrainConfig(**fields), str(tmp_path / "run"))
    assert summary["epochs"] == int(1.5 * summary["dense_macs"] / summary["macs"]) == 3
    assert f", {summary['epochs']} epochs" in capsys.readouterr().out
    assert summary["training_macs"] <= 1.5 * 1436 * 3 * summary["dense_macs"]
    again = training.run(TrainConfig(**fields), str(tmp_path / "run"))
    assert again == summary
    low, dense = (rundir.load_model(path) for path in (str(tmp_path / "run"), teacher))
    taught = modeling.with_epochs(TrainConfig(**fields, teacher=teacher), elrt.Taught(low, dense), dense)
    assert taught.epochs == int(1.5 * 3 / (3 * summary["macs_fraction"] + 1)) == 2
    with pytest.raises(ValueError, match=r"costs 0.39 epochs.*training_macs_of_dense=0.1"):
        training.run(TrainConfig(**{**fields, "training_macs_of_dense": 0.1}), str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_teachers_that_do_not_fit_are_refused_before_any_work(tmp_path, teacher):
    other = str(tmp_path / "other.keras")
    elrt.models.build("resnet8", (32, 32, 3), 100).save(other)
    run_dir = str(tmp_path / "run")
    for fields, message in (
        ({"teacher": other}, r"In --teacher=.*other.keras: Expected a teacher with the \w+_shape of the student"),
        ({"teacher": run_dir}, r"the model of another run. Received: teacher="),
        ({"teacher": f"{run_dir}/model.keras"}, r"the model of another run. Received: teacher="),
        ({"initial_model": run_dir}, r"the model of another run. Received: initial_model="),
        ({"teacher": str(tmp_path / "nowhere")}, r"a .keras file or a finished run. Received: .*nowhere"),
    ):
        with pytest.raises(ValueError, match=message):
            training.run(TrainConfig(model="resnet8", max_latency=0.9, **fields), run_dir)
        assert not (tmp_path / "run").exists()
    summary = json.loads(open(f"{teacher}/summary.json").read())
    named = tmp_path / "letters"
    named.mkdir()
    (named / "model.keras").write_bytes(open(f"{teacher}/model.keras", "rb").read())
    (named / "summary.json").write_text(json.dumps({**summary, "class_names": list("abcdefghij")}))
    with pytest.raises(ValueError, match=r"the 10 classes that .*letters.* without \['a', 'b'"):
        training.run(TrainConfig(model="resnet8", teacher=str(named)), run_dir)


@pytest.mark.thorough
def test_stopped_and_killed_it_ends_with_the_same_weights(tmp_path, teacher):
    for name in ("undisturbed", "disturbed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "teacher").symlink_to(teacher)
    code, output = finish(start(tmp_path / "undisturbed", *FLAGS))
    assert code == 0 and "taught by teacher" in output, output[-3000:]
    folder, run = tmp_path / "disturbed", tmp_path / "disturbed" / "run"
    process = start(folder, *FLAGS)
    wait_until(lambda: (run / "tensorboard").exists(), process)
    process.send_signal(signal.SIGTERM)  # in the first epoch
    code, output = finish(process)
    assert code == 0 and "told to stop" in output
    process = start(folder, *FLAGS)
    wait_until(lambda: any("epoch0001" in path for path in checkpoints.paths(str(run))), process)
    process.send_signal(signal.SIGKILL)
    finish(process)
    code, output = finish(start(folder, *FLAGS))
    assert code == 0 and "resuming at epoch 2" in output, output[-3000:]
    assert_same_weights(run, tmp_path / "undisturbed" / "run")
    assert history(run) == history(tmp_path / "undisturbed" / "run")
