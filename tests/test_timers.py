"""Times from other devices: output of programs, commands that fail, and tables for other machines."""

import json
import os
import pathlib
import stat
import struct
import sys
import textwrap
import time

import keras
import numpy as np
import pytest

import elrt_keras as elrt
from elrt_keras import formats
from elrt_keras.formats.chain import dense_stage
from elrt_keras.litert.readings import Reading, read_result_file, read_text
from elrt_keras.litert.timers import CommandTimer, LocalTimer
from elrt_keras.ranks.times import TimeTable, chain_key

pytestmark = pytest.mark.tensorflow
pytest.importorskip("ai_edge_litert")

PRINTED = """
INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Graph: [/data/local/tmp/elrt/m0003.tflite]
INFO: Loaded model /data/local/tmp/elrt/m0003.tflite
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds
INFO: count=70 first=18105 curr=7066 min=6728 max=18145 avg=7290.9 std=452
INFO: Running benchmark for at least 50 iterations and at least 1 seconds
INFO: count=200 first=4941 curr=4066 min=3950 max=6145 avg=4290.9 std=100 p5=4000 median=4100 p95=4500
INFO: Inference timings in us: Init: 52687, First inference: 18105, Warmup (avg): 7290.9, Inference (avg): 4290.9
INFO: Overall peak memory footprint (MB) via periodic monitoring: 12.4
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ELRT_CACHE_DIR", str(tmp_path / "cache"))


def test_text_of_benchmark_model():
    (reading,) = read_text(PRINTED)
    assert reading.model == "m0003.tflite"
    # Quartiles of a normal distribution lie 0.6745 standard deviations from the median.
    assert reading.quartiles == pytest.approx((4.1e-3 - 67.45e-6, 4.1e-3, 4.1e-3 + 67.45e-6), rel=1e-4)
    older = PRINTED.replace(" p5=4000 median=4100 p95=4500", "")
    assert read_text(older)[0].quartiles[1] == pytest.approx(4.2909e-3)
    assert [one.model for one in read_text(PRINTED + PRINTED.replace("m0003", "m0004"))] == [
        "m0003.tflite",
        "m0004.tflite",
    ]
    short = "Inference timings in us: Init: 1, First inference: 2, Warmup (avg): 3, Inference (avg): 2.5e+03"
    assert read_text(short) == [Reading(None, (2.5e-3, 2.5e-3, 2.5e-3))]


def test_lines_of_json():
    lines = '{"model": "/tmp/a.tflite", "seconds": [3, 1, 2, 4, 5]}\nnoise\n{"other": 1}\n{broken\n{"seconds": 0.5}'
    assert read_text(lines) == [Reading("a.tflite", (2.0, 3.0, 4.0)), Reading(None, (0.5, 0.5, 0.5))]
    assert read_text("") == []


@pytest.mark.parametrize(
    "text",
    ['{"seconds": []}', '{"seconds": [1, -1]}', '{"seconds": ["a"]}', '{"seconds": [NaN]}', '{"seconds": [true]}'],
)
def test_times_that_are_none(text):
    with pytest.raises(ValueError, match="positive numbers as seconds. Received: "):
        read_text(text)
    with pytest.raises(ValueError, match="positive time"):
        read_text("Inference timings in us: Init: 1, First inference: 2, Warmup (avg): 3, Inference (avg): 0")


def protobuf(**milliseconds):
    """Encodes a result file of `benchmark_model` by hand: a name, latencies, memory."""
    numbers = {"avg": 1, "min": 2, "max": 3, "std": 4, "median": 5}
    inner = b"".join(struct.pack("<Bf", numbers[name] << 3 | 5, value) for name, value in milliseconds.items())
    return b"\x0a\x04name" + b"\x12" + bytes([len(inner)]) + inner + b"\x1a\x03\x08\x80\x02"


def test_result_files_of_benchmark_model(tmp_path):
    path = tmp_path / "result.pb"
    path.write_bytes(protobuf(avg=5.0, min=4.0, max=9.0, std=2.0, median=4.5))
    low, middle, high = read_result_file(path).quartiles
    assert (low, middle) == pytest.approx((4.0e-3, 4.5e-3)) and high == pytest.approx(4.5e-3 + 0.6745 * 2e-3, rel=1e-4)
    for content in (b"", b"no such file at all", protobuf(avg=5.0)[:-6]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="Received: .*result.pb|a positive time"):
            read_result_file(path)


def script(folder, name, body):
    """Writes an executable Python program into a folder; returns its path."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(body)}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def device(folder, body="", each="seconds = size"):
    """Writes a program that prints a time for each file: its size in milliseconds, or the result of `each`."""
    return script(
        folder,
        "device.py",
        f"""
        import json, os, pathlib, sys
        state = pathlib.Path({str(folder)!r}) / "state"
        calls = int(state.read_text()) if state.exists() else 0
        state.write_text(str(calls + 1))
        {body}
        for number, path in enumerate(sys.argv[1:]):
            size = os.path.getsize(path) * 1e-3
            {each}
            print(json.dumps({{"model": os.path.basename(path), "seconds": [seconds]}}))
        """,
    )


