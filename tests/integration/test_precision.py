"""Runs in mixed precision: the types of computations, and overflows that all replicas have to see."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from test_distribution import logs, start_workers, wait

import elrt_keras as elrt
from elrt_keras.launch import data, modeling, training
from elrt_keras.launch.config import TrainConfig

pytestmark = pytest.mark.thorough

PRECISIONS = ("mixed_bfloat16", "mixed_float16")


@pytest.fixture(scope="module")
def float32_loss():
    return start_of_training("float32")


def start_of_training(precision):
    """Trains some steps; returns their losses and the compiled model."""
    config = TrainConfig(model="resnet8", precision=precision, orthogonality_strength=1.0, batch_size=64, max_macs=0.4)
    digits = data.load("digits")
    keras.utils.set_random_seed(0)
    with modeling.precision(config):
        model = modeling.new_model(config, digits, 20)
        batches = list(digits.train_batches(config, 0).take(4))
        losses = [model.train_on_batch(*map(np.asarray, batch), return_dict=True)["loss"] for batch in batches]
    return [float(np.asarray(loss)) for loss in losses], model


@pytest.mark.parametrize("precision", PRECISIONS)
def test_layers_compute_in_16_bits_and_penalties_in_32(precision, float32_loss):
    losses, model = start_of_training(precision)
    np.testing.assert_allclose(losses, float32_loss[0], rtol=0.03)
    assert keras.config.dtype_policy().name == "float32"  # as it was
    low_rank = [layer for layer in model.layers if isinstance(layer, elrt.layers.FactorizedLayer)]
    assert len(low_rank) > 4 and {layer.compute_dtype for layer in low_rank} == {precision.removeprefix("mixed_")}
    assert model.get_layer("classifier").compute_dtype == "float32"
    assert {keras.backend.standardize_dtype(weight.dtype) for weight in model.trainable_weights} == {"float32"}
    # Models with the same weights have the same penalty to 32 bits; with 16 bits it would differ by 1e-3.
    twin = float32_loss[1]
    twin.set_weights(model.get_weights())
    penalty, expected = (float(keras.ops.convert_to_numpy(sum(one.losses))) for one in (model, twin))
    assert keras.backend.standardize_dtype(model.losses[0].dtype) == "float32"
    np.testing.assert_allclose(penalty, expected, rtol=1e-6)
    assert elrt.callbacks.factor_errors(model) == elrt.callbacks.factor_errors(twin)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (precision == "mixed_float16")


@pytest.mark.tensorflow
@pytest.mark.parametrize("precision", [pytest.param(PRECISIONS[0], marks=pytest.mark.slow), PRECISIONS[1]])
def test_a_run_in_mixed_precision_leaves_a_float32_model(tmp_path, precision):
    """Trains with full-rank warm-up, saves and loads a checkpoint, and exports to LiteRT."""
    config = TrainConfig(precision=precision, model="resnet8", smoke=True, warmup_epochs="1", checkpoint_minutes=1e-4)
    summary = training.run(config, str(tmp_path / "run"))
    assert summary["precision"] == precision and summary["full_rank_epochs"] == 1
    assert np.isfinite(summary["test_loss"])
    model = keras.models.load_model(tmp_path / "run" / "model.keras")
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"} and not model.compiled
    report = elrt.export.to_litert(model, str(tmp_path / "model.tflite"))
    assert report.max_difference < 1e-3


OVERFLOW = """
import json, sys
import numpy as np
from elrt_keras.launch import optimization, strategies
several = json.loads(sys.argv[1])
distribution = strategies.start("multi_worker") if several else strategies.start("mirrored", num_cpus=2)
import keras
import tensorflow as tf

with distribution.scope():
    half = keras.layers.Dense(3, dtype="mixed_float16")
    model = keras.Sequential([keras.Input((4,)), half, keras.layers.Dense(1, dtype="float32")])
    scaling = optimization.LossScaling(keras.optimizers.SGD(0.01), initial_scale=1024.0)
    model.compile(scaling, "mse", jit_compile=False)
    before = model.get_weights()

images = np.ones((24, 4), "float32")
images[:4] = images[12:16] = 6e4  # times the gradient more than float16 has: at steps 1 and 2, on a replica each

def batches_of(shard):
    # Step 1: the first replica's half of the batch overflows; step 2: the second's; step 3: none.
    data = tf.data.Dataset.from_tensor_slices((images, np.ones((24, 1), "float32"))).batch(8)
    worker, workers = shard
    part = 8 // workers
    return data.map(lambda x, y: (x[worker * part : (worker + 1) * part], y[worker * part : (worker + 1) * part]))

told = []
class Note(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        same = all(np.array_equal(a, b) for a, b in zip(before, model.get_weights()))
        scale, steps = map(keras.ops.convert_to_numpy, (scaling.dynamic_scale, scaling.iterations))
        told.append([same, float(scale), int(steps)])

model.fit(distribution.spread(batches_of, 8), steps_per_epoch=3, callbacks=[Note()], verbose=0)
print("told", json.dumps([*told, bool(all(np.isfinite(w).all() for w in model.get_weights()))]))
"""
EXPECTED = [[True, 512.0, 0], [True, 256.0, 0], [False, 256.0, 1], True]


def told(output):
    return json.loads(next(line for line in output.splitlines() if line.startswith("told"))[5:])


@pytest.mark.tensorflow
def test_an_overflow_on_any_replica_skips_the_step_on_all(tmp_path):
    arguments = [sys.executable, "-c", OVERFLOW, "false"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert told(done.stdout) == EXPECTED


@pytest.mark.tensorflow
@pytest.mark.slow
def test_an_overflow_on_any_worker_skips_the_step_on_all(tmp_path):
    (tmp_path / "program.py").write_text(OVERFLOW)
    assert wait(start_workers(tmp_path, 2, "true", program="program.py"), 200) == [0, 0], logs(tmp_path, 1)[0][-3000:]
    assert [told(log) for log in logs(tmp_path, 2)] == [EXPECTED] * 2
