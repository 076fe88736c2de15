"""`elrt-benchmark data` as a user runs it."""

import json
import statistics

import commands
import pytest

pytestmark = pytest.mark.tensorflow


def benchmark(*arguments, cwd):
    return commands.run("benchmark", *arguments, cwd=cwd)


@pytest.mark.thorough
def test_pipeline_and_step_are_measured_and_written(tmp_path):
    done = benchmark("data", "--seconds=0.2", "--rounds=2", "--batch_size=64", "--output=r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "r.json").read_text())
    assert len(result["pipeline"]) == len(result["step"]) == 2
    ratio = statistics.median(result["pipeline"]) / statistics.median(result["step"])
    assert result["ratio"] == pytest.approx(ratio, rel=1e-2)
    assert (result["model"], result["format"], result["image_shape"]) == ("resnet20", "dense", [8, 8, 1])
    # A pipeline of 8×8 digits is far quicker than a convolutional network; docs/results.md has the figure for CIFAR-10.
    assert result["ratio"] > 1.5
    assert f"{result['ratio']:.2f}× what the step consumes" in done.stdout and "pipeline: digits, crop" in done.stdout


def test_what_has_a_budget_is_low_rank_and_times_are_finite(tmp_path):
    done = benchmark("data", "--model=resnet8", "--max_macs=0.5", "--seconds=0.01", "--rounds=1", cwd=tmp_path)
    assert done.returncode == 0 and "training step: resnet8 tucker2" in done.stdout, done.stderr[-2000:]
    assert "measuring, round 1 of 1" in done.stderr
    done = benchmark("data", "--seconds=nan", cwd=tmp_path)
    assert done.returncode == 2 and "expected a finite number" in done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "elrt-benchmark litert FILE… or data. Received: []"),
        (["speed"], "Received: ['speed']"),
        (["litert", "nowhere"], "Received: 'nowhere', which does not exist"),
        (["data", "--plot=p.png"], "Expected flags of elrt-benchmark data alone; --help tells. Received: --plot"),
        (["data", "--output="], "Expected a path that ends in the name of a file. Received: output=''"),
        (["data", "--output=no/where.json"], "Received: output='no/where.json'"),
        (["data", "--dataset=mnist"], "Received: dataset='mnist'"),
        (["data", "--batch_size=4000"], "Received: batch_size=4000"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(tmp_path, arguments, message):
    done = benchmark(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and "elrt-benchmark: error: " in done.stderr and message in done.stderr
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []
