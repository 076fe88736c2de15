"""Tuned runs, and runs that freeze factors in turn: their files, and the same result after a kill."""

import signal

import keras
import numpy as np
import pytest
from test_faults import assert_same_weights, finish, start, wait_until

import elrt_keras as elrt
from elrt_keras.launch import modeling, rundir, strategies, training
from elrt_keras.launch.config import TrainConfig
from elrt_keras.tuning import tune

pytestmark = pytest.mark.tensorflow
FLAGS = ("--run_dir=run", "--model=resnet8", "--batch_size=128", "--max_macs=0.3", "--epochs=3")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ELRT_CACHE_DIR", str(tmp_path / "cache"))


def test_a_tuned_run_trains_as_its_file_says_and_tunes_once(tmp_path, monkeypatch, capsys):
    timed, seen = [], []
    measured, fit = tune._times, training._fit
    monkeypatch.setattr(tune, "_times", lambda problem, jit: (timed.append(problem), measured(problem, jit))[1])
    monkeypatch.setattr(training, "_fit", lambda *given, **options: (seen.append(given[1]), fit(*given, **options))[1])
    config = TrainConfig(model="resnet8", smoke=True, tune=True, tune_for="memory", warmup_epochs="1")
    training.run(config, str(tmp_path / "run"))
    report = elrt.TrainingReport.load(tmp_path / "run" / "training_ways.json")
    assert report.batch_size == 32 and len(timed) < len(report)
    assert not any(isinstance(layer, elrt.layers.FactorizedLayer) for layer in seen[0].layers)  # full-rank warm-up
    for path, row in report.items():
        layer = seen[1].get_layer(path)
        assert layer.training_way == row.way
        assert row.kept_bytes == min(
            32 * 4 * layer.way_costs(way, (1, *layer.input.shape[1:]))[0]
            + 4 * layer.way_costs(way, (1, *layer.input.shape[1:]))[1]
            for way in layer.training_ways
        )
    assert "trains as" in capsys.readouterr().out
    count = len(timed)
    training.run(TrainConfig(model="resnet8", smoke=True, tune=True, tune_for="memory"), str(tmp_path / "other"))
    assert len(timed) == count  # times are kept


def test_tuned_where_there_is_an_accelerator_or_it_is_asked_for(monkeypatch):
    assert not modeling.is_tuned(TrainConfig())
    assert modeling.is_tuned(TrainConfig(tune=True))
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["gpu:0"])
    assert modeling.is_tuned(TrainConfig()) and not modeling.is_tuned(TrainConfig(tune=False))


def test_of_several_workers_the_first_one_decides(tmp_path, monkeypatch):
    config = TrainConfig(model="resnet8", smoke=True, tune=True)
    waits = []
    monkeypatch.setattr(strategies.Distribution, "wait_for_all", lambda self: waits.append(self.worker))
    data = training.load_data(config)
    model = modeling.new_model(config, data, 4)
    elrt.tune_training(model, 16).save(rundir.tuning_path(tmp_path))
    monkeypatch.setattr(elrt, "tune_training", lambda *given, **options: pytest.fail("only the chief measures"))
    other = modeling.new_model(config, data, 4)
    job = training._Job(config, str(tmp_path), data, 4, None, strategies.Distribution(None, 2, 1, 2), None, None)
    training._tune(job, other)
    ways = [[layer.training_way for _, layer in elrt.tuning.report.low_rank_layers(one)] for one in (model, other)]
    assert ways[0] == ways[1] and waits == [1]


@pytest.mark.thorough
@pytest.mark.parametrize("flags", [("--tune", "--tune_for=memory"), ("--freeze_factors",)], ids=["tuned", "frozen"])
def test_a_killed_run_ends_bit_equal(tmp_path, flags):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    assert finish(start(tmp_path / "whole", *FLAGS, *flags))[0] == 0
    process = start(tmp_path / "killed", *FLAGS, *flags)
    wait_until((tmp_path / "killed" / "run" / "history.csv").exists, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert finish(start(tmp_path / "killed", *FLAGS, *flags))[0] == 0
    assert_same_weights(*(tmp_path / name / "run" for name in ("whole", "killed")))


def test_factors_in_turn_in_a_run(tmp_path):
    fields = {"model": "resnet8", "smoke": True, "learning_rate": 0.05}
    for name, frozen in (("plain", False), ("frozen", True)):
        training.run(TrainConfig(**fields, freeze_factors=frozen), str(tmp_path / name))
    plain, frozen = (keras.models.load_model(tmp_path / name / "model.keras") for name in ("plain", "frozen"))
    assert not np.allclose(*(model.layers[-1].kernel for model in (plain, frozen)))
    assert all(variable.trainable for layer in frozen.layers for variable in getattr(layer, "factors", []))
