"""`elrt-export` and `elrt-benchmark litert` as a user runs them: a real run, real files, bad input."""

import json
import pathlib
import shutil
import subprocess
import sys

import commands
import keras
import numpy as np
import pytest
from common import thorough

from elrt_keras import litert
from elrt_keras.launch import quantized
from elrt_keras.launch.latency import android_commands

pytestmark = pytest.mark.tensorflow
KINDS = ("float32", "float16", "dynamic_int8", "int8")


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A run of a few steps, exported in float32 and int8."""
    folder = tmp_path_factory.mktemp("short")
    done = commands.run("train", "--run_dir=run", "--model=resnet8", "--smoke", "--epochs=1", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    limits = ("--evaluation_examples=20", "--max_accuracy_drop=1")
    done = commands.run("export", "run", "--quantization=float32,int8", *limits, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


def test_the_files_of_a_run_are_told_and_reported(short):
    folder, printed = short
    for kind in ("float32", "int8"):
        path = folder / "run" / "export" / f"low_rank_{kind}.tflite"
        report = json.loads(pathlib.Path(f"{path}.json").read_text())
        assert report["size_bytes"] == path.stat().st_size and report["examples"] == 20
        assert path.name in printed and "agreement" in printed


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A finished run with every kind of LiteRT file, and its dense architecture in float32."""
    folder = tmp_path_factory.mktemp("export")
    recipe = ("--model=resnet8", "--epochs=8", "--batch_size=64", "--lr_schedule=one_cycle")
    done = commands.run("train", "--run_dir=run", *recipe, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    done = commands.run("export", "run", f"--quantization={','.join(KINDS)}", "--evaluation_examples=100", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    merged = commands.run("export", "run", "--merge", "--evaluation_examples=100", cwd=folder)
    assert merged.returncode == 0, merged.stderr[-3000:]
    return folder, done.stdout


@pytest.mark.thorough
def test_every_file_has_its_report_and_its_row(exported):
    folder, printed = exported
    names = [f"low_rank_{kind}" for kind in KINDS] + ["merged_float32"]
    found = sorted(path.name for path in (folder / "run" / "export").iterdir())
    assert found == sorted(f"{name}.tflite{suffix}" for name in names for suffix in ("", ".json"))
    reports = {name: json.loads((folder / "run" / "export" / f"{name}.tflite.json").read_text()) for name in names}
    for name, report in reports.items():
        assert report["size_bytes"] == (folder / "run" / "export" / f"{name}.tflite").stat().st_size
        assert report["examples"] == 100 and report["accuracy"] > 0.8
    assert reports["merged_float32"]["macs"] > 2 * reports["low_rank_float32"]["macs"]
    assert all(f"low_rank_{kind}.tflite" in printed for kind in KINDS) and "agreement" in printed


def test_labels_are_in_the_file(short):
    from elrt_keras.litert.metadata import read_labels

    content = (short[0] / "run" / "export" / "low_rank_int8.tflite").read_bytes()
    assert read_labels(content) == [str(digit) for digit in range(10)]


@pytest.mark.thorough
def test_latency_table_plot_and_android_commands(exported):
    folder, _ = exported
    done = commands.run("benchmark", "litert", "run", "--runs=7", "--plot=l.png", "--output=l.json", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((folder / "l.json").read_text())
    assert len(rows) == 5 and all(row["runs"] == 7 and row["threads"] == 1 for row in rows)
    for row in rows:
        assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert row["peak_memory_bytes"] > row["size_bytes"] / 2
        assert row["accuracy"] is not None
    assert (folder / "l.png").read_bytes().startswith(b"\x89PNG")
    assert "speed-up" in done.stdout and "adb shell" in done.stdout and "--num_runs=7" in done.stdout
    assert "low_rank_int8" in done.stdout and "merged_float32" in done.stdout
    assert ".tflite.tflite" not in android_commands(["a.tflite"] * 2, 1, 7)  # their paths distinguish the two


@pytest.mark.thorough
def test_a_keras_file_in_other_formats(exported):
    folder, _ = exported
    model = folder / "digits.keras"
    model.write_bytes((folder / "run" / "model.keras").read_bytes())
    for arguments in (
        ["--format=onnx"],
        ["--format=saved_model", "--output=saved", "--dataset=digits"],
        ["--quantization=int8,int8", "--dataset=digits", "--output=m.tflite", "--io_dtype=uint8"],
    ):
        done = commands.run("export", model, *arguments, cwd=folder)
        assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "digits_float32.onnx").exists() and (folder / "saved" / "saved_model.pb").exists()
    from ai_edge_litert.interpreter import Interpreter

    assert Interpreter(str(folder / "m.tflite")).get_input_details()[0]["dtype"] == np.uint8


@pytest.mark.thorough
def test_open_sizes_and_the_version_of_operators(tmp_path):
    layers = [keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()]
    keras.Sequential(layers).save(tmp_path / "open.keras")
    for arguments in (["--output=m.tflite"], ["--format=onnx", "--opset=15", "--output=m.onnx"]):
        done = commands.run("export", "open.keras", "--input_shape=10,12,3", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    assert list(litert.Runner(tmp_path / "m.tflite").input_shapes.values()) == [(10, 12, 3)]
    onnx = pytest.importorskip("onnx")
    assert [one.version for one in onnx.load(tmp_path / "m.onnx").opset_import if one.domain == ""] == [15]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "Expected one run directory or .keras file"),
        (["nothing.keras"], "Received: 'nothing.keras', which does not exist"),
        (["run", "--quantization=int4"], "Received: quantization='int4'. Did you mean 'int8'?"),
        (["run", "--format=onnx", "--quantization=int8"], "Expected --quantization with LiteRT only"),
        (["run", "--opset=13"], "Expected --opset with ONNX only. Received: format='litert', opset=13"),
        (["run", "--input_shape=8,x"], "Expected positive ints such as 32,32,3. Received: input_shape=['8', 'x']"),
        (["run/model.keras", "--output=none/x.tflite"], "folder that can be written"),
        (["unfinished"], "Expected a .keras file or a finished run. Received: 'unfinished', which holds no model"),
        *thorough(
            (["run", "--quantization=int8,float16", "--output=m.tflite"], "one with --output"),
            (
                ["run", "--io_dtype=int8"],
                "Expected --io_dtype with int8 only. Received: io_dtype='int8'",
            ),
            (["run", "--output=/dev/null"], "Expected a path of a file. Received: path='/dev/null'"),
            (["run", "--dataset=cifar10"], "a run has its own data set. Received: dataset='cifar10'"),
            (["run", "--image_size=8"], "a run has its own data set. Received: dataset=None, image_size=8"),
            (["run/model.keras", "--dataset=digits", "--image_size=8"], "'digits' has images of a fixed size"),
            (["run/model.keras", "--quantization=int8", "--output=x.tflite"], "expected representative_data"),
            (["run", "--max_accuracy_drop=nan", "--output=x.tflite"], "Received: max_accuracy_drop=nan"),
            (["run", "--format=onnx", "--output=x.tflite"], "Expected a path for 'onnx'. Received: output='x.tflite'"),
            (
                ["run", "--output=x.tflite/"],
                "Expected a path that ends in the name of a file. Received: path='x.tflite/'",
            ),
            (["run/model.keras", "--data_dir=d", "--output=x.tflite"], "Expected --dataset with --data_dir and"),
            (["text.keras"], "Expected a Keras model in a .keras file"),
            (["nowhere"], "Received: 'nowhere', which does not exist"),
        ),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_no_file(short, arguments, message):
    folder, _ = short
    (folder / "text.keras").write_text("no model")
    (folder / "unfinished").mkdir(exist_ok=True)
    (folder / "unfinished" / "flags.txt").write_text("--model=resnet8")
    done = commands.run("export", *arguments, cwd=folder)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "elrt-export: error: " in done.stderr and message in done.stderr, done.stderr[-1500:]
    assert not (folder / "x.tflite").exists() and not list(folder.glob("*.tmp"))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["litert"], "Expected .tflite files or run directories"),
        (["litert", "none.tflite"], "Expected .tflite files or run directories. Received: 'none.tflite', which"),
        (["litert", "text.tflite"], "Expected a LiteRT model. Received: text.tflite"),
        (["litert", "empty"], "Expected LiteRT files in 'empty/export': run `elrt-export empty` first"),
        (["litert", "other.tflite"], "Expected a report of elrt-export. Received: 'other.tflite.json'"),
        (["litert", "run", "--batch_size=8"], "Expected flags of elrt-benchmark litert alone"),
        (["litert", "run", "--plot=l.xyz"], "Expected a plot of a kind in"),
        (["litert", "plain.tflite", "--plot=p.png"], "Expected files whose report of elrt-export has an"),
        (["litert", "run", "--output=/dev/null"], "Expected a path of a file. Received: output='/dev/null', a device"),
        (
            ["litert", "run", "--output=none/l.json"],
            "Expected a path in a folder that can be written. Received: output=",
        ),
        (["litert", "run", "--plot=none/l.png"], "Expected a path in a folder that can be written. Received: plot="),
    ],
    ids=str,
)
def test_bad_input_to_the_benchmark(exported, arguments, message):
    folder, _ = exported
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "text.tflite").write_text("no model")
    for name in ("plain", "other"):
        (folder / f"{name}.tflite").write_bytes((folder / "run" / "export" / "low_rank_int8.tflite").read_bytes())
    (folder / "other.tflite.json").write_text("[]")
    done = commands.run("benchmark", *arguments, cwd=folder)
    assert done.returncode == 2 and f"elrt-benchmark: error: {message}" in done.stderr, done.stderr[-1500:]


