"""Exports do not change the process, also from several threads: standard error, warnings, verbosity, a live model."""

import os
import threading
import warnings

import commands
import keras
import numpy as np
import pytest
from absl import logging
from common import model_of, random_array

import elrt_keras as elrt
from elrt_keras import litert
from elrt_keras.litert.shared import shared

pytestmark = pytest.mark.tensorflow


def test_the_first_makes_the_change_and_the_last_undoes_it():
    inside, log = [], []

    class Change:
        def __enter__(self):
            log.append("made")

        def __exit__(self, *error):
            log.append("undone")

    first, second = shared("key", Change), shared("key", Change)
    with shared("another", Change):
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert log == ["made", "made"] and not inside
    assert log == ["made", "made", "undone"]
    second.__exit__(None, None, None)
    assert log == ["made", "made", "undone", "undone"]
    with pytest.raises(KeyError), shared("key", Change):
        raise KeyError
    assert log[4:] == ["made", "undone"]


def state():
    return os.readlink("/proc/self/fd/2"), logging.get_verbosity(), list(warnings.filters)


@pytest.mark.thorough
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_threads_that_export_leave_everything_as_it_was(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = model_of(keras.layers.Conv2D(8, 3, name="body"), keras.layers.Flatten(), keras.layers.Dense(3))
    finally:
        keras.config.set_dtype_policy("float32")
    images, errors, before = random_array(2, 8, 8, 6), [], state()
    expected = np.asarray(model(images))
    policies = [layer.dtype_policy.name for layer in model.layers]

    def export(number):
        try:
            elrt.export.to_litert(model, tmp_path / f"{number}.tflite", evaluation_data=images)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=export, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outputs = [litert.Runner(path.read_bytes())(images) for path in tmp_path.iterdir()]
    assert not errors and len(outputs) == 4
    assert all(np.array_equal(outputs[0], other) for other in outputs[1:])
    assert [layer.dtype_policy.name for layer in model.layers] == policies
    assert state() == before
    np.testing.assert_array_equal(np.asarray(model(images)), expected)


PROGRAM = """
import os, sys
os.close(2) if sys.argv[1] == "closed" else None
sys.stderr = None
import keras, elrt_keras
model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3, name="c"), keras.layers.Flatten()])
low = elrt_keras.factorize(model, {"c": ("svd", 2)}, factor_initializer="decomposed")
elrt_keras.export.to_litert(low, "model.tflite")
print("done")
"""


@pytest.mark.parametrize("kind", ["closed", pytest.param("none", marks=pytest.mark.thorough)])
def test_programs_without_a_standard_error_decompose_and_export(tmp_path, kind):
    done = commands.program(PROGRAM, kind, cwd=tmp_path)
    assert done.stdout.strip().endswith("done") and (tmp_path / "model.tflite").exists()