CONTENTS = [bytes(size) for size in (10, 20, 30, 5, 40, 50, 60, 70, 80, 90, 100, 110)]


@pytest.mark.parametrize("words, calls", [("{models}", 1), ("{model}", 14)])
def test_a_command_for_all_files_or_for_each(tmp_path, words, calls):
    timer = CommandTimer(f"{device(tmp_path)} {words}", device="made", runs=7)
    quartiles = timer.measure(CONTENTS, 3)
    np.testing.assert_allclose(quartiles, np.tile([len(content) * 1e-3 for content in CONTENTS], (3, 1)))
    # The first file is timed three times: before the others, after eight, and at the end.
    assert int((tmp_path / "state").read_text()) == calls
    assert timer.device(3) == "made, 3 threads"


def test_words_in_braces_are_filled_in(tmp_path):
    path = script(
        tmp_path, "one.py", 'import json, sys; print(json.dumps({"seconds": int(sys.argv[2]) / int(sys.argv[3])}))'
    )
    assert CommandTimer(f"{path} {{model}} {{threads}} {{runs}}", runs=8).measure([b"a"], 2)[1, 0] == 0.25
    path = script(
        tmp_path,
        "result.py",
        f"import pathlib, sys; pathlib.Path(sys.argv[2]).write_bytes({protobuf(avg=2.0)!r})",
    )
    assert CommandTimer(f"{path} {{model}} {{result}}").measure([b"a"], 1)[1, 0] == pytest.approx(2e-3)


def test_a_device_that_slows_down_is_corrected_by_the_first_file(tmp_path):
    each = "seconds = size * (1 + 0.01 * number)"
    found = CommandTimer(f"{device(tmp_path, each=each)} {{models}}").measure(CONTENTS, 1)[1]
    exact = np.array([len(content) for content in CONTENTS])
    # Without correction, the last time would be 13 % longer than the first.
    np.testing.assert_allclose(found / found[0], exact / exact[0], rtol=0.045)


@pytest.mark.parametrize(
    "body, each, message",
    [
        ("sys.exit('device offline')", "seconds = size", "that succeeds. Received: status 1: device offline"),
        ("print('hello'); sys.exit(0)", "seconds = size", r"times of 14 files.*Received: 0, in 'hello'"),
        ("", "seconds = -size", "positive numbers as seconds"),
        ("", "seconds = size * (1 + number)", "stay within 30%; let the device cool down"),
        ("sys.argv = sys.argv[:3]", "seconds = size", "times of 14 files.*Received: 2"),
        ("sys.argv[1:] = sys.argv[:0:-1]", "seconds = size", "in the order of the files. Received: 'm0011.tflite' for"),
        ("import time; time.sleep(99)", "seconds = size", r"an end within 0.5 s. Received: none of '.*device.py"),
    ],
    ids=["fails", "nonsense", "negative", "drifts", "fewer", "order", "hangs"],
)
def test_a_device_that_fails_is_asked_once_more_and_then_told(tmp_path, capsys, body, each, message):
    # The shell starts the program and waits for it, as in a pipe.
    timer = CommandTimer(f"true | {device(tmp_path, body, each)} {{models}}", timeout_s=0.5 if "sleep" in body else 60)
    begun = time.monotonic()
    with pytest.raises(ValueError, match=message):
        timer.measure(CONTENTS, 1)
    assert "timing again: " in capsys.readouterr().err and int((tmp_path / "state").read_text()) == 2
    assert time.monotonic() - begun < 30


