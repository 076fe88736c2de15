"""Training runs under every fault, in real processes: kill, stop request, full disk, NaN loss."""

import csv
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import commands
import keras
import numpy as np
import pytest
from common import DIVERGING, thorough_but

from elrt_keras.launch import checkpoints

pytestmark = pytest.mark.tensorflow
# A small VGG-16 would have dropout too, but starts slowly; ResNet-8 has batch-norm and everything else.
FLAGS = (
    "--model=resnet8",
    "--epochs=4",
    "--batch_size=128",
    "--max_macs=0.3",
    "--orthogonality_schedule=0:1e-2,2:1e-3",
)


def start(folder, *arguments):
    return commands.Command(
        "elrt_keras.launch.train", *arguments, cwd=folder, log=folder / f"{time.monotonic_ns()}.log"
    )


def finish(process, timeout=300):
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def wait_until(condition, process, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline, "it did not come that far"
        time.sleep(0.002)


def weights(run_dir):
    return keras.models.load_model(pathlib.Path(run_dir) / "model.keras").get_weights()


def assert_same_weights(run_dir, other):
    for one, two in zip(weights(run_dir), weights(other), strict=True):
        np.testing.assert_array_equal(one, two)


def history(run_dir):
    with open(pathlib.Path(run_dir) / "history.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    code, output = finish(start(folder, "--run_dir=run", *FLAGS))
    assert code == 0, output[-3000:]
    return folder / "run"


@pytest.mark.parametrize("moments", thorough_but(["half"], ["half", "any"]))
def test_killed_at_any_moment_it_ends_with_the_same_weights(tmp_path, undisturbed, moments):
    run = tmp_path / "run"

    def saved(epoch):
        return any(path.endswith(f"epoch{epoch:04d}_step000000.keras") for path in checkpoints.paths(str(run)))

    def writing(epoch):
        return saved(epoch - 1) and any((run / "checkpoints").glob("*.tmp.keras"))

    def row(epoch):
        path = run / "history.csv"
        return path.exists() and f"\n{epoch}," in path.read_text()

    # The first checkpoint just made; a step of the second epoch; a checkpoint half written; a row without a checkpoint.
    any_of_them = [lambda: saved(0), lambda: saved(1), lambda: writing(2), lambda: row(2)]
    for moment in any_of_them if moments == "any" else any_of_them[2:3]:
        process = start(tmp_path, "--run_dir=run", *FLAGS)
        wait_until(moment, process)
        process.send_signal(signal.SIGKILL)
        finish(process)
    code, output = finish(start(tmp_path, "--run_dir=run", *FLAGS))
    assert code == 0 and "resuming at epoch" in output, output[-3000:]
    assert_same_weights(run, undisturbed)
    assert history(run) == history(undisturbed)
    assert not (run / "checkpoints").exists()


@pytest.mark.thorough
def test_told_to_stop_it_saves_within_the_epoch_and_goes_on_exactly(tmp_path, undisturbed):
    run = tmp_path / "run"
    process = start(tmp_path, "--run_dir=run", *FLAGS)
    # Steps of the first epoch. The signal may come while the graph is traced; it takes effect after the first step.
    wait_until(lambda: (run / "tensorboard").exists(), process)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 0 and "told to stop (SIGTERM); saved run/checkpoints/epoch0000_step000001.keras" in output
    code, output = finish(start(tmp_path, "--run_dir=run", *FLAGS))
    assert code == 0, output[-3000:]
    assert_same_weights(run, undisturbed)
    assert history(run) == history(undisturbed)


@pytest.mark.thorough
def test_told_to_stop_while_ranks_are_timed_it_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ELRT_CACHE_DIR", str(tmp_path / "cache"))
    process = start(tmp_path, "--run_dir=run", "--smoke", "--model=resnet18_cifar", "--max_latency=0.9")
    wait_until((tmp_path / "cache").exists, process)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process, timeout=60)
    assert code == 0 and "timing layers on LiteRT" in output and "told to stop (SIGTERM) between checkpoints" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.thorough
def test_a_damaged_newest_checkpoint_costs_one_epoch_and_no_digit(tmp_path, undisturbed):
    process = start(tmp_path, "--run_dir=run", *FLAGS)
    run = tmp_path / "run"
    wait_until(lambda: len(checkpoints.paths(str(run))) == 2, process)
    process.send_signal(signal.SIGKILL)
    finish(process)
    newest = checkpoints.paths(str(run))[0]
    os.truncate(newest, os.path.getsize(newest) - 100)
    code, output = finish(start(tmp_path, "--run_dir=run", *FLAGS))
    assert code == 0 and f"{os.path.basename(newest)} is damaged and left out" in output
    assert_same_weights(run, undisturbed)


@pytest.mark.thorough
@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY, reason="files are limited")
def test_a_disk_that_fills_up_in_mid_run(tmp_path, undisturbed):
    process = start(tmp_path, "--run_dir=run", *FLAGS)
    run = tmp_path / "run"
    wait_until(lambda: len(checkpoints.paths(str(run))) == 2, process)
    size = os.path.getsize(checkpoints.paths(str(run))[0])
    # From here on, no file of the process can grow beyond half a checkpoint, as on a full disk.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
    code, output = finish(process)
    assert code == 2 and "Traceback" not in output, output[-3000:]
    assert "Cannot write or read the files of the run. The last good checkpoint is run/checkpoints/epoch" in output
    assert "File too large" in output
    good = checkpoints.paths(str(run))
    assert len(good) == 2 and sorted(os.listdir(run / "checkpoints")) == sorted(map(os.path.basename, good))
    code, output = finish(start(tmp_path, "--run_dir=run", *FLAGS))
    assert code == 0, output[-3000:]
    assert_same_weights(run, undisturbed)


