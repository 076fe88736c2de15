"""`elrt-shrink`: smaller runs from one training, in real directories and processes."""

import csv
import json
import re
import signal

import commands
import keras
import numpy as np
import pytest
from test_faults import assert_same_weights, finish, wait_until

import elrt_keras as elrt
from elrt_keras.launch import exporting, rundir, shrinking, training
from elrt_keras.launch.config import TrainConfig

pytestmark = pytest.mark.tensorflow
FIELDS = {"model": "resnet8", "batch_size": 128, "multiple_of": 1, "seed": 1}


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("parent") / "run")
    training.run(TrainConfig(**FIELDS, max_macs=0.6, epochs=5), path)
    return path


def test_each_budget_gets_a_run_that_keeps_more_than_plain_truncation(parent, tmp_path):
    recovery = shrinking.Recovery(calibration_examples=1024)
    summaries = shrinking.shrink_run(parent, [0.4, 0.25], recovery, str(tmp_path))
    assert summaries[0] == rundir.read_summary(parent)
    data = training.load_data(TrainConfig(**FIELDS))
    for budget, summary in zip((0.4, 0.25), summaries[1:], strict=True):
        run_dir = str(tmp_path / f"{budget:g}")
        assert summary == rundir.read_summary(run_dir)
        assert 0.85 * budget < summary["macs_fraction"] <= budget and summary["epochs"] == summary["training_macs"] == 0
        model = rundir.load_model(run_dir)
        plan = elrt.RankPlan.load(rundir.plan_path(run_dir))
        assert {path: entry.ranks for path, entry in plan.items()} == {
            layer.name: layer.ranks for layer in model.layers if hasattr(layer, "ranks")
        }
        plain = elrt.shrink(rundir.load_model(parent), max_macs=budget, multiple_of=1)
        kept = training.evaluate(plain, data, TrainConfig(**FIELDS))["accuracy"]
        assert summary["test_accuracy"] > kept + (0.1 if budget < 0.3 else 0)
    # Other commands accept the shrunk run like any other.
    source = exporting.open_source(str(tmp_path / "0.25"))
    assert source.title == "low_rank" and source.data.name == "digits"
    assert shrinking.shrink_run(parent, [0.4, 0.25], recovery, str(tmp_path)) == summaries  # finished


@pytest.mark.thorough
def test_it_recovers_with_the_parent_as_teacher(parent, tmp_path):
    run = {}
    for name, recovery in {
        "none": shrinking.Recovery(0, calibration_examples=512),
        "taught": shrinking.Recovery(3, 0.05, "parent", 512),
    }.items():
        run[name] = shrinking.shrink_run(parent, [0.25], recovery, str(tmp_path / name))[1]
    assert run["taught"]["test_accuracy"] > run["none"]["test_accuracy"]
    low, teacher = (elrt.count_costs(rundir.load_model(path)).macs for path in (tmp_path / "taught" / "0.25", parent))
    assert run["taught"]["training_macs"] == 3 * 11 * 128 * (3 * low + teacher)
    config = rundir.read_config(str(tmp_path / "taught" / "0.25"))
    assert (config.teacher, config.initial_model, config.epochs) == (parent, parent, 3)
    assert config.orthogonality == "dso" and config.max_macs == 0.25