@pytest.mark.thorough
def test_quantisation_aware_fine_tuning_of_a_finished_run(exported):
    folder, _ = exported
    arguments = ("--run_dir=run", "--quantization_aware", "--quantization_aware_epochs=2")
    done = commands.run("train", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    tuned = folder / "run" / "quantization_aware"
    summary = json.loads((tuned / "summary.json").read_text())
    run = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["float_accuracy"] == run["test_accuracy"] and summary["epochs"] == 2
    assert summary["accuracy"] > run["test_accuracy"] - 0.05
    assert summary["size_bytes"] == (tuned / "model.tflite").stat().st_size
    assert f"int8 accuracy {summary['accuracy']:.2%}" in done.stdout
    assert len((tuned / "history.csv").read_text().splitlines()) == 3
    before = (tuned / "model.tflite").read_bytes()
    again = commands.run("train", *arguments, cwd=folder)
    assert again.returncode == 0 and "Already finished: run/quantization_aware" in again.stdout
    other = commands.run("train", *arguments[:2], "--quantization_aware_epochs=3", cwd=folder)
    assert other.returncode == 2 and "holds a fine-tuning with" in other.stderr
    refused = commands.run("train", *arguments, "--seed=7", cwd=folder)
    assert refused.returncode == 2 and "another configuration. Received: --seed: there 0, now 7" in refused.stderr
    assert (tuned / "model.tflite").read_bytes() == before


@pytest.mark.thorough
def test_a_fine_tuning_whose_numbers_go_wrong_ends_with_what_to_do(exported, tmp_path):
    shutil.copytree(exported[0] / "run", tmp_path / "run", ignore=shutil.ignore_patterns("quantization_aware"))
    with pytest.raises(ValueError, match="try a lower --quantization_aware_learning_rate"):
        quantized.run(str(tmp_path / "run"), 1, 1e30)
    assert not (tmp_path / "run" / "quantization_aware" / "summary.json").exists()


def test_the_example_classifies_image_files(short, tmp_path):
    """Compares with Keras on the same pixels; a file that is not an image is named and does not stop the others."""
    from PIL import Image

    folder, _ = short
    model = keras.models.load_model(folder / "run" / "model.keras", compile=False)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (3, 8, 8), dtype="uint8")
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, image in zip(paths, pixels):
        Image.fromarray(image).save(path)
    (tmp_path / "text.png").write_text("no image")
    program = pathlib.Path(__file__).resolve().parents[2] / "examples" / "classify.py"
    arguments = [f"--model={folder}/run/export/low_rank_float32.tflite", "--top_k=2", *paths, tmp_path / "text.png"]
    done = subprocess.run([sys.executable, program, *map(str, arguments)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and "text.png: no image that can be read" in done.stderr
    scores = model.predict(pixels[..., None].astype("float32"), verbose=0)
    for path, row, line in zip(paths, scores, done.stdout.splitlines(), strict=True):
        first, second = np.argsort(row)[::-1][:2]
        assert line == f"{path}: {first} {row[first]:.1%}, {second} {row[second]:.1%}"
    # A model without class names numbers its classes.
    content = (folder / "run" / "export" / "low_rank_float32.tflite").read_bytes()
    (tmp_path / "plain.tflite").write_bytes(content.replace(b"labels.txt", b"no-labels!"))
    plain = [program, f"--model={tmp_path}/plain.tflite", paths[0]]
    done = subprocess.run([sys.executable, *map(str, plain)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and done.stdout.startswith(f"{paths[0]}: {np.argmax(scores[0])} ")
    Image.fromarray(257 * pixels[0].astype("uint16")).save(tmp_path / "deep.png")  # the first image in 16 bits
    deep = [program, f"--model={folder}/run/export/low_rank_float32.tflite", paths[0], tmp_path / "deep.png"]
    done = subprocess.run([sys.executable, *map(str, deep)], capture_output=True, text=True, timeout=200)
    first, second = (line.split(": ", 1)[1] for line in done.stdout.splitlines())
    assert done.returncode == 0 and first == second
    int8 = [program, f"--model={folder}/run/export/low_rank_int8.tflite", paths[0]]
    done = subprocess.run([sys.executable, *map(str, int8)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and done.stdout.startswith(f"{paths[0]}: ")


@pytest.fixture
def pictures(tmp_path):
    """Image files of several kinds and sizes."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype="uint8")
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    Image.fromarray(pixels[:8, :8, 0]).save(tmp_path / "grey.png")
    Image.fromarray(257 * pixels[..., 0].astype("uint16")).save(tmp_path / "deep.png")
    return ["photo.jpg", "grey.png", "deep.png"]


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_the_command_classifies_as_the_example_does(short, tmp_path, pictures, kind):
    folder, _ = short
    path = folder / "run" / "export" / f"low_rank_{kind}.tflite"
    program = pathlib.Path(__file__).resolve().parents[2] / "examples" / "classify.py"
    example = [sys.executable, program, f"--model={path}", "--top_k=2", *pictures]
    expected = subprocess.run(list(map(str, example)), cwd=tmp_path, capture_output=True, text=True, timeout=200)
    done = commands.run("classify", path, "--top_k=2", *pictures, cwd=tmp_path)
    assert done.returncode == expected.returncode == 0, done.stderr[-2000:]
    assert done.stdout == expected.stdout and len(done.stdout.splitlines()) == 3


def test_images_that_cannot_be_read_are_named(short, tmp_path, pictures):
    folder, _ = short
    path = folder / "run" / "export" / "low_rank_float32.tflite"
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "photo.jpg").read_bytes()[:600])
    done = commands.run("classify", path, "text.png", *pictures, "cut.jpg", "missing.png", cwd=tmp_path)
    assert done.returncode == 1 and [line.split(": ")[0] for line in done.stdout.splitlines()] == pictures
    told = [line.split(": ")[:3] for line in done.stderr.splitlines() if line.startswith("elrt-classify")]
    unread = ("text.png", "cut.jpg", "missing.png")
    assert told == [["elrt-classify", name, "no image that can be read"] for name in unread]
    assert commands.run("classify", path, *unread, cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "Expected a model and images: elrt-classify FILE.tflite IMAGE… Received: []"),
        (["model.tflite"], "Received: ['model.tflite']"),
        (["model.tflite", "photo.jpg"], "Expected a LiteRT model. Received: model.tflite"),
        (["photo.jpg", "photo.jpg"], "Expected a LiteRT model. Received: photo.jpg"),
    ],
)
def test_what_cannot_classify_is_refused_in_one_line(tmp_path, pictures, arguments, message):
    done = commands.run("classify", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert message in [line for line in done.stderr.splitlines() if line.startswith("elrt-classify: error: ")][-1]
