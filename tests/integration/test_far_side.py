"""Ranks planned on a far side of another kind: an aarch64 Python under qemu-user, reached by `CommandTimer.ssh`.

`ssh` on the path is a stand-in that runs the command here, with that Python as `python3`. The program, the files and
the times go the way they go to a board. Times under emulation say nothing of a device, so only the way is tested.
"""

import json
import os
import pathlib

import arm64
import keras
import numpy as np
import pytest

import elrt_keras as elrt
from elrt_keras.litert import CommandTimer
from elrt_keras.ranks.times import TimeTable

pytestmark = [pytest.mark.tensorflow, pytest.mark.slow, pytest.mark.timeout(1800)]
pytest.importorskip("ai_edge_litert")


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A folder with an `ssh` for the path, which notes the commands that it ran."""
    cache = pathlib.Path(os.environ.get("ELRT_ARM64_ROOT") or tmp_path_factory.mktemp("arm64"))
    try:
        python = arm64.make(cache)
    except arm64.Unavailable as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("board")
    lines = ["#!/bin/sh", "for last; do :; done", f'echo "$last" >> {folder}/commands']
    lines += [f"PATH={python.parent}:$PATH", 'exec sh -c "$last"', ""]
    (folder / "ssh").write_text("\n".join(lines), encoding="utf-8")
    (folder / "ssh").chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def reached(board, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{board}:{os.environ['PATH']}")
    monkeypatch.setenv("ELRT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return board


def model():
    keras.utils.set_random_seed(0)
    conv = {"padding": "same", "activation": "relu"}
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.Conv2D(16, 3, name="stem", **conv),
            keras.layers.Conv2D(48, 3, name="body", **conv),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4, name="head"),
        ]
    )


def test_a_plan_of_the_far_side_from_start_to_end(reached, tmp_path):
    dense, timer = model(), CommandTimer.ssh("board", runs=5, max_drift=10.0)
    plan = elrt.plan_ranks(dense, max_latency=0.9, timer=timer, multiple_of=8)
    assert plan["body"].ranks is not None and plan.latency is not None
    commands = (reached / "commands").read_text(encoding="utf-8").splitlines()
    assert all("far_side.py run" in command for command in commands)
    # All times are kept for the board, and the next plan asks it for the whole model alone.
    table = TimeTable(1, timer=timer)
    assert "board" in table.device
    again = elrt.plan_ranks(dense, max_latency=0.9, timer=timer, multiple_of=8)
    assert dict(again) == dict(plan)
    assert len((reached / "commands").read_text(encoding="utf-8").splitlines()) == len(commands) + 1
    # Nothing stays there, and the table travels.
    assert not list(pathlib.Path(tmp_path).glob("tmp.*"))
    table.save(tmp_path / "board.json")
    elsewhere = elrt.plan_ranks(dense, max_latency=0.9, times=tmp_path / "board.json", multiple_of=8)
    assert dict(elsewhere) == dict(plan)


def test_the_far_side_runs_what_was_exported(reached, tmp_path):
    """Outputs of the aarch64 runtime are those of this one, so that the times are of the same computation."""
    content = elrt.litert.model_to_litert(model())
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    inputs = np.random.default_rng(0).standard_normal((1, 16, 16, 3)).astype("float32")
    np.save(tmp_path / "inputs.npy", inputs)
    program = (
        "import json, sys, platform, numpy as np\nfrom ai_edge_litert.interpreter import Interpreter\n"
        f"i = Interpreter({str(path)!r}); i.allocate_tensors()\n"
        f"i.set_tensor(i.get_input_details()[0]['index'], np.load({str(tmp_path / 'inputs.npy')!r})); i.invoke()\n"
        "print(json.dumps([platform.machine(), i.get_tensor(i.get_output_details()[0]['index']).tolist()]))\n"
    )
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    machine, outputs = json.loads(os.popen(f"ssh board 'python3 {tmp_path}/program.py'").read())
    assert machine == "aarch64"
    runner = elrt.litert.Runner(content, 1)
    np.testing.assert_allclose(outputs, runner(inputs), rtol=1e-4, atol=1e-5)
