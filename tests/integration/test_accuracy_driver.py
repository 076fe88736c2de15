"""The driver of the accuracy grids: real records, real processes, on the backend without TensorFlow."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from common import thorough_but

import elrt_keras as elrt
from benchmarks.train import driver as accuracy
from benchmarks.train import in_memory
from benchmarks.train.additions import plan_by_stage, scale_factor_rate
from benchmarks.train.runs import Run
from elrt_keras.launch import data as launch_data
from elrt_keras.launch.config import TrainConfig

ROOT = pathlib.Path(__file__).parents[2]
CIFAR10 = ROOT.parent / "shared" / "data" / "tfds"
GRID = {
    "data": "noise",
    "defaults": {"dataset": "cifar10", "epochs": 3, "batch_size": 16, "learning_rate": 0.05, "lr_warmup_epochs": 0},
    "runs": [
        {
            "name": "low",
            "model": "resnet20",
            "max_macs": 0.3,
            "seed": [0, 1],
            "orthogonality_schedule": "0:0.01,2:0.001",
        },
        {"name": "dense", "model": "resnet20", "format": "dense"},
    ],
}


def write_records(folder, images, labels):
    """Writes pictures and labels like TFDS' CIFAR-10: PNG pictures, in two shards per split."""
    tf = pytest.importorskip("tensorflow")
    for split, part in (("train", slice(0, -8)), ("test", slice(-8, None))):
        for shard in range(2):
            with tf.io.TFRecordWriter(str(folder / f"cifar10-{split}.tfrecord-0000{shard}-of-00002")) as writer:
                for image, label in list(zip(images[part], labels[part]))[shard::2]:
                    feature = {
                        "id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"some_0001"])),
                        "image": tf.train.Feature(
                            bytes_list=tf.train.BytesList(value=[tf.io.encode_png(image).numpy()])
                        ),
                        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(label)])),
                    }
                    example = tf.train.Example(features=tf.train.Features(feature=feature))
                    writer.write(example.SerializeToString())


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (56, 32, 32, 3), dtype="uint8"), np.arange(56) % 10
    write_records(folder, images, labels)
    return folder, images, labels


def driver(folder, data, *arguments, grid=GRID, backend="jax"):
    (folder / "grid.json").write_text(json.dumps(grid))
    flags = [f"--grid={folder}/grid.json", f"--data={data}", f"--results={folder}/results", f"--state={folder}/state"]
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.train", *flags, *arguments],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )


def without_times(result):
    rows = [{key: value for key, value in row.items() if "seconds" not in key} for row in result["history"]]
    return rows, {key: value for key, value in result["summary"].items() if "seconds" not in key}


def test_a_grid_stands_for_one_run_per_combination():
    runs = accuracy.expanded(GRID)
    assert list(runs) == ["low_seed0", "low_seed1", "dense"]
    expected = {**GRID["defaults"], **GRID["runs"][0], "seed": 1}
    del expected["name"]
    assert runs["low_seed1"] == expected
    with pytest.raises(ValueError, match="'a' twice"):
        accuracy.expanded({"runs": [{"name": "a"}, {"name": "a"}]})


def test_the_short_schedule_overrides_fields_of_every_run():
    short = accuracy.expanded({**GRID, "short": {"epochs": 1, "learning_rate": 0.3}}, short=True)
    assert short == {name: {**run, "epochs": 1, "learning_rate": 0.3} for name, run in accuracy.expanded(GRID).items()}
    own = {"runs": [{"name": "a", "epochs": 9, "short": {"seed": 5}}], "short": {"epochs": 2}}
    assert accuracy.expanded(own, short=True) == {"a": {"epochs": 2, "seed": 5}}
    assert accuracy.expanded(own) == {"a": {"epochs": 9}}
    with pytest.raises(ValueError, match="Expected a grid with `short` fields"):
        accuracy.expanded(GRID, short=True)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "grids").glob("*.json")), ids=lambda path: path.stem)
def test_the_runs_of_the_grids_are_valid(path):
    grid = json.loads(path.read_text())
    for short in (False, True) if "short" in grid else (False,):
        runs = accuracy.expanded(grid, short)
        assert all(Run(name, fields, None, "state").config.dataset == "cifar10" for name, fields in runs.items())


@pytest.mark.tensorflow
def test_records_are_read_as_written(noise):
    folder, images, labels = noise
    data = in_memory.load_cifar10(folder)
    order = [*range(0, 48, 2), *range(1, 48, 2)]
    np.testing.assert_array_equal(data.train_images, images[order])
    np.testing.assert_array_equal(data.train_labels, labels[order])
    np.testing.assert_array_equal(data.test_images, images[48:][[0, 2, 4, 6, 1, 3, 5, 7]])
    with pytest.raises(ValueError, match=r"Expected cifar10-train\.tfrecord"):
        in_memory.load_cifar10(folder / "nothing")


