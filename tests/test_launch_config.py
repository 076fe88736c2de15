"""`TrainConfig` and its flags: defaults, checks before any work, and the way through a flag file."""

import dataclasses
import sys
import weakref

import pytest

from elrt_keras.launch import cli, flags, parsing, rundir
from elrt_keras.launch.config import TrainConfig, parse_schedule

pytestmark = pytest.mark.tensorflow  # the same on every backend


def test_defaults_resolve_to_a_low_rank_run():
    config = TrainConfig()
    assert (config.format, config.max_macs, config.orthogonality) == ("tucker2", 0.4, "dso")
    assert config.augmentations == ("crop",)


def test_a_plan_or_another_budget_replaces_the_default_budget():
    assert TrainConfig(rank_plan="plan.json").max_macs is None
    assert TrainConfig(max_params=0.5).max_macs is None


def test_trained_weights_are_taken_over_unless_told_otherwise():
    assert TrainConfig().factor_initializer == "orthogonal_factors"
    assert TrainConfig(warmup_epochs=3).factor_initializer == "decomposed"
    assert TrainConfig(initial_model="m.keras").factor_initializer == "decomposed"
    assert TrainConfig(initial_model="m.keras", factor_initializer="spectral").factor_initializer == "spectral"
    assert TrainConfig(initial_model="m.keras", rank_method="vbmf").max_macs is None
    assert TrainConfig(initial_model="m.keras", rank_method="energy").max_macs == 0.4


def test_streamed_images_have_the_size_of_the_model_unless_told_otherwise():
    assert TrainConfig().image_size is None
    assert TrainConfig(dataset="imagenet2012", model="resnet50").image_size == 224
    assert TrainConfig(dataset="folder:photos", model="resnet20").image_size == 32
    assert TrainConfig(dataset="folder:photos", model="resnet20", image_size=64).image_size == 64


def test_what_a_restart_may_change():
    config = TrainConfig(dataset="imagenette", data_dir="/a")
    assert config.differences(TrainConfig(dataset="imagenette", data_dir="/b", bad_images="skip")) == {}
    assert config.differences(TrainConfig(dataset="imagenette", seed=1)) == {"seed": (0, 1)}


def test_full_rank_warm_up_takes_half_of_the_run_at_most_where_ranks_decide():
    assert TrainConfig(epochs=9, warmup_epochs="auto").longest_warmup == 4
    assert TrainConfig(epochs=9, warmup_epochs="7").longest_warmup == 7


def test_smoke_shrinks():
    config = TrainConfig(smoke=True, epochs=200, batch_size=512)
    assert (config.epochs, config.batch_size) == (2, 32)
    config = TrainConfig(smoke=True, epochs=200, lr_warmup_epochs=5, warmup_epochs="80")
    assert (config.lr_warmup_epochs, config.warmup_epochs, config.longest_warmup) == (2, "1", 1)
    with pytest.raises(ValueError, match="Received: lr_warmup_epochs=-1"):
        TrainConfig(smoke=True, lr_warmup_epochs=-1)


