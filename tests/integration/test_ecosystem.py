"""The examples with other packages of the ecosystem, as a user starts them: real processes, real files."""

import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from common import to_numpy

import elrt_keras as elrt

ECOSYSTEM = pathlib.Path(__file__).resolve().parents[2] / "examples" / "ecosystem"
pytestmark = [pytest.mark.thorough, pytest.mark.tensorflow]


def run(name, *arguments, cwd, **environment):
    """Runs an example and returns its output."""
    command = [sys.executable, str(ECOSYSTEM / f"{name}.py"), *arguments]
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def numbers(text):
    """The numbers of a line, without commas between thousands."""
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?(?:e-\d+)?", text)]


def line(output, start):
    (found,) = [text for text in map(str.strip, output.splitlines()) if text.startswith(start)]
    return found.removeprefix(start)


def test_a_backbone_of_keras_hub(tmp_path):
    pytest.importorskip("keras_hub")
    output = run("keras_hub_backbone", "--max_macs=0.4", "--epochs=3", "--output=classifier.keras", cwd=tmp_path)
    *dense_shape, dense_macs, dense_params = numbers(line(output, "dense "))
    *low_shape, low_macs, low_params = numbers(line(output, "low-rank "))
    assert low_shape == dense_shape == [4, 4, 128]
    assert 0.38 * dense_macs < low_macs <= 0.4 * dense_macs and low_params < dense_params
    assert numbers(line(output, "epoch 3: test accuracy "))[0] > 80

    classifier = keras.models.load_model(tmp_path / "classifier.keras", compile=False)
    assert elrt.count_costs(classifier.backbone).macs == low_macs
    assert classifier.predict(np.zeros((2, 32, 32, 3)), verbose=0).shape == (2, 10)
    # The features of the chains are those of the dense backbone after merging.
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype("float32")
    merged = elrt.merge(classifier.backbone)
    assert elrt.count_costs(merged).macs == dense_macs
    features = to_numpy(classifier.backbone(images))
    np.testing.assert_allclose(to_numpy(merged(images)), features, atol=1e-4 * np.abs(features).max())


def test_a_tuner_over_ranks_and_strength(tmp_path):
    pytest.importorskip("keras_tuner")
    arguments = ["--trials=3", "--epochs=2", "--price=0.2", "--directory=tuner"]
    rows = [row.split() for row in run("tune_ranks", *arguments, cwd=tmp_path).splitlines()[2:]]
    assert len(rows) == 3
    trials = {}
    for path in tmp_path.glob("tuner/ranks/trial_*/trial.json"):
        trial = json.loads(path.read_text(encoding="utf-8"))
        trials[trial["trial_id"]] = trial
    space = {entry["config"]["name"]: entry["config"] for entry in trials["0"]["hyperparameters"]["space"]}
    assert {(name, entry["max_value"]) for name, entry in space.items()} == {
        *(("conv2_in", 32), ("conv2_out", 32), ("conv3_in", 32), ("conv3_out", 64)),
        *(("conv4_in", 64), ("conv4_out", 64), ("rho", 0.1)),
    }
    # Dense and low-rank MACs by hand: 8×8 positions, 4×4 from conv3 on, whose first stage sees 8×8.
    dense = 64 * 9 * 32 + 64 * 9 * 32 * 32 + 16 * 9 * 32 * 64 + 16 * 9 * 64 * 64 + 640
    scores = []
    for trial_id, *printed_ranks, rho, part, accuracy, score in rows:
        found = trials[trial_id]["hyperparameters"]["values"]
        ranks = [(found[f"{name}_in"], found[f"{name}_out"]) for name in ("conv2", "conv3", "conv4")]
        assert printed_ranks == [f"{r_in}×{r_out}" for r_in, r_out in ranks]
        assert float(rho) == pytest.approx(found["rho"], rel=0.05) and 1e-4 <= found["rho"] <= 1e-1
        macs = 64 * 9 * 32 + 640
        sizes = [(64, 64, 32, 32), (64, 16, 32, 64), (16, 16, 64, 64)]
        for (size_in, size_out, c_in, c_out), (r_in, r_out) in zip(sizes, ranks):
            chain = size_in * c_in * r_in + size_out * (9 * r_in * r_out + r_out * c_out)
            macs += min(chain, size_out * 9 * c_in * c_out)  # a layer runs the cheaper way
        assert float(part.rstrip("%")) == pytest.approx(100 * macs / dense, abs=0.051)
        expected = float(accuracy.rstrip("%")) / 100 - 0.2 * macs / dense
        assert float(score) == pytest.approx(expected, abs=1e-3)
        scores.append(float(score))
    assert scores == sorted(scores, reverse=True)
    assert len({str(trial["hyperparameters"]["values"]) for trial in trials.values()}) == 3