@pytest.mark.thorough
@pytest.mark.tensorflow
@pytest.mark.skipif(not CIFAR10.is_dir(), reason="needs CIFAR-10 as a prepared TFDS directory")
def test_real_records_are_what_tfds_reads():
    ours, theirs = in_memory.load_cifar10(CIFAR10), launch_data.load("cifar10", str(CIFAR10))
    assert ours.class_names == theirs.class_names
    for split in ("train", "test"):
        a, b = (getattr(data, f"{split}_labels") for data in (ours, theirs))
        np.testing.assert_array_equal(a, b)
        a, b = (getattr(data, f"{split}_images").astype("int16") for data in (ours, theirs))
        # JPEG decoders differ in cosine transform and colour upsampling: by at most 5, by 0.99 on average.
        assert np.abs(a - b).max() <= 8 and np.abs(a - b).mean() < 1.5


@pytest.mark.tensorflow
@pytest.mark.slow
def test_runs_stop_at_the_time_limit_and_go_on_as_if_undisturbed(noise, tmp_path):
    data = noise[0]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    done = driver(whole, data, "--only=low_seed0,dense", "--parallel=2")
    assert done.returncode == 0, done.stderr
    assert not list((whole / "state").rglob("*.npz"))
    stops = 0
    while not (parts / "results" / "low_seed0.json").exists():
        stops += 1
        assert driver(parts, data, "--only=low_seed0", "--time_limit_s=0.5").returncode == 0
        assert stops < 8
    assert stops == 3  # an epoch each
    expected, got = (json.loads((f / "results" / "low_seed0.json").read_text()) for f in (whole, parts))
    assert without_times(expected) == without_times(got)
    assert expected["summary"]["macs_fraction"] == pytest.approx(0.3, abs=0.02)
    assert len(expected["history"]) == 3 and expected["data"] == "noise"
    dense = json.loads((whole / "results" / "dense.json").read_text())["summary"]
    assert dense["macs_fraction"] == 1 and not dense["orthogonality_error"]
    assert "0 of 2" in driver(whole, data, "--only=low_seed0,dense").stdout
    refused = driver(whole, data, "--only=low_seed7")
    assert refused.returncode == 1 and "Received: --only=low_seed7" in refused.stderr


@pytest.mark.tensorflow
@pytest.mark.slow
def test_a_killed_run_goes_on_from_what_it_wrote_down(noise, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert driver(whole, noise[0], "--only=low_seed0").returncode == 0
    flags = [
        f"--grid={whole}/grid.json",
        f"--data={noise[0]}",
        f"--results={killed}/results",
        f"--state={killed}/state",
    ]
    always = "import runpy; from benchmarks.train import runs; runs._KEPT_EVERY = 0; "
    always += "runpy.run_module('benchmarks.train', run_name='__main__')"
    training = subprocess.Popen(
        [sys.executable, "-c", always, *flags, "--one=low_seed0"],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": "jax", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert any(line.startswith("low_seed0 2/3") for line in training.stdout)
    training.kill()
    assert training.wait() < 0 and not (killed / "results" / "low_seed0.json").exists()
    again = driver(killed, noise[0], "--only=low_seed0")
    assert "low_seed0 1/3" not in again.stdout and "low_seed0 3/3" in again.stdout
    expected, got = (json.loads((f / "results" / "low_seed0.json").read_text()) for f in (whole, killed))
    assert without_times(expected) == without_times(got)


@pytest.fixture(scope="module")
def few_images():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 32, 32, 3), dtype="uint8"), np.arange(40) % 10
    return launch_data.ImageData("cifar10", images[:32], labels[:32], images[32:], labels[32:], tuple("abcdefghij"))


SHORT = {
    "model": "resnet8",
    "dataset": "cifar10",
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 0.01,
    "max_macs": 0.4,
    "multiple_of": 4,
}