def test_dense_run_has_no_penalty():
    config = TrainConfig(format="dense")
    assert (config.orthogonality, config.max_macs) == ("none", None)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model": "resnet21"}, r"resnet20.*Received: model='resnet21'"),
        ({"dataset": "mnist"}, r"Received: dataset='mnist'"),
        ({"format": "tucker3"}, r"dense.*tucker2.*Received: format='tucker3'"),
        ({"orthogonality": "soft"}, r"dso.*Received: orthogonality='soft'"),
        ({"optimizer": "adam"}, r"Received: optimizer='adam'"),
        ({"lr_schedule": "poly"}, r"Received: lr_schedule='poly'"),
        ({"augmentation": "crop,rotate"}, r"Received: augmentation='rotate'"),
        ({"augmentation": "auto,cutout"}, r"Received: augmentation='auto'"),
        ({"dataset": "folder:a", "data_dir": "b"}, r"'folder:a' names its folder. Received: data_dir='b'"),
        ({"factor_initializer": "best"}, r"Received: factor_initializer='best'"),
        ({"epochs": 0}, r"epochs.*Received: epochs=0"),
        ({"epochs": -1, "initial_model": "m.keras"}, r"Received: epochs=-1"),
        ({"calibration_examples": 64}, r"pass --initial_model. Received: calibration_examples=64"),
        ({"calibration_examples": -1}, r"Received: calibration_examples=-1"),
        ({"epochs": 10**400}, r"epochs.*Received: epochs=1000"),
        ({"batch_size": -1}, r"Received: batch_size=-1"),
        ({"learning_rate": float("nan")}, r"Received: learning_rate=nan"),
        ({"width": 0}, r"Received: width=0"),
        ({"momentum": 1.0}, r"a number in \[0, 1\). Received: momentum=1.0"),
        ({"label_smoothing": 1.5}, r"Received: label_smoothing=1.5"),
        ({"weight_decay": -1e-4}, r"Received: weight_decay=-0.0001"),
        ({"lr_warmup_epochs": 30, "epochs": 20}, r"in \[0, 20\].*Received: lr_warmup_epochs=30"),
        ({"warmup_epochs": "20", "epochs": 20}, r"in \[0, 19\].*Received: warmup_epochs=20"),
        ({"warmup_epochs": "auto", "epochs": 1}, r"2 epochs for warm-up. Received: warmup_epochs='auto', epochs=1"),
        ({"warmup_epochs": "some"}, r"epochs or 'auto'. Received: warmup_epochs='some'"),
        ({"warmup_epochs": "2", "format": "dense"}, r"no full-rank warm-up.*warmup_epochs='2'"),
        ({"warmup_epochs": "2", "initial_model": "m.keras"}, r"either.*initial_model='m.keras', warmup_epochs='2'"),
        ({"rank_method": "magic"}, r"Received: rank_method='magic'"),
        ({"rank_method": "vbmf"}, r"--initial_model or --warmup_epochs. Received: rank_method='vbmf'"),
        ({"factor_initializer": "decomposed"}, r"trained weights.*factor_initializer='decomposed'"),
        ({"rank_method": "vbmf", "rank_plan": "p.json", "warmup_epochs": "1"}, r"which names the ranks"),
        ({"multiple_of": 4, "rank_plan": "p.json"}, r"which names the ranks.*multiple_of=4"),
        ({"max_macs": 1.4}, r"Received: max_macs=1.4"),
        ({"teacher": "run", "temperature": 0.0}, r"a number above 0. Received: temperature=0.0"),
        ({"teacher": "run", "teacher_weight": -1.0}, r"Received: teacher_weight=-1.0"),
        ({"temperature": 4.0}, r"a teacher for these settings.*Received: temperature=4.0"),
        ({"teacher_weight": 0.5}, r"a teacher for these settings.*Received: teacher_weight=0.5"),
        ({"ema": 1.0}, r"a number in \(0, 1\).*Received: ema=1.0"),
        ({"ema": 0.0}, r"Received: ema=0.0"),
        ({"ema": 0.99, "orthogonality": "stiefel"}, r"is not orthonormal. Received: ema=0.99"),
        ({"tune": True, "format": "dense"}, r"\['tune'\]. Received: format='dense'"),
        ({"freeze_factors": True, "format": "dense"}, r"\['freeze_factors'\]. Received: format='dense'"),
        ({"freeze_factors": True, "ema": 0.9}, r"Received: freeze_factors=True, ema=0.9"),
        ({"tune_for": "speed"}, r"Received: tune_for='speed'"),
        ({"tune": False, "tune_for": "memory"}, r"Received: tune=False, tune_for='memory'"),
        ({"timer": "adb"}, r"max_latency with either.*Received: timer='adb'"),
        ({"times": "t.json", "timer": "adb", "max_latency": 0.5}, r"timer='adb', times='t.json'"),
        ({"training_macs_of_dense": 0.0}, r"Received: training_macs_of_dense=0.0"),
        ({"training_macs_of_dense": 9.0, "epochs": 3}, r"decides the epochs.*training_macs_of_dense=9.0, epochs=3"),
        ({"training_macs_of_dense": 9.0, "warmup_epochs": "2"}, r"decides the epochs.*warmup_epochs='2'"),
        ({"format": "dense", "max_macs": 0.5}, r"no budget.*Received: \['max_macs'\]"),
        ({"rank_plan": "p.json", "max_params": 0.5}, r"either a budget or a rank plan"),
        ({"max_macs": 0.5, "max_params": 0.5, "max_latency": 0.5}, "at most two budgets"),
        ({"rank_method": "latency", "max_macs": 0.5}, "rank_method='latency'"),
        ({"rank_method": "uniform", "max_latency": 0.5}, "rank_method='uniform'"),
        ({"max_latency": 2.0}, "Received: max_latency=2.0"),
        (
            {"orthogonality": "none", "orthogonality_schedule": "0:1"},
            r"Expected a penalty for.*orthogonality='none'",
        ),
        ({"orthogonality_schedule": "1e-2"}, r"epoch:strength.*Received: '1e-2'"),
        ({"orthogonality_schedule": "5:1e-2"}, r"starts at epoch 0.*Received: '5:1e-2'"),
        ({"dataset": "imagenet"}, r"'imagenet2012'.*'folder:PATH'.*Received: dataset='imagenet'"),
        ({"image_size": 64}, r"'digits' has images of a fixed size. Received: image_size=64"),
        ({"dataset": "imagenette", "image_size": 0}, r"Received: image_size=0"),
        ({"bad_images": "keep"}, r"error.*skip.*Received: bad_images='keep'"),
        ({"augmentation": "crop,randaugment"}, r"colour images for randaugment.*dataset='digits'"),
        ({"orthogonality_schedule": "0:-1"}, r"at least 0.*Received: '0:-1'"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)