def test_a_device_that_fails_once_costs_nothing(tmp_path):
    timer = CommandTimer(f"{device(tmp_path, 'assert calls != 0')} {{models}}")
    assert timer.measure(CONTENTS, 1)[1, 0] == 0.01


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"command": "adb shell run"}, r"a command with {model} or {models}. Received: command='adb shell run'"),
        ({"command": "{model} {models}"}, "a command with"),
        ({"command": "{model}", "runs": 0}, "runs=0"),
        ({"command": "{model}", "timeout_s": 0}, "timeout_s=0"),
        ({"command": "{model}", "max_drift": float("nan")}, "max_drift=nan"),
    ],
)
def test_bad_arguments_of_a_command_timer(arguments, message):
    with pytest.raises(ValueError, match=message):
        CommandTimer(**arguments)


# Whole plans.


def small_model():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((12, 12, 3)), keras.layers.Conv2D(32, 3, padding="same", name="stem")]
    layers += [keras.layers.Conv2D(64, 3, padding="same", activation="relu", name=name) for name in "ab"]
    return keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(5, name="head")])


class BySize(LocalTimer):
    """Timer of a simulated device: the time of a file is its size. It counts its calls."""

    def __init__(self):
        self.calls = 0

    def device(self, threads):
        return f"made, {threads} threads"

    def measure(self, contents, threads):
        self.calls += 1
        return np.tile([1e-9 * len(content) for content in contents], (3, 1))


def test_tables_are_kept_by_device_and_travel(tmp_path):
    model, timer = small_model(), BySize()
    plan = elrt.plan_ranks(model, max_latency=0.6, multiple_of=32, timer=timer)
    measured = timer.calls
    again = elrt.plan_ranks(model, max_latency=0.6, multiple_of=32, timer=timer)
    assert dict(plan) == dict(again) and timer.calls == measured + 1  # the whole model, whose time may have changed
    table = TimeTable(1, timer=timer)
    assert table.path != TimeTable(1).path and table.path != TimeTable(2, timer=timer).path
    path = tmp_path / "made.json"
    table.save(path)
    document = json.loads(path.read_text())
    assert (document["device"], document["threads"], document["quantization"]) == ("made, 1 threads", 1, None)
    other = elrt.plan_ranks(small_model(), max_latency=0.6, multiple_of=32, times=path)
    assert dict(other) == dict(plan) and other.latency == pytest.approx(plan.latency)
    # The table says, layer by layer, where fewer MACs are faster.
    costs = plan.costs["b"]
    faster, fewer = (costs[name] / costs[f"planned_{name}"] for name in ("latency", "macs"))
    assert f"{faster:.2f}× of {fewer:.2f}×" in str(plan)


def test_speed_ups_of_two_kinds_of_files_stand_side_by_side(tmp_path):
    settings = {"max_latency": 0.6, "multiple_of": 32, "timer": BySize()}
    plan = elrt.plan_ranks(small_model(), **settings)
    assert "faster in" not in str(plan) and not any("beside" in costs for costs in plan.costs.values())
    elrt.plan_ranks(small_model(), quantization="int8", **settings)
    plan = elrt.plan_ranks(small_model(), **settings)
    table, sizes = TimeTable(1, "int8", timer=BySize()), {}
    for name in plan.factorized():
        shape = tuple(plan.costs[name]["kernel_shape"])
        chains = (
            [dense_stage(shape, (1, 1), (1, 1))],
            formats.get("tucker2").stages(shape, plan[name].ranks, *[(1, 1)] * 2),
        )
        dense, planned = (table.get(chain_key(chain, (12, 12), "same")) for chain in chains)
        sizes[name] = dense / planned
        assert plan.costs[name]["beside"] == {"int8": pytest.approx(sizes[name])}
    assert sizes["b"] > 1
    plan.save(tmp_path / "plan.json")
    loaded = elrt.RankPlan.load(tmp_path / "plan.json")
    assert str(loaded) == str(plan) and "faster in int8" in str(plan) and f"{sizes['b']:.2f}×" in str(plan)


