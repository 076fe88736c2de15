"""The runner of measurements: its list, its refusals, and the files that it writes."""

import json
import pathlib

import pytest

from benchmarks.measure import __main__ as command
from benchmarks.measure import evidence, machine
from benchmarks.measure.runner import MEASUREMENTS, Flag, main, measurement
from benchmarks.measure.variants import interleaved

pytestmark = pytest.mark.tensorflow  # the same on every backend


@measurement(
    "toy",
    models=Flag(("small", "large/one"), "Models.", choices=("small", "large/one")),
    rounds=3,
    sizes=Flag((1, 2), "Sizes.", int),
)
def toy(settings):
    """Measures a toy.

    It takes turns with nothing.
    """
    if settings.rounds == 0:
        raise RuntimeError("no rounds")
    return {"sizes": settings.sizes, "seconds": interleaved({"nothing": lambda: None}, settings.rounds, "toy")}


@measurement("toys", name="cpu", environment={"TOY": "wood"})
def toys(settings):
    """Measures several toys."""
    for size in (1, 2):
        yield f"{settings.file}_{size}", {"command": f"play {size}"}


def files(folder):
    return {path.relative_to(folder).as_posix(): json.loads(path.read_text()) for path in folder.rglob("*.json")}


def test_the_list_has_a_line_of_each(capsys):
    assert command.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == set(MEASUREMENTS) and len(lines) == len(MEASUREMENTS)
    assert "toy              Measures a toy." in lines
    # Every experiment of the results can be measured, except the grids of accuracy runs.
    root = pathlib.Path(evidence.RESULTS)
    assert {"steps", "zoo", "latency", "growth"} < {path.name for path in root.iterdir()} & set(MEASUREMENTS)


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["toy", "--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0
    assert (
        "takes turns with nothing" in told and "By default 1,2." in told and "Number of measurements of each." in told
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["toi"], "Received: name='toi'. Did you mean 'toy'?"),
        (["toy", "--models=smal"], "Received: models='smal'. Did you mean 'small'?"),
        (["toy", "--rounds=few"], "Expected rounds of type int. Received: rounds='few'"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, told, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.strip().endswith(told)


def test_a_measurement_writes_whole_files_and_a_failed_one_leaves_them(tmp_path, capfd):
    root = f"--results={tmp_path}"
    assert main(["toy", "--models=large/one", "--sizes=4", root]) == 0
    written = files(tmp_path)
    assert list(written) == ["toy/large_one.json"]
    result = written["toy/large_one.json"]
    assert result["sizes"] == [4] and len(result["seconds"]["nothing"]) == 3
    assert result["command"] == "python -m benchmarks.measure toy --models=large/one --rounds=3 --sizes=4"
    described = machine.describe()  # includes libraries that other tests have loaded
    assert {name: described[name] for name in result["machine"]} == result["machine"]
    assert {"processor", "instructions", "cores", "python", "backend", "keras"} <= set(result["machine"])
    assert main(["toy", "--rounds=0", root]) == 1
    told = capfd.readouterr().err
    assert "RuntimeError: no rounds" in told and "failed: toy small with exit status 1, toy large/one" in told
    assert files(tmp_path) == written and len([*tmp_path.rglob("*.*")]) == 1
    assert main(["toy", "--models=large/one", "--missing", "--rounds=0", root]) == 0


@pytest.mark.thorough
def test_several_results_have_files_and_commands_of_their_own(tmp_path, monkeypatch):
    monkeypatch.delenv("TOY", raising=False)
    assert main(["toys", f"--results={tmp_path}"]) == 0
    assert {name: found["command"] for name, found in files(tmp_path).items()} == {
        "toys/cpu_1.json": "play 1",
        "toys/cpu_2.json": "play 2",
    }


def test_the_machine_tells_unlike_processors_apart(monkeypatch, tmp_path):
    kinds = {
        "avx2 fma": "AVX2",
        "avx2 avx512f avx512_vnni": "AVX2 AVX-512 VNNI",
        "avx2 avx512f amx_tile": "AVX2 AVX-512 AMX",
    }
    for flags, told in kinds.items():
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu {flags}\n")
        monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
        assert machine.instructions() == told
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "nothing")
    assert machine.instructions() == "unknown"