def test_schedule_text():
    assert parse_schedule("0:1e-2,20:1e-3, 50:0") == {0: 1e-2, 20: 1e-3, 50: 0.0}
    assert parse_schedule(None) is None


def test_flag_file_round_trip_with_every_field_changed():
    config = TrainConfig(
        model="resnet32",
        width=0.75,
        dataset="imagenette",
        data_dir="/data/tfds",
        download=True,
        image_size=160,
        bad_images="skip",
        max_macs=0.3,
        max_params=0.5,
        multiple_of=4,
        orthogonality="srip",
        orthogonality_strength=3e-3,
        orthogonality_schedule="0:1e-2,3:0.001",
        factor_initializer="spectral",
        optimizer="adamw",
        learning_rate=1e-3,
        momentum=0.8,
        lr_schedule="step",
        lr_step_epochs=7,
        lr_step_factor=0.5,
        lr_warmup_epochs=1.5,
        rank_method="stable_rank",
        teacher="runs/teacher",
        teacher_weight=0.5,
        temperature=4.0,
        warmup_epochs="auto",
        ema=0.999,
        weight_decay=1e-4,
        weight_decay_kind="decoupled",
        label_smoothing=0.1,
        augmentation="flip,cutout,mixup",
        epochs=9,
        batch_size=64,
        seed=3,
        precision="mixed_bfloat16",
        recompute=True,
        tune=True,
        tune_for="memory",
        sync_batch_norm=False,
        on_nan="rollback",
        checkpoint_minutes=2.5,
    )
    defaults = TrainConfig()
    same = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) == getattr(defaults, f.name)]
    # Some fields exclude others: a third budget; a plan and a budget; warm-up and an initial model, its examples or
    # epochs by cost; averaged weights and frozen factors; a smoke test and long runs.
    assert same == [
        *("format", "max_latency", "timer", "times", "rank_plan", "initial_model", "calibration_examples"),
        *("training_macs_of_dense", "freeze_factors", "smoke"),
    ]
    assert flags.from_flagfile(flags.to_flagfile(config)) == config


def test_flag_specs_cover_the_config():
    assert list(flags._SPECS) == [field.name for field in dataclasses.fields(TrainConfig)]


def test_flag_file_of_something_else_is_refused():
    with pytest.raises(ValueError, match="Received: '--colour=red'"):
        flags.from_flagfile("--colour=red\n")
    with pytest.raises(ValueError, match="kind float in '--max_macs=abc'. Received: 'abc'"):
        flags.from_flagfile("--max_macs=abc\n")
    with pytest.raises(ValueError, match="kind boolean in '--recompute=banana'. Received: 'banana'"):
        flags.from_flagfile("--recompute=banana\n")
    with pytest.raises(ValueError, match="each flag once. Received: '--seed=2' after another --seed"):
        flags.from_flagfile("--seed=1\n--seed=2\n")


def test_formats_by_layer_name_each_pattern_once():
    assert parsing.formats_by_layer("conv1*:svd,*:tucker2") == {"conv1*": "svd", "*": "tucker2"}
    with pytest.raises(ValueError, match="each pattern once. Received: format='a:svd,a:cp'"):
        parsing.formats_by_layer("a:svd,a:cp")