@pytest.mark.parametrize(
    ("weights", "larger"), thorough_but([([0.67, 1, 1.5], 3)], [([1.5, 1, 0.67], 1), ([0.67, 1, 1.5], 3)])
)
def test_ranks_by_stage_are_in_proportion_and_within_the_budget(weights, larger):
    dense = elrt.models.build("resnet20")
    plan = plan_by_stage(dense, TrainConfig(max_macs=0.28, multiple_of=1), weights)
    macs = elrt.count_costs(elrt.factorize(dense, plan)).macs / elrt.count_costs(dense).macs
    assert 0.27 < macs <= 0.28
    parts = [plan[f"stage{stage}_block2_1_conv"].ranks[0] / width for stage, width in ((1, 16), (2, 32), (3, 64))]
    assert max(parts) == parts[larger - 1]
    # Ranks are whole, 4 to 38 of them.
    np.testing.assert_allclose(np.array(parts) / parts[1], weights, rtol=0.15)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("fields", "dense_epochs", "epochs"),
    [
        ({"fine_tuning": {"epochs": 1, "learning_rate": 0.003}, "rank_method": "vbmf", "max_macs": 0.5}, 2, 3),
        ({"warmup_epochs": 1, "format": "svd", "orthogonality": "none"}, 1, 2),
        pytest.param(
            {"fine_tuning": {"factor_initializer": "orthogonal_factors"}, "distillation": 0.5},
            2,
            4,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["fine_tuned", "warmed_up", "distilled"],
)
def test_runs_that_begin_dense_stop_anywhere_and_go_on(fields, dense_epochs, epochs, few_images, tmp_path):
    def run(path):
        return Run("run", {**SHORT, **fields}, few_images, tmp_path / path)

    whole = run("whole/run.npz").train()
    macs = [row["macs"] for row in whole["history"]]
    assert len(macs) == epochs and len(set(macs[:dense_epochs])) == len(set(macs[dense_epochs:])) == 1
    teacher = macs[0] / 3 if "distillation" in fields else 0
    assert macs[-1] - teacher == pytest.approx(whole["summary"]["macs"])
    assert whole["summary"]["macs"] <= fields.get("max_macs", 0.4) * macs[0] * 1.02
    assert whole["summary"]["training_macs"] == pytest.approx(sum(3 * 32 * value for value in macs))
    stops = 0
    while (parts := run("parts/run.npz").train(stop_at=0)) is None:
        stops += 1
    assert stops == epochs - 1
    assert without_times(parts) == without_times(whole) and parts["ranks"] == whole["ranks"]


@pytest.mark.tensorflow
@pytest.mark.slow
def test_int8_is_added_to_a_run_that_was_trained_without_tensorflow(noise, tmp_path):
    assert driver(tmp_path, noise[0], "--only=low_seed0", "--keep_states").returncode == 0
    path = tmp_path / "results" / "low_seed0.json"
    trained = json.loads(path.read_text())
    assert trained["int8_accuracy"] is None and trained["machine"]["backend"] == "jax"
    done = driver(tmp_path, noise[0], "--int8", backend="tensorflow")
    assert done.returncode == 0, done.stderr
    added = json.loads(path.read_text())
    assert added.pop("int8_machine")["backend"] == "tensorflow"
    assert added.pop("int8_accuracy") * 8 in range(9)
    assert added == {key: value for key, value in trained.items() if key != "int8_accuracy"}


@pytest.mark.slow
@pytest.mark.tensorflow
def test_runs_that_begin_with_the_same_dense_network_train_it_once(few_images, tmp_path):
    fields = {**SHORT, "fine_tuning": {"factor_initializer": "orthogonal_factors"}}

    def train(name, folder, **others):
        return Run(name, {**fields, **others}, few_images, tmp_path / folder / f"{name}.npz").train()

    first = train("first", "shared")
    second, alone = (train("second", folder, distillation=0.5) for folder in ("shared", "alone"))
    other = train("other", "shared", weight_decay=1e-3)
    # Measured times never repeat by chance.
    seconds = [[row["seconds"] for row in result["history"]] for result in (first, second, alone, other)]
    assert seconds[0][:2] == seconds[1][:2] and seconds[0][2:] != seconds[1][2:]
    assert not set(seconds[0]) & {*seconds[2], *seconds[3]}
    assert without_times(second) == without_times(alone)


def test_factors_train_at_a_rate_of_their_own():
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(6, 8, 8, 4)).astype("float32"), np.eye(3, dtype="float32")[[0, 1, 2, 0, 1, 2]]
    layers = elrt.layers.Tucker2Conv2D(6, 3, ranks=(2, 3), name="conv"), keras.layers.Flatten(), keras.layers.Dense(3)
    model = keras.Sequential([keras.Input((8, 8, 4)), *layers])
    start = model.get_weights()

    def changes(multiple):
        model.set_weights(start)
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
        model.optimizer.build(model.trainable_variables)
        if multiple is not None:
            scale_factor_rate(model, multiple)
        model.fit(images, labels, batch_size=6, epochs=1, verbose=0)
        return {v.path.split("/", 1)[-1]: a - b for v, a, b in zip(model.weights, model.get_weights(), start)}

    plain, scaled = changes(None), changes(3.0)
    for path, change in plain.items():
        multiple = 3 if path.endswith(("factor_in", "factor_out")) else 1
        np.testing.assert_allclose(scaled[path], multiple * change, rtol=1e-4, atol=1e-6)
        assert np.abs(change).max() > 1e-5


