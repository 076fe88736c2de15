"""`elrt-train` and `elrt-evaluate` as a user runs them: real processes, real files, a real kill."""

import csv
import dataclasses
import importlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import commands
import keras
import numpy as np
import pytest

import elrt_keras as elrt
from elrt_keras.launch import modeling, training
from elrt_keras.launch.config import TrainConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    arguments = ("--run_dir=run", "--model=resnet8", "--smoke", "--orthogonality_schedule=0:1e-2,1:1e-3")
    command = [sys.executable, "-m", "elrt_keras.launch.train", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run", done.stdout


def test_a_run_leaves_what_it_promises(smoke_run):
    run_dir, output = smoke_run
    assert {path.name for path in run_dir.iterdir()} == {
        *("flags.txt", "rank_plan.json", "model.keras", "history.csv", "summary.json", "tensorboard"),
        *("curves.png", "rank_plan.png"),
    }
    assert all((run_dir / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("curves", "rank_plan"))
    summary = json.loads((run_dir / "summary.json").read_text())
    assert f"{summary['macs_fraction']:.1%} of dense" in output
    rows = list(csv.DictReader((run_dir / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    shown = [f"{split}{name}" for split in ("", "val_") for name in ("accuracy", "cross_entropy", "loss")]
    errors = ("orthogonality_error_mean", "orthogonality_error_max")
    assert set(rows[0]) == {"epoch", "seconds", "low_rank", *shown, *errors}
    lines = [line for line in output.splitlines() if "val_accuracy" in line]
    assert [re.findall(r"(\w+): ", line) for line in lines] == [shown, shown]


def test_summary_agrees_with_the_saved_model(smoke_run):
    run_dir, _ = smoke_run
    summary = json.loads((run_dir / "summary.json").read_text())
    model = keras.models.load_model(run_dir / "model.keras")
    costs = elrt.count_costs(model)
    assert (summary["macs"], summary["params"]) == (costs.macs, costs.params)
    assert 0.38 < summary["macs"] / summary["dense_macs"] == summary["macs_fraction"] <= 0.4
    plan = elrt.RankPlan.load(run_dir / "rank_plan.json")
    assert {name: model.get_layer(name).ranks for name in plan.factorized()} == {
        name: entry.ranks for name, entry in plan.factorized().items()
    }
    factors = {name for name in summary["orthogonality_error"]}
    assert factors == {f"{name}/{f}" for name in plan.factorized() for f in ("factor_in", "factor_out")}
    layer = model.get_layer("stage3_block1_2_conv")
    matrix = keras.ops.convert_to_numpy(layer.factors[0]).reshape(64, -1)
    expected = np.linalg.norm(matrix.T @ matrix - np.eye(matrix.shape[1])) / np.sqrt(matrix.shape[1])
    assert summary["orthogonality_error"]["stage3_block1_2_conv/factor_in"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.tensorflow
def test_evaluate_repeats_the_accuracy(smoke_run):
    run_dir, _ = smoke_run
    summary = json.loads((run_dir / "summary.json").read_text())
    done = commands.run("evaluate", run_dir, cwd=run_dir.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"test accuracy {summary['test_accuracy']:.4f}, reported {summary['test_accuracy']:.4f}" in done.stdout


@pytest.mark.tensorflow
def test_evaluate_refuses_what_is_no_run(tmp_path):
    done = commands.run("evaluate", tmp_path, cwd=tmp_path)
    assert done.returncode == 2 and "Expected a run directory with flags.txt" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.tensorflow
def test_a_finished_run_is_not_repeated_and_another_configuration_refused(smoke_run):
    run_dir, _ = smoke_run
    before = {path: path.stat().st_mtime_ns for path in run_dir.iterdir()}
    config = TrainConfig(model="resnet8", smoke=True, orthogonality_schedule="0:1e-2,1:1e-3")
    assert training.run(config, str(run_dir))["epochs"] == 2
    with pytest.raises(ValueError, match=r"another configuration.*--seed: there 0, now 1"):
        training.run(
            TrainConfig(model="resnet8", smoke=True, orthogonality_schedule="0:1e-2,1:1e-3", seed=1), str(run_dir)
        )
    assert {path: path.stat().st_mtime_ns for path in run_dir.iterdir()} == before


def epochs_of(run_dir):
    with open(run_dir / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.thorough
@pytest.mark.tensorflow
def test_full_rank_warm_up_then_low_rank(tmp_path):
    fields = {"epochs": 3, "warmup_epochs": 1, "batch_size": 256, "rank_method": "energy", "augmentation": "none"}
    config = TrainConfig(model="resnet8", **fields)
    summary = training.run(config, str(tmp_path / "run"))
    rows = epochs_of(tmp_path / "run")
    assert [row["low_rank"] for row in rows] == ["0", "1", "1"] and summary["full_rank_epochs"] == 1
    assert rows[0]["orthogonality_error_mean"] == "nan" and float(rows[1]["orthogonality_error_mean"]) >= 0
    assert 0.38 < summary["macs_fraction"] <= 0.4
    model = keras.models.load_model(tmp_path / "run" / "model.keras")
    plan = elrt.RankPlan.load(tmp_path / "run" / "rank_plan.json")
    assert {name: model.get_layer(name).ranks for name in plan.factorized()} == {
        name: entry.ranks for name, entry in plan.factorized().items()
    }
    # The factors start from the trained kernels: the first low-rank epoch begins near where the last dense one ended.
    assert float(rows[1]["loss"]) < float(rows[0]["loss"]) + 1


@pytest.mark.tensorflow
@pytest.mark.slow
def test_a_run_killed_after_the_switch_goes_on_low_rank(tmp_path, monkeypatch):
    config = TrainConfig(epochs=3, warmup_epochs=1, batch_size=256, augmentation="none")
    undisturbed = training.run(config, str(tmp_path / "whole"))

    class Killed(BaseException):
        pass

    real = training._fit

    def stop_before_low_rank(model, *args, warms_up=False, **kwargs):
        if not warms_up:
            raise Killed
        return real(model, *args, warms_up=warms_up, **kwargs)

    monkeypatch.setattr(training, "_fit", stop_before_low_rank)
    with pytest.raises(Killed):
        training.run(config, str(tmp_path / "cut"))
    monkeypatch.setattr(training, "_fit", real)
    resumed = training.run(config, str(tmp_path / "cut"))
    assert [row["low_rank"] for row in epochs_of(tmp_path / "cut")] == ["0", "1", "1"]
    assert resumed["test_accuracy"] == pytest.approx(undisturbed["test_accuracy"], abs=0.02)
    assert resumed["macs"] == undisturbed["macs"]


@pytest.mark.tensorflow
@pytest.mark.slow
def test_stable_ranks_end_the_warm_up(tmp_path):
    fields = {"epochs": 4, "warmup_epochs": "auto", "rank_method": "stable_rank", "augmentation": "none"}
    calm = TrainConfig(**fields, batch_size=512, learning_rate=1e-4)
    # At this rate the weights stay constant, so the stable ranks have settled after the first epoch.
    assert training.run(calm, str(tmp_path / "calm"))["full_rank_epochs"] == 1
    lively = TrainConfig(**fields, batch_size=64, learning_rate=0.3)
    assert training.run(lively, str(tmp_path / "lively"))["full_rank_epochs"] == 2  # half of the run at the latest


@pytest.mark.tensorflow
@pytest.mark.slow
def test_a_trained_model_is_decomposed_and_fine_tuned(tmp_path):
    dense = TrainConfig(format="dense", epochs=6, batch_size=128, augmentation="none")
    trained = training.run(dense, str(tmp_path / "dense"))
    path = str(tmp_path / "dense")
    fields = {"max_macs": 0.6, "epochs": 2, "batch_size": 128, "learning_rate": 0.001, "augmentation": "none"}
    tuned = training.run(TrainConfig(initial_model=path, rank_method="energy", **fields), str(tmp_path / "tuned"))
    scratch = training.run(TrainConfig(**fields), str(tmp_path / "scratch"))
    assert max(tuned["macs"], scratch["macs"]) <= 0.6 * trained["macs"]
    assert tuned["test_accuracy"] > max(0.7 * trained["test_accuracy"], 2 * scratch["test_accuracy"])
    for model, message in (("missing.keras", "missing.keras"), (path, "Expected a dense resnet32")):
        with pytest.raises(ValueError, match=message):
            training.run(TrainConfig(model="resnet32", initial_model=model), str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "fields, message",
    [
        ({"max_macs": 0.05}, r"budget cannot be met.*Expected max_macs ≥ 0\.\d+\. Received: max_macs=0\.05"),
        ({"rank_plan": "missing.json"}, "Expected a rank plan in JSON at 'missing.json'"),
        ({"dataset": "cifar10", "data_dir": "/nowhere"}, "data_dir='/nowhere'"),
        ({"batch_size": 4096}, "Received: batch_size=4096"),
    ],
)
def test_bad_input_stops_before_anything_is_written(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        training.run(TrainConfig(**fields), str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
@pytest.mark.tensorflow
def test_a_run_under_a_plan_has_the_formats_of_the_plan(tmp_path, capsys):
    plan = elrt.plan_ranks(elrt.models.build("resnet8", (8, 8, 1), 10), format="svd", max_macs=0.6)
    plan.save(tmp_path / "plan.json")
    config = TrainConfig(model="resnet8", smoke=True, epochs=1, rank_plan=str(tmp_path / "plan.json"))
    assert training.run(config, str(tmp_path / "run"))["format"] == "svd"
    assert "resnet8 on digits, svd: " in capsys.readouterr().out
    with pytest.raises(ValueError, match="the format of the rank plan, 'svd'. Received: format='cp'"):
        training.run(dataclasses.replace(config, format="cp"), str(tmp_path / "other"))


@pytest.mark.tensorflow
def test_layers_that_a_plan_does_not_name_are_told(tmp_path, caplog):
    """A plan for a small network also fits a larger one of its family; without a warning it would miss its budget."""
    elrt.plan_ranks(elrt.models.build("resnet8", (8, 8, 1), 10), max_macs=0.6).save(tmp_path / "plan.json")
    config = TrainConfig(model="resnet20", rank_plan=str(tmp_path / "plan.json"))
    dense = elrt.models.build(config.model, (8, 8, 1), 10)
    with caplog.at_level("WARNING"):
        modeling.rank_plan(config, dense)
    assert "12 layers stay dense, since the plan does not name them: stage1_block2_1_conv" in caplog.text
    caplog.clear()
    elrt.plan_ranks(dense, max_macs=0.6).save(tmp_path / "plan.json")
    modeling.rank_plan(config, dense)
    assert not caplog.text


@pytest.mark.thorough
@pytest.mark.tensorflow
def test_a_run_that_another_process_finishes_meanwhile_is_left_as_it_is(tmp_path, monkeypatch, capsys):
    config, run_dir, load_data = (
        TrainConfig(model="resnet8", smoke=True, epochs=1),
        str(tmp_path / "run"),
        training.load_data,
    )

    def slowly(*args, **kwargs):
        monkeypatch.setattr(training, "load_data", load_data)
        training.run(config, run_dir)
        return load_data(*args, **kwargs)

    monkeypatch.setattr(training, "load_data", slowly)
    summary = training.run(config, run_dir)
    assert capsys.readouterr().out.count("resnet8 on digits") == 1
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())


@pytest.mark.tensorflow
def test_a_plan_for_other_layers_is_refused(tmp_path):
    plan = tmp_path / "plan.json"
    elrt.RankPlan({"conv_of_another_model": ("tucker2", (8, 8))}).save(plan)
    with pytest.raises(ValueError, match="lacks.*conv_of_another_model"):
        training.run(TrainConfig(rank_plan=str(plan)), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.tensorflow
def test_directories_that_are_no_place_for_a_run(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ValueError, match="which is a link to nothing"):
        training.run(TrainConfig(), str(tmp_path / "link"))
    (tmp_path / "link").unlink()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="which is a file"):
        training.run(TrainConfig(), str(tmp_path / "file"))
    with pytest.raises(ValueError, match="Expected a run directory that can be made in"):
        training.run(TrainConfig(), str(tmp_path / "file" / "run"))
    with pytest.raises(ValueError, match=r"holds \['file'\] and no flags.txt"):
        training.run(TrainConfig(), str(tmp_path))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.tensorflow
def test_command_line_errors_are_one_line(tmp_path):
    done = commands.run("train", "--run_dir=run", "--model=resnet21", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "elrt-train: error: Expected one of ['resnet8'" in done.stderr
    done = commands.run("train", "--run_dir=run", "--orthogonality=soft", cwd=tmp_path)
    assert done.returncode == 2 and "flag --orthogonality=soft" in done.stderr
    done = commands.run("train", "--run_dir=run", "--quantization_aware_learning_rate=nan", cwd=tmp_path)
    assert done.returncode == 2 and "expected a finite number above 0" in done.stderr
    done = commands.run("train", "--run_dir=run", "--quantization_aware_epochs=2", cwd=tmp_path)
    assert done.returncode == 2 and "Expected --quantization_aware with --" in done.stderr
    done = commands.run("train", f"--flagfile={sys.executable}", "--run_dir=run", cwd=tmp_path)
    assert done.returncode == 2 and "Expected flag files of text" in done.stderr and "Traceback" not in done.stderr
    done = commands.run("train", "--model=vgg16_cifar", "--run_dir=run", cwd=tmp_path)
    assert done.returncode == 2 and "at least 32×32 pixels" in done.stderr and "(8, 8, 1)" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
@pytest.mark.tensorflow
def test_help_teaches_and_the_script_runs_by_its_path(tmp_path):
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "train.py"), "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0
    assert "elrt-train --run_dir=runs/digits" in done.stdout and "--max_macs" in done.stdout


@pytest.mark.thorough
@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("train", "--max_macs:"),
        ("evaluate", "--data_dir:"),
        ("plan", "--max_latency:"),
        ("export", "--quantization:"),
        ("benchmark", "--threads:"),
        ("classify", "--top_k:"),
    ],
)
def test_an_installed_command_explains_itself_and_its_flags(command, flag, tmp_path):
    script = pathlib.Path(sys.executable).with_name(f"elrt-{command}")
    done = subprocess.run([str(script), "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    text = importlib.import_module(f"elrt_keras.launch.{command}").__doc__
    assert done.returncode == 0 and done.stdout.strip().startswith(text.splitlines()[0]) and flag in done.stdout


@pytest.fixture
def photos(tmp_path):
    """Writes images of three classes that differ in colour, and one file that is not an image."""
    from PIL import Image

    random = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(40):
            pixels = random.integers(0, 120, (48, 60, 3))
            pixels[..., channel] += 100
            Image.fromarray(pixels.astype("uint8")).save(tmp_path / "photos" / name / f"{number}.jpg")
    (tmp_path / "photos" / "red" / "no.jpg").write_bytes(b"no image")
    return tmp_path / "photos"


@pytest.mark.thorough
@pytest.mark.tensorflow
def test_a_folder_of_images_and_a_broken_one_among_them(photos):
    arguments = ("--run_dir=run", f"--dataset=folder:{photos}", "--batch_size=24", "--epochs=8", "--learning_rate=0.02")
    arguments = (*arguments, "--max_macs=0.6", "--lr_schedule=one_cycle", "--image_size=16", "--augmentation=flip")
    arguments = (*arguments, "--model=resnet8")
    done = commands.run("train", *arguments, cwd=photos.parent)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "elrt-train: error: Expected an image that can be decoded" in done.stderr and "red/no.jpg" in done.stderr
    done = commands.run("train", *arguments, "--bad_images=skip", cwd=photos.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "bad image 1: " in done.stderr and "ran out of data" not in done.stderr
    summary = json.loads((photos.parent / "run" / "summary.json").read_text())
    assert summary["bad_images"] == 1
    assert [os.path.basename(name) for name in summary["bad_image_names"]] == ["no.jpg"]
    assert summary["test_accuracy"] > 0.9
    moved = photos.rename(photos.parent / "moved")
    gone = commands.run("evaluate", "run", cwd=photos.parent)
    assert gone.returncode == 2 and "photos', which is no folder" in gone.stderr
    done = commands.run("evaluate", "run", f"--data_dir={moved}", cwd=photos.parent)
    assert done.returncode == 0 and f"test accuracy {summary['test_accuracy']:.4f}" in done.stdout
    done = commands.run("export", "run", "--data_dir=moved", "--quantization=int8", cwd=photos.parent)
    assert done.returncode == 0 and (photos.parent / "run" / "export" / "low_rank_int8.tflite").exists()
    tuning = ("--run_dir=run", "--quantization_aware", "--quantization_aware_epochs=1")
    assert "photos', which is no folder" in commands.run("train", *tuning, cwd=photos.parent).stderr
    done = commands.run("train", *tuning, "--data_dir=moved", cwd=photos.parent)
    renamed = shutil.copytree(moved, photos.parent / "renamed")
    (renamed / "red").rename(renamed / "rot")
    for command in (("evaluate", "run"), ("export", "run", "--quantization=float16")):
        other = commands.run(*command, "--data_dir=renamed", cwd=photos.parent)
        assert other.returncode == 2 and "3 classes, without ['red'], with ['rot']" in other.stderr.splitlines()[-1]
    assert done.returncode == 0 and (photos.parent / "run" / "quantization_aware" / "model.tflite").exists()


@pytest.mark.thorough
@pytest.mark.tensorflow
def test_a_recipe_and_flags_that_override_it(tmp_path):
    done = commands.run(
        "train", "--run_dir=run", "--dataset=digits", "--smoke", "--recipe=cifar10_resnet20_71.1", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resnet20 on digits, tucker2" in done.stdout
    flags = (tmp_path / "run" / "flags.txt").read_text().splitlines()
    assert {"--max_macs=0.289", "--dataset=digits", "--epochs=2", "--weight_decay=0.0005"} <= set(flags)


@pytest.mark.tensorflow
def test_the_list_and_what_is_missing(tmp_path):
    recipe = tmp_path.parent / "with_recipe.flags"
    recipe.write_text("--recipe=cifar10_resnet20_71.1\n")
    done = commands.run("train", "--list", cwd=tmp_path)
    assert done.returncode == 0 and "folder:PATH" in done.stdout and "imagenet_resnet50_2.23x" in done.stdout
    for arguments, message in (
        ([], "Expected a directory for the run, such as --run_dir=runs/first"),
        (["--run_dir=run", "--recipe=best"], "Received: recipe='best'"),
        (["--run_dir=run", "--dataset=folder:nowhere"], "Received: 'nowhere', which is no folder"),
        (["--run_dir=run", "--dataset=folder:"], "Received: '', which is no folder"),
        (["--run_dir=run", f"--flagfile={recipe}"], "--recipe=cifar10_resnet20_71.1 in a flag file"),
    ):
        done = commands.run("train", *arguments, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