def test_flag_file_by_hand():
    assert flags.from_flagfile("--recompute=True\n--sync_batch_norm=FALSE\n") == TrainConfig(
        recompute=True, sync_batch_norm=False
    )
    assert TrainConfig(warmup_epochs="00") == TrainConfig() and not TrainConfig(warmup_epochs="00").warms_up


@pytest.mark.parametrize(
    "name, content, read, message",
    [
        ("flags.txt", b"--max_macs=abc", rundir.read_config, "flags.txt.*Received: 'abc'"),
        ("flags.txt", b"\xff\xfe\x00", rundir.read_config, "as text. Received: .*flags.txt"),
        ("flags.txt", b"\n", rundir.read_config, "flags.txt', which is empty"),
        ("summary.json", b"{", rundir.read_summary, "in JSON. Received: .*summary.json"),
        ("summary.json", b"[]", rundir.read_summary, "with model.*Received: .*summary.json"),
        ("summary.json", b"{}", rundir.read_summary, "with model.*Received: .*summary.json"),
        (
            "history.csv",
            b"epoch,loss\nxx,1\n",
            lambda d: rundir.truncate_history(d, 5),
            "epoch. Received: .*history.csv",
        ),
        (
            "model.keras",
            b"PK\x03\x04",
            lambda d: rundir.load_model(rundir.model_path(d)),
            "model.keras', which is damaged",
        ),
    ],
)
def test_damaged_files_of_a_run_are_named(tmp_path, name, content, read, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(str(tmp_path))


def test_rows_of_epochs_that_are_trained_again_leave_the_history(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("epoch,loss\n0,2.5\n1,2.0\n2,1.5\n", encoding="utf-8")
    rundir.truncate_history(str(tmp_path), 2)
    assert path.read_text(encoding="utf-8") == "epoch,loss\n0,2.5\n1,2.0\n"
    rundir.truncate_history(str(tmp_path), 0)
    assert not path.exists()


def test_a_start_that_was_killed_at_once_leaves_a_place_for_a_run(tmp_path):
    (tmp_path / "tmp0.tmp").write_text("--mod")
    rundir.check(TrainConfig(), str(tmp_path))
    (tmp_path / "mine").write_text("")
    with pytest.raises(ValueError, match=r"holds \['mine'\] and no flags.txt"):
        rundir.check(TrainConfig(), str(tmp_path))


def test_differences_ignore_where_the_data_lies():
    config = TrainConfig(dataset="cifar10", data_dir="/a")
    assert config.differences(TrainConfig(dataset="cifar10", data_dir="/b", download=True)) == {}
    changes = {"batch_size": 64, "learning_rate": 0.05, "seed": 1, "epochs": 3, "precision": "mixed_bfloat16"}
    for name, value in changes.items():
        other = TrainConfig(dataset="cifar10", **{name: value})
        assert config.differences(other) == {name: (getattr(config, name), value)}
    assert config.differences(TrainConfig(dataset="cifar10", seed=1)) == {"seed": (0, 1)}


def test_decay_goes_through_the_momentum_of_sgd_alone():
    assert TrainConfig().weight_decay_kind == "frobenius"
    assert TrainConfig(optimizer="adamw").weight_decay_kind == "decoupled"
    assert TrainConfig(weight_decay_kind="decoupled").weight_decay_kind == "decoupled"
    with pytest.raises(ValueError, match="weight_decay_kind"):
        TrainConfig(weight_decay_kind="l2")


def test_an_error_lets_go_of_what_it_held_before_the_command_ends(monkeypatch, capsys):
    """Checks that TensorFlow's threads that call Python end in time; otherwise the process waits for ever."""

    class Data:
        pass

    held = []

    def function(argv):
        data = Data()
        data.itself = data
        held.append(weakref.ref(data))
        raise ValueError("what was expected")

    def end(status):
        assert status == 2 and held[0]() is None
        raise SystemExit(status)

    monkeypatch.setattr(sys, "exit", end)
    with pytest.raises(SystemExit):
        cli.with_one_line_errors("elrt-test", function)(["elrt-test"])
    assert capsys.readouterr().err == "elrt-test: error: what was expected\n"
