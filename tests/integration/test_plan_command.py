"""`elrt-plan` as a user runs it."""

import os
import shlex
import subprocess
import sys

import commands
import keras
import pytest
from common import thorough

import elrt_keras as elrt

pytestmark = pytest.mark.tensorflow


def plan(*arguments, cwd):
    return commands.run("plan", *arguments, cwd=cwd)


def test_a_builder_is_planned_and_the_plan_written(tmp_path):
    done = plan("--model=resnet20", "--max_macs=0.4", "--exclude=stem*,classifier", "--output=plan.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    written = elrt.RankPlan.load(tmp_path / "plan.json")
    model = elrt.models.build("resnet20")
    assert dict(written) == dict(elrt.plan_ranks(model, max_macs=0.4, exclude=["stem*", "classifier"]))
    for text in ("stage3_block3_2_conv", "3×3×64×64", "tucker2", "planned MACs", "excluded"):
        assert text in done.stdout
    dense, low = elrt.count_costs(model), elrt.count_costs(elrt.factorize(model, written))
    assert f"{dense.macs:,} → {low.macs:,} MACs ({low.macs / dense.macs:.1%})" in done.stdout
    assert f"{dense.params:,} → {low.params:,} params" in done.stdout


def test_the_model_of_a_run_with_formats_by_layer_and_a_method_that_reads_weights(tmp_path):
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((None, None, 3))]
        + [layers.Conv2D(32, 3, name=name) for name in ("first", "second", "third")]
        + [layers.GlobalAveragePooling2D(), layers.Dense(4, name="head")]
    )
    (tmp_path / "run").mkdir()
    model.save(tmp_path / "run" / "model.keras")
    arguments = (
        "--model=run",
        "--format=second:svd,*:tucker2",
        "--method=energy",
        "--max_macs=0.5",
        "--input_shape=12,12,3",
    )
    done = plan(*arguments, "--output=p.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    formats = {"second": "svd", "*": "tucker2"}
    expected = elrt.plan_ranks(model, format=formats, method="energy", max_macs=0.5, input_shape=(12, 12, 3))
    assert dict(elrt.RankPlan.load(tmp_path / "p.json")) == dict(expected)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model=resnet20"], "Pass either `fraction` or a budget"),
        (["--model=resnet20", "--max_macs=0.01"], "The budget cannot be met"),
        (["--model=resnet20", "--max_macs=0.4", "--exclude=layer9*"], "Received: exclude='layer9*'"),
        *thorough(
            (["--model=resnet20", "--max_macs=0.4", "--method=vbmf"], "reads trained weights"),
            (["--model=resnet20", "--max_macs=0.4", "--input_shape=a,b"], "Received: input_shape=['a', 'b']"),
            (["--model=resnet20", "--max_macs=0.4", "--input_shape=0,0,3"], "Expected positive ints such as 32,32,3"),
            (["--model=resnet20", "--max_macs=0.4", "--input_shape=8,8,3", "--image_size=8"], "Received: image_size=8"),
            (["--model=resnet20", "--max_macs=0.4", "--output=no/where.json"], "Received: output='no/where.json'"),
            (["--model=resnet20", "--max_macs=0.4", "--quantization=int8"], "Received: quantization='int8'"),
            (["--model=resnet20", "--max_macs=0.4", "--threads=2"], "Received: threads=2"),
            (["--model=broken.keras", "--max_macs=0.4", "--classes=7"], "Received: classes=7"),
            (["--model=broken.keras", "--max_macs=0.4"], "Received: 'broken.keras'"),
            (["--model=.", "--max_macs=0.4"], "or a finished run. Received: '.', which holds no model.keras"),
            (["--model=resnet21", "--max_macs=0.4"], "Expected one of ['resnet8'"),
            (["--model=resnet20", "--max_macs=0.4", "more"], "Received: ['more']"),
        ),
    ],
    ids=str,
)
def test_bad_input_is_one_line(tmp_path, arguments, message):
    (tmp_path / "broken.keras").write_bytes(b"PK no model")
    done = plan(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert message in done.stderr.strip().splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["broken.keras"]


def test_what_the_one_flag_that_has_to_be_given_takes_is_told(tmp_path):
    done = plan("--max_macs=0.4", cwd=tmp_path)
    assert done.returncode == 2 and "--model=None: expected a builder's name, a file or a run" in done.stderr


@pytest.mark.thorough
def test_a_reader_that_has_enough_is_no_error(tmp_path):
    command = f"set -o pipefail; {sys.executable} -m elrt_keras.launch.plan --model=resnet20 --max_macs=0.4 | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "elrt-plan" not in done.stderr and len(done.stdout.splitlines()) == 1


@pytest.mark.thorough
def test_a_reader_of_the_help_that_has_enough_is_no_error(tmp_path):
    """Closes the pipe long before the help is written."""
    program = "import os, time; os.close(0); time.sleep(1)"
    reader = shlex.join([sys.executable, "-c", program])
    command = f"{sys.executable} -m elrt_keras.launch.plan --help | {reader}; echo $PIPESTATUS"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "0" and "Error" not in done.stderr


@pytest.mark.thorough
def test_an_output_in_another_encoding_costs_no_result(tmp_path):
    arguments = ["--model=resnet20", "--max_macs=0.4", "--output=plan.json"]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(
        [sys.executable, "-m", "elrt_keras.launch.plan", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0 and b"tucker2" in done.stdout and b"?" in done.stdout
    assert elrt.RankPlan.load(tmp_path / "plan.json").factorized()


@pytest.mark.thorough
def test_an_image_size_is_an_input_shape(tmp_path):
    sizes = ["--image_size=48"], ["--input_shape=48,48,3"]
    done = [plan("--model=resnet20", "--max_macs=0.4", *size, cwd=tmp_path) for size in sizes]
    assert done[0].returncode == 0 and done[0].stdout == done[1].stdout


@pytest.mark.slow
def test_a_budget_of_time(tmp_path, monkeypatch):
    monkeypatch.setenv("ELRT_CACHE_DIR", str(tmp_path / "cache"))
    done = plan("--model=resnet8", "--max_latency=0.8", "--multiple_of=16", "--output=plan.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    written = elrt.RankPlan.load(tmp_path / "plan.json")
    assert written.latency["planned"] <= 0.8 * written.latency["dense"]
    assert "ms predicted" in done.stdout and "planned ms" in done.stdout
    assert len(list((tmp_path / "cache").iterdir())) == 1
    small = "--model=resnet8", "--input_shape=16,16,3", "--max_latency=0.95", "--multiple_of=16"
    int8 = plan(*small, "--quantization=int8", cwd=tmp_path)
    # Some processors multiply int8 so fast that no chain of small products is faster; then the command says so.
    assert int8.returncode == 0 or "Expected max_latency ≥" in int8.stderr
    assert len(list((tmp_path / "cache").iterdir())) == 2
    low = elrt.factorize(elrt.models.build("resnet8"), written)
    assert elrt.count_costs(low).macs < elrt.count_costs(elrt.models.build("resnet8")).macs
