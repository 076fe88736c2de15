"""Types other than the default: penalties in float64 and in half floats, exports of mixed-precision models."""

import contextlib

import keras
import numpy as np
import pytest
from common import random_factors, thorough_but, to_numpy

import elrt_keras as elrt
from elrt_keras import formats
from elrt_keras.layers.convolutions import layer_class

pytestmark = pytest.mark.backends

layers = keras.layers


@contextlib.contextmanager
def defaults(floatx, policy):
    """Context with these default float type and policy."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX computes in float32 unless it is told at its start")
@pytest.mark.parametrize("name", formats.names())
def test_kernel_decay_in_float64(name):
    form = formats.get(name)
    layer = layer_class(name, 2)(8, 3, 4, dtype="float64", kernel_regularizer=keras.regularizers.L2(0.3))
    layer.build((None, 8, 8, 6))
    factors = random_factors([factor.shape for factor in layer.factors])
    for variable, factor in zip(layer.factors, factors):
        variable.assign(factor)
    (loss,) = layer.losses
    kernel = to_numpy(form.compose([keras.ops.convert_to_tensor(f.astype("float64")) for f in factors]))
    assert keras.backend.standardize_dtype(loss.dtype) == "float64"
    np.testing.assert_allclose(to_numpy(loss), 0.3 * np.sum(kernel**2), rtol=1e-12)
    with defaults("float64", "float64"):
        model = keras.Sequential([keras.Input((8, 8, 6)), layer, layers.GlobalAveragePooling2D()])
        model.compile("sgd", "mse")
        model.fit(np.ones((2, 8, 8, 6)), np.ones((2, 8)), verbose=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["factors", "kernel", "stock"])
def test_penalties_train_where_half_floats_are_the_default(dtype, kind):
    penalty = elrt.regularizers.DoubleSoftOrthogonality(0.1)
    with defaults(dtype, dtype):
        layer = {
            "factors": lambda: elrt.layers.Tucker2Conv2D(8, 3, 4, factor_regularizer=penalty),
            "kernel": lambda: elrt.layers.Tucker2Conv2D(8, 3, 4, kernel_regularizer="l2"),
            "stock": lambda: layers.Conv2D(8, 3, kernel_regularizer=penalty),
        }[kind]()
        model = keras.Sequential([keras.Input((8, 8, 6)), layer, layers.GlobalAveragePooling2D()])
        model.compile("sgd", "mse")
        losses = model.fit(np.ones((2, 8, 8, 6)), np.ones((2, 8)), verbose=0).history["loss"]
    assert np.isfinite([float(loss) for loss in losses]).all()
    assert {keras.backend.standardize_dtype(weight.dtype) for weight in model.trainable_weights} == {dtype}


@pytest.fixture(params=thorough_but(("mixed_bfloat16",), ["mixed_float16", "mixed_bfloat16"]))
def mixed(request):
    """Builds a low-rank model with a nested one; returns it with images and its float32 outputs."""
    images = np.random.default_rng(0).uniform(0, 255, (16, 16, 16, 3)).astype("float32")
    outputs, weights = [], None
    keras.utils.set_random_seed(0)
    for policy in ("float32", request.param):
        with defaults("float32", policy):
            dense = elrt.models.build("resnet8", input_shape=(16, 16, 3), classes=4)
            low = elrt.factorize(dense, elrt.plan_ranks(dense, max_macs=0.4))
            inputs = keras.Input((16, 16, 3))
            model = keras.Model(inputs, layers.Rescaling(2.0, dtype="float32")(low(inputs)))
        weights = weights or model.get_weights()
        model.set_weights(weights)
        outputs.append(to_numpy(model(images)))
    assert 1e-4 < np.abs(outputs[0] - outputs[1]).max()  # float32 and mixed precision differ visibly
    return model, images, outputs


@pytest.mark.thorough
@pytest.mark.tensorflow
def test_mixed_precision_models_are_exported_as_they_compute_for_inference(mixed, tmp_path):
    model, images, (expected, half) = mixed
    litert = pytest.importorskip("elrt_keras.litert")
    report = elrt.export.to_litert(model, tmp_path / "m.tflite", evaluation_data=(images, np.zeros(16, int)))
    assert report.rms_difference < 1e-4
    found = litert.Runner((tmp_path / "m.tflite").read_bytes())(images)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    int8 = elrt.export.to_litert(model, tmp_path / "i.tflite", "int8", images)
    assert int8.operators["CONV_2D"] == report.operators["CONV_2D"]
    pytest.importorskip("tf_keras")
    twin = elrt.export.to_tf_keras(model)
    np.testing.assert_allclose(np.asarray(twin(images)), expected, atol=1e-5 * np.abs(expected).max())
    # The model itself has not changed.
    np.testing.assert_array_equal(to_numpy(model(images)), half)


@pytest.mark.thorough
@pytest.mark.tensorflow
def test_a_refused_export_leaves_the_policy_alone(mixed, tmp_path):
    model, images, (_, half) = mixed
    with pytest.raises(ValueError, match="tolerance"):
        elrt.export.to_litert(model, tmp_path / "m.tflite", tolerance=0.0, evaluation_data=(images, None))
    np.testing.assert_array_equal(to_numpy(model(images)), half)


@pytest.mark.thorough
@pytest.mark.tensorflow
def test_mixed_precision_models_as_graphs(mixed, tmp_path):
    model, images, (expected, half) = mixed
    import tensorflow as tf

    elrt.export.to_saved_model(model, tmp_path / "saved", evaluation_data=(images, np.zeros(16, int)))
    signature = tf.saved_model.load(tmp_path / "saved").signatures["serving_default"]
    found = signature(image=tf.constant(images))["scores"].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    pytest.importorskip("tf2onnx")
    runtime = pytest.importorskip("onnxruntime")
    elrt.export.to_onnx(model, tmp_path / "m.onnx", evaluation_data=(images, np.zeros(16, int)))
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images})
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(to_numpy(model(images)), half)


@pytest.mark.tensorflow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_in_half_floats_are_refused_by_name(dtype, tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(4, 3, dtype=dtype)])
    for export in (elrt.export.to_litert, elrt.export.to_onnx):
        with pytest.raises(ValueError, match=f"Expected weights in float32.*Received: .* with weights in {dtype}"):
            export(model, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.tensorflow
@pytest.mark.parametrize("penalty", thorough_but(("l2",), ["l1", "l2"]))
def test_penalties_of_outputs_do_not_hinder_an_export(penalty, tmp_path):
    pytest.importorskip("onnxruntime")
    layer = elrt.layers.Tucker2Conv2D(8, 3, 4, activity_regularizer=penalty)
    model = keras.Sequential([keras.Input((8, 8, 8)), layer, layers.GlobalAveragePooling2D()])
    for export, name in ((elrt.export.to_onnx, "m.onnx"), (elrt.export.to_litert, "m.tflite")):
        assert export(model, tmp_path / name, input_range=(-1, 1)).rms_difference < 1e-4
    assert layer.activity_regularizer is not None
    model(np.ones((1, 8, 8, 8), "float32"))
    assert float(sum(model.losses)) > 0


def test_policies_by_path_come_back():
    from elrt_keras.litert import for_inference

    policies = keras.dtype_policies.DTypePolicyMap("mixed_bfloat16")
    dense = layers.Dense(3, dtype=policies, name="dense")
    model = keras.Sequential([keras.Input((4,)), dense])
    with for_inference(model):
        assert dense.compute_dtype == "float32"
    assert dense.compute_dtype == "bfloat16" and dense.dtype_policy is policies


def test_a_float32_model_is_not_touched():
    from elrt_keras.litert import for_inference

    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, dtype="float64"), layers.Dense(2)])
    policies = [layer.dtype_policy for layer in model.layers]
    with for_inference(model):
        assert [layer.dtype_policy for layer in model.layers] == policies