def test_a_table_that_lacks_layers_names_them(tmp_path):
    table = TimeTable(1, timer=BySize())
    elrt.plan_ranks(small_model(), max_latency=0.6, multiple_of=32, timer=BySize())
    table.save(tmp_path / "empty.json")
    with pytest.raises(ValueError, match=r"--export_timing_set=DIR.*without those of 'a' \(\d+ chains\), 'b' .*whole"):
        elrt.plan_ranks(small_model(), max_latency=0.6, multiple_of=32, times=tmp_path / "empty.json")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "something else"}, "Expected kind 'elrt_keras.Times'"),
        ({"version": 2}, "version 1"),
        ({"seconds": {"a": -1}}, "positive seconds by key"),
        ({"seconds": None}, "positive seconds by key"),
        ({"threads": 0}, "threads of at least 1"),
        ({"threads": 2}, "Expected times with 1 threads and quantization=None"),
        ({"quantization": "int8"}, "with 1 threads and quantization='int8'"),
        ({"quantization": "int4"}, "quantization in"),
        ({"device": 5}, "device=5"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, change, message):
    path = tmp_path / "times.json"
    head = {"kind": "elrt_keras.Times", "version": 1, "device": "d", "threads": 1, "quantization": None, "seconds": {}}
    path.write_text(json.dumps({**head, **change}))
    with pytest.raises(ValueError, match=message):
        elrt.plan_ranks(small_model(), max_latency=0.6, times=path)
    path.write_text("{")
    with pytest.raises(ValueError, match="measured times in JSON"):
        elrt.plan_ranks(small_model(), max_latency=0.6, times=path)
    with pytest.raises(ValueError, match="Expected max_latency with times"):
        elrt.plan_ranks(small_model(), max_macs=0.6, times=path)
    with pytest.raises(ValueError, match="either a timer or measured times"):
        elrt.plan_ranks(small_model(), max_latency=0.6, times=path, timer=BySize())


def test_files_timed_by_hand_give_the_plan_of_the_timer(tmp_path):
    folder = tmp_path / "set"
    paths = elrt.export_timing_set(small_model(), folder, multiple_of=32)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest["files"]) == sorted(os.path.basename(path) for path in paths) and len(paths) > 5
    with pytest.raises(ValueError, match=r"times of the files in .*times.txt"):
        elrt.plan_ranks(small_model(), max_latency=0.6, multiple_of=32, times=folder)
    lines = [json.dumps({"model": path, "seconds": [1e-9 * os.path.getsize(path)] * 3}) for path in paths]
    (folder / "times.txt").write_text("\n".join(lines))
    by_hand = elrt.plan_ranks(small_model(), max_latency=0.6, multiple_of=32, times=folder)
    assert dict(by_hand) == dict(elrt.plan_ranks(small_model(), max_latency=0.6, multiple_of=32, timer=BySize()))
    (folder / "times.txt").write_text('{"model": "other.tflite", "seconds": 1}')
    with pytest.raises(ValueError, match="Received: 'other.tflite' in times.txt"):
        elrt.plan_ranks(small_model(), max_latency=0.6, multiple_of=32, times=folder)
    with pytest.raises(ValueError, match="a new or empty folder"):
        elrt.export_timing_set(small_model(), folder)


# The built-in timers, with fake programs on the path.

SSH = """
    import subprocess, sys
    assert sys.argv[-2] == "board", sys.argv
    sys.exit(subprocess.run(["sh", "-c", sys.argv[-1]]).returncode)
    """
ADB = """
    import os, pathlib, shutil, subprocess, sys
    root = pathlib.Path(os.environ["FAKE_DEVICE"])
    words = sys.argv[1:]
    if os.environ.get("FAKE_FAULT") == "offline":
        sys.exit("adb: no devices/emulators found")
    here = lambda text: text.replace("/data/local/tmp", str(root))
    if words[0] == "push":
        *sources, target = words[1:]
        for source in sources:
            shutil.copy(source, here(target))
        if os.environ.get("FAKE_FAULT") == "gone":
            sys.exit("adb: error: device 'x' not found")
    elif words[0] == "shell":
        command = here(" ".join(words[1:])).replace("$(getprop ro.product.model)", "Made 8")
        sys.exit(subprocess.run(["sh", "-c", command]).returncode)
    """