@pytest.mark.thorough
def test_the_command_prints_a_table_and_draws(parent, tmp_path):
    options = ("--max_macs=0.3,0.2", "--calibration_examples=256", f"--output={tmp_path / 'out'}")
    done = commands.run("shrink", parent, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    summaries = [json.loads((tmp_path / "out" / name / "summary.json").read_text()) for name in ("0.3", "0.2")]
    for summary in summaries:
        assert f"{summary['test_accuracy']:.2%}" in done.stdout or f"{summary['test_accuracy']:.4f}" in done.stdout
    assert "[2/2] 20.0% of the dense MACs" in done.stdout
    assert re.search("batch-norm statistics (of the calibration data|as they were)", done.stderr)


@pytest.mark.thorough
def test_killed_it_goes_on_with_the_budget_it_was_at(parent, tmp_path):
    def start(folder):
        options = ("--max_macs=0.4,0.3", "--epochs=3", f"--output={folder}", "--teacher=parent")
        return commands.Command(
            "elrt_keras.launch.shrink",
            parent,
            *options,
            "--calibration_examples=256",
            cwd=tmp_path,
            log=tmp_path / "log",
        )

    code, output = finish(start(tmp_path / "whole"))
    assert code == 0, output[-3000:]
    for sign in (signal.SIGKILL, signal.SIGTERM):
        process = start(tmp_path / "parts")
        wait_until(lambda: (tmp_path / "parts" / "0.3" / "history.csv").exists(), process)
        process.send_signal(sign)
        finish(process)
    code, output = finish(start(tmp_path / "parts"))
    assert code == 0 and "Already finished" in output, output[-3000:]
    for budget in ("0.4", "0.3"):
        assert_same_weights(tmp_path / "whole" / budget, tmp_path / "parts" / budget)
        with open(tmp_path / "parts" / budget / "history.csv", newline="") as file:
            assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2"]


def test_what_cannot_be_shrunk_is_refused_before_any_work(parent, tmp_path):
    def refused(message, run_dir, *budgets, **options):
        with pytest.raises(ValueError, match=message):
            shrinking.shrink_run(str(run_dir), list(budgets), shrinking.Recovery(**options), str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    refused(r"below the MACs of the run, 59.*Received: max_macs=0.7", parent, 0.7, 0.3)
    refused(r"falling budgets.*\[0.3, 0.4\]", parent, 0.3, 0.4)
    refused(r"falling budgets.*\[0.3, 0.3\]", parent, 0.3, 0.3)
    refused(r"falling budgets.*\[\]", parent)
    refused(r"a number in \(0, 1\).*max_macs=1.5", parent, 1.5)
    refused(r"max_macs=nan", parent, float("nan"))
    refused("a finished run. Received", tmp_path, 0.3)
    dense = str(tmp_path / "dense")
    training.run(TrainConfig(model="resnet8", format="dense", smoke=True), dense)
    refused("a low-rank run; elrt-train --initial_model makes one.*'dense'", dense, 0.3)


def test_flags_that_make_no_sense_end_with_status_2(parent, tmp_path):
    for arguments, message in (
        ([parent], "no --max_macs"),
        ([parent, "--max_macs=a,b"], "Expected numbers, such as --max_macs=0.4,0.28. Received: ['a', 'b']"),
        ([parent, "--max_macs=0.3", "--teacher=parent"], "Expected --epochs with a teacher"),
        (["--max_macs=0.3"], "elrt-shrink RUN_DIR"),
    ):
        done = commands.run("shrink", *arguments, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr[-2000:]


@pytest.mark.thorough
def test_a_low_rank_model_is_shrunk_and_fine_tuned_by_elrt_train_too(parent, tmp_path):
    config = TrainConfig(**FIELDS, initial_model=parent, max_macs=0.3, epochs=1, learning_rate=0.01, orthogonality="so")
    summary = training.run(config, str(tmp_path / "run"))
    assert summary["macs_fraction"] <= 0.3 and summary["test_accuracy"] > 0.5
    model = rundir.load_model(str(tmp_path / "run"))
    kinds = {type(layer.factor_regularizer) for layer in model.layers if hasattr(layer, "factor_regularizer")}
    assert kinds == {elrt.regularizers.SoftOrthogonality}
    with pytest.raises(ValueError, match="max_macs or max_params for a low-rank model"):
        training.run(
            TrainConfig(**{**FIELDS, "multiple_of": None}, initial_model=parent, rank_plan=rundir.plan_path(parent)),
            str(tmp_path / "x"),
        )
    assert np.isfinite(keras.models.load_model(tmp_path / "run" / "model.keras").get_weights()[0]).all()