@pytest.mark.thorough
def test_a_reader_that_goes_away_is_told_apart_from_a_full_disk(tmp_path):
    piped = (
        f"set -o pipefail; {sys.executable} -m elrt_keras.launch.train --run_dir=run --model=resnet8 --smoke | head -1"
    )
    done = subprocess.run(["bash", "-c", piped], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "Nobody reads the output any more. The last good checkpoint is run" in done.stderr
    code, output = finish(start(tmp_path, "--run_dir=run", "--model=resnet8", "--smoke"))
    assert code == 0, output[-3000:]


@pytest.mark.thorough
def test_a_directory_that_goes_away_in_mid_run(tmp_path):
    process = start(tmp_path, "--run_dir=run", *FLAGS)
    run = tmp_path / "run"
    wait_until(lambda: len(checkpoints.paths(str(run))) == 2, process)
    kept = os.rename(run / "checkpoints", run / "kept")
    (run / "checkpoints").write_text("in the way")
    code, output = finish(process)
    assert code == 2 and "Cannot write or read the files of the run" in output and "Traceback" not in output
    assert kept is None and len(os.listdir(run / "kept")) == 2


@pytest.mark.thorough
def test_logs_that_cannot_be_written_are_told_as_plainly(tmp_path):
    """Checks TensorBoard's logs, which TensorFlow writes with exceptions of its own."""
    process = start(tmp_path, "--run_dir=run", *FLAGS)
    run = tmp_path / "run"
    wait_until(lambda: (run / "flags.txt").exists(), process)
    (run / "tensorboard").write_text("in the way")
    code, output = finish(process)
    assert code == 2 and "Traceback" not in output, output[-3000:]
    line = next(line for line in output.splitlines() if "elrt-train: error:" in line)
    assert "The last good checkpoint is run/checkpoints/epoch0000_step000000.keras" in line
    assert line.endswith("Received: run/tensorboard is not a directory")


@pytest.mark.thorough
def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    code, output = finish(start(tmp_path, "--run_dir=run", "--model=resnet8", *DIVERGING))
    assert code == 2 and "Traceback" not in output
    line = next(line for line in output.splitlines() if "elrt-train: error:" in line)
    assert "at step " in line and "The largest gradient norm of the last step" in line and "_conv/" in line
    assert "The last good checkpoint is run/checkpoints/epoch" in line and line.endswith("or --on_nan=rollback")
    model, progress = checkpoints.newest(str(tmp_path / "run"))
    assert progress.epoch == 0 and all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.thorough
def test_rolled_back_with_half_the_learning_rate_it_ends(tmp_path):
    code, output = finish(start(tmp_path, "--run_dir=run", "--model=resnet8", *DIVERGING, "--on_nan=rollback"))
    assert code == 0, output[-3000:]
    assert "Back to that checkpoint with half the learning rate (1/3)" in output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rollbacks"] == output.count("Back to that checkpoint") >= 1
    assert len(history(tmp_path / "run")) == 2


@pytest.mark.thorough
def test_three_rollbacks_are_the_most(tmp_path):
    code, output = finish(
        start(tmp_path, "--run_dir=run", "--model=resnet8", *DIVERGING, "--learning_rate=50", "--on_nan=rollback")
    )
    assert code == 2 and "(3/3)" in output and "elrt-train: error:" in output
    assert "--on_nan" not in output  # which was given


@pytest.mark.thorough
def test_a_validation_told_to_stop_ends_too(tmp_path):
    run = tmp_path / "run"
    process = start(tmp_path, "--run_dir=run", *FLAGS, "--epochs=400")
    wait_until(lambda: len(checkpoints.paths(str(run))) == 2, process)
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    code, output = finish(process)
    assert code == 0 and "told to stop" in output and time.monotonic() - begun < 60