# JAX draws the batches on the device. On PyTorch a run begins with other weights than the model made below: between
# its seed and its model it makes a configuration, whose checks draw numbers there.
@pytest.mark.thorough
@pytest.mark.tensorflow
def test_an_epoch_tells_the_loss_and_accuracy_over_its_batches(few_images, tmp_path):
    # With such a small rate, the four batches of the first epoch see the same network, in training mode.
    fields = {**SHORT, "epochs": 1, "batch_size": 8, "learning_rate": 1e-9, "augmentation": "none"}
    found = Run("run", {**fields, "format": "dense", "max_macs": None}, few_images, tmp_path / "run.npz").train()
    keras.utils.set_random_seed(found["config"]["seed"])
    model = elrt.models.build("resnet8", (32, 32, 3), 10)
    order = np.random.default_rng((0, 0)).permutation(32).reshape(4, 8)
    outputs = [model(few_images.train_images[batch].astype("float32"), training=True) for batch in order]
    labels = few_images.train_labels[order]
    chosen = np.stack([np.argmax(keras.ops.convert_to_numpy(output), axis=-1) for output in outputs])
    of_batches = np.mean(chosen == labels, axis=1)
    assert found["history"][0]["accuracy"] == pytest.approx(of_batches.mean()) != of_batches[-1]


@pytest.mark.thorough
def test_a_run_has_the_precision_it_asks_for(few_images, tmp_path):
    fields = {**SHORT, "epochs": 3}
    histories = [
        Run("run", {**fields, "precision": precision}, few_images, tmp_path / f"{precision}.npz").train()["history"]
        for precision in ("float32", "mixed_bfloat16")
    ]
    exact, rounded = ([epoch["loss"] for epoch in history] for history in histories)
    # 8 bits of a product's 24: the same run, and visibly not the same numbers. Those of one epoch can agree by chance.
    assert exact == pytest.approx(rounded, rel=0.1) and max(np.abs(np.subtract(exact, rounded))) > 1e-4
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.thorough
def test_a_trained_run_is_tried_at_lower_ranks_and_as_int8(few_images, tmp_path):
    fields = {**SHORT, "epochs": 1, "max_macs": 0.5, "shrink_to": "0.4,0.3", "recovers": True}
    run = Run("run", fields, few_images, tmp_path / "run.npz")
    found = run.train()
    kinds = [(point["kind"], point["epochs"], point["taught"]) for point in found["shrunk"]]
    each = [(kind, *how) for kind in ("plain", "recalibrated", "fitted") for how in ((0, False), (1, False), (1, True))]
    each = [one for one in each if one[0] != "recalibrated" or one[1] == 0]
    assert kinds == [("whole", 0, False), *each, *each]
    budgets = [0.5, *[0.4] * len(each), *[0.3] * len(each)]
    assert [point["macs_fraction"] for point in found["shrunk"]] == pytest.approx(budgets, abs=0.03)
    assert found["shrunk"][0]["accuracy"] == found["summary"]["test_accuracy"]
    assert all(point["accuracy"] * 8 == int(point["accuracy"] * 8) for point in found["shrunk"])
    assert (found["int8_accuracy"] is None) == (keras.backend.backend() != "tensorflow")
    assert (tmp_path / "run.npz").exists()
    run.forget()
    assert not list(tmp_path.iterdir())


def test_stable_ranks_do_not_end_a_warm_up_here(few_images):
    with pytest.raises(ValueError, match="Expected a number of full-rank epochs"):
        Run("run", {**SHORT, "warmup_epochs": "auto"}, few_images, "state")


@pytest.mark.thorough
def test_a_thin_network_is_measured_against_the_full_width(few_images, tmp_path):
    fields = {**SHORT, "epochs": 1, "format": "dense", "max_macs": None, "width": 0.5}
    summary = Run("run", fields, few_images, tmp_path / "run.npz").train()["summary"]
    thin, full = (elrt.count_costs(elrt.models.build("resnet8", width=width)) for width in (0.5, 1.0))
    assert (summary["macs"], summary["params"]) == (thin.macs, thin.params)
    assert summary["macs_fraction"] == thin.macs / full.macs < 0.3