def test_summaries_for_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    run("tensorboard_summaries", "--run_dir=logs", "--epochs=3", "--strength=0.1", cwd=tmp_path)
    events = {}
    for part in ("train", "validation", "low_rank"):
        accumulator = EventAccumulator(str(tmp_path / "logs" / part), size_guidance={"tensors": 0})
        accumulator.Reload()
        for tag in accumulator.Tags()["tensors"]:
            events[f"{part}/{tag}"] = [make_ndarray(event.tensor_proto) for event in accumulator.Tensors(tag)]
    scalars = {tag: np.array(values) for tag, values in events.items() if values[0].dtype.kind == "f"}

    model = keras.models.load_model(tmp_path / "logs" / "model.keras")
    names = ("conv2", "conv3", "conv4")
    factors = {f"{name}/{factor}" for name in names for factor in ("factor_in", "factor_out")}
    errors = {
        tag.removeprefix("low_rank/orthogonality_error/"): values
        for tag, values in scalars.items()
        if "low_rank/orthogonality_error/" in tag
    }
    assert set(errors) == factors and all(len(values) == 3 for values in errors.values())
    for which, reduce in (("mean", np.mean), ("max", np.max)):
        expected = reduce(list(errors.values()), axis=0)
        np.testing.assert_allclose(scalars[f"train/epoch_orthogonality_error_{which}"], expected, rtol=1e-5)
    for name in names:
        layer = model.get_layer(name)
        for index, factor in ((0, "factor_in"), (2, "factor_out")):
            matrix = to_numpy(layer.factors[index])[0, 0]
            singular = np.linalg.svd(matrix, compute_uv=False)
            error = np.sqrt(np.mean((singular**2 - 1) ** 2))
            # The factors are float32: their Gram matrices have errors of about 1e-6.
            assert errors[f"{name}/{factor}"][-1] == pytest.approx(error, rel=1e-3, abs=1e-5)
        kernel = to_numpy(layer.kernel)
        for axis, rank_name, rank in ((2, "r_in", layer.ranks[0]), (3, "r_out", layer.ranks[1])):
            unfolding = np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
            stable = np.sum(unfolding**2) / np.linalg.norm(unfolding, 2) ** 2
            values = scalars[f"low_rank/stable_rank/{name}/{rank_name}"]
            assert len(values) == 3 and values[-1] == pytest.approx(stable, rel=1e-4) and (values <= rank + 1e-3).all()
    assert scalars["train/epoch_loss"][-1] < scalars["train/epoch_loss"][0]

    (table,) = events["low_rank/rank_plan/table"]
    assert all(name in table.item().decode() for name in names)
    pictures = [values[-1] for tag, values in events.items() if tag.endswith(("/spectra", "/picture"))]
    # Width and height as text, then the image.
    assert [len(values) for values in (events["low_rank/spectra"], events["low_rank/rank_plan/picture"])] == [3, 1]
    assert len(pictures) == 2 and all(bytes(picture.flat[2]).startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.slow
def test_two_devices_on_jax_train_as_one(tmp_path):
    pytest.importorskip("jax")
    # In float64, rounding errors are too small to show in the losses, which Keras reports in float32.
    settings = {"floatx": "float64", "backend": "jax", "epsilon": 1e-7, "image_data_format": "channels_last"}
    (tmp_path / "keras.json").write_text(json.dumps(settings), encoding="utf-8")
    environment = {
        "KERAS_BACKEND": "jax",
        "KERAS_HOME": str(tmp_path),
        "JAX_ENABLE_X64": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    parts = {
        "none": ["(1, 1, 64, 32) on each of 1", "(3, 3, 32, 32) on each of 1", "(1, 1, 32, 64) on each of 1"],
        "data": ["(1, 1, 64, 32) on each of 2", "(3, 3, 32, 32) on each of 2", "(1, 1, 32, 64) on each of 2"],
        "model": ["(1, 1, 64, 16) on each of 2", "(3, 3, 16, 32) on each of 2", "(1, 1, 32, 32) on each of 2"],
    }
    losses = {}
    for parallel, expected in parts.items():
        output = run("jax_distribution", f"--parallel={parallel}", "--epochs=2", cwd=tmp_path, **environment)
        for factor, part in zip(("factor_in", "core", "factor_out"), expected):
            assert part in re.search(rf"conv4/{factor}: .*", output)[0]
        losses[parallel] = [numbers(line(output, f"epoch {epoch}: loss "))[0] for epoch in (1, 2)]
    assert losses["none"][1] < losses["none"][0] / 2
    for parallel in ("data", "model"):
        np.testing.assert_allclose(losses[parallel], losses["none"], rtol=5e-6)  # printed to six decimals