BENCHMARK = """
    import os, sys
    flags = dict(word.lstrip("-").split("=") for word in sys.argv[1:])
    graph = flags["graph"]
    if os.environ.get("FAKE_FAULT") == "crash":
        sys.exit("ERROR: Failed to load model")
    if os.environ.get("FAKE_FAULT") == "nonsense":
        print("Segmentation fault"); sys.exit(0)
    sys.stdout = sys.stderr  # as some builds log
    print(f"INFO: Graph: [{graph}]")
    size = os.path.getsize(graph)
    print(f"INFO: count={flags['num_runs']} first={size} curr={size} min={size} max={size} avg={size} std=0")
    print(f"INFO: Inference timings in us: Init: 1, First inference: 2, Warmup (avg): 3, Inference (avg): {size}")
    """


@pytest.fixture
def path_of_programs(tmp_path, monkeypatch):
    folder, root = tmp_path / "bin", tmp_path / "device"
    folder.mkdir()
    root.mkdir()
    script(folder, "ssh", SSH)
    script(folder, "adb", ADB)
    script(root, "benchmark_model", BENCHMARK)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_DEVICE", str(root))
    return root


def test_an_android_device_is_pushed_to_once_and_left_clean(path_of_programs):
    timer = CommandTimer.adb()
    assert timer.device(2) == "Made 8, 2 threads"
    found = timer.measure(CONTENTS, 2)[1]
    np.testing.assert_allclose(found, [1e-6 * len(content) for content in CONTENTS])
    assert [path.name for path in path_of_programs.iterdir()] == ["benchmark_model"]


@pytest.mark.parametrize(
    "fault, message",
    [
        ("gone", "Received: status 1: adb: error: device 'x' not found"),
        ("crash", "Received: status 1: ERROR: Failed to load model"),
        ("nonsense", "times of 14 files.*Segmentation fault"),
    ],
)
def test_an_android_device_that_fails(path_of_programs, monkeypatch, fault, message):
    timer = CommandTimer.adb()
    monkeypatch.setenv("FAKE_FAULT", fault)
    with pytest.raises(ValueError, match=message):
        timer.measure(CONTENTS, 1)
    monkeypatch.setenv("FAKE_FAULT", "offline")
    with pytest.raises(ValueError, match="Expected an Android device. Received: adb: no devices"):
        CommandTimer.adb()


def test_a_board_with_python_runs_the_files_itself(path_of_programs):
    contents = [keras_file(size) for size in (8, 64)]
    quartiles = CommandTimer.ssh("board", sys.executable, runs=20).measure(contents, 1)
    assert quartiles.shape == (3, 2) and (np.diff(quartiles, axis=0) >= 0).all()
    assert quartiles[1, 1] > 3 * quartiles[1, 0]
    with pytest.raises(ValueError, match="a timing command that succeeds. Received: status"):
        CommandTimer.ssh("board", "no-such-python").measure(contents, 1)


def keras_file(size):
    from elrt_keras import litert

    inputs = keras.Input((size, size, 16))
    return litert.model_to_litert(keras.Model(inputs, keras.layers.Conv2D(16, 3)(inputs)))


@pytest.mark.thorough
def test_a_plan_through_the_far_side_is_that_of_this_process(path_of_programs):
    model = small_model()
    here = elrt.plan_ranks(model, max_latency=0.6)
    there = elrt.plan_ranks(model, max_latency=0.6, timer=CommandTimer.ssh("board", sys.executable, runs=20))
    assert there.latency["planned"] <= 0.6 * there.latency["dense"]
    for name in ("dense", "planned"):
        assert there.latency[name] == pytest.approx(here.latency[name], rel=0.3)
    kept = [np.mean([costs.get("kept", 1.0) for costs in plan.costs.values()]) for plan in (here, there)]
    assert kept[1] == pytest.approx(kept[0], rel=0.15)


def test_the_far_side_needs_nothing_of_this_package():
    source = pathlib.Path(elrt.litert.__file__).with_name("far_side.py").read_text()
    assert "elrt_keras" not in source and "import keras" not in source
