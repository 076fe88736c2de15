"""Several training steps in one compiled call, against Keras' own steps."""

import keras
import numpy as np
import pytest

import elrt_keras as elrt
from benchmarks.measure.networks import random_batch

if keras.backend.backend() != "jax":
    pytest.skip("JAX alone compiles several steps into a call", allow_module_level=True)

import jax

from benchmarks.measure import kernels
from benchmarks.measure.device_steps import compiled_steps


def small_model():
    keras.utils.set_random_seed(0)
    penalty = elrt.regularizers.BY_NAME["dso"](0.1)
    layers = (
        elrt.layers.Tucker2Conv2D(6, 3, ranks=(2, 3), factor_regularizer=penalty),
        keras.layers.BatchNormalization(),
        keras.layers.Flatten(),
        keras.layers.Dense(3, activation="softmax"),
    )
    return keras.Sequential([keras.Input((8, 8, 4)), *layers])


def test_a_call_of_three_steps_trains_what_three_batches_do():
    call = compiled_steps({"small": small_model()}, 6, 3)["small"]  # has been called once
    model = small_model()
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True), "categorical_crossentropy")
    losses = [float(model.train_on_batch(*random_batch(model, 6))) for _ in range(9)]
    assert call() == pytest.approx(losses[5], rel=1e-4)
    assert call() == pytest.approx(losses[8], rel=1e-4)
    assert losses[8] < losses[5] - 1e-3


def test_a_network_as_products_trains_as_its_chains_do():
    """Compares matrix products with convolutions: both must be the same function."""
    calls = {}
    for change in (lambda model: model, kernels.run_as_products):
        calls |= compiled_steps({change.__name__: change(small_model())}, 6, 3)
    chain, products = (call() for call in calls.values())
    assert products == pytest.approx(chain, rel=1e-4)
    layer = kernels.run_as_products(small_model()).layers[0]
    text = str(jax.make_jaxpr(lambda images: layer(images, training=True))(np.zeros((1, 8, 8, 4), "float32")))
    assert text.count("dot_general") == 2 and text.count("conv_general_dilated[") == 1


def test_kernels_are_told_apart_by_what_they_compute():
    scope = "jit(steps)/while/body/transpose(jvp(stage1_block1_1_conv))/conv_general_dilated"
    assert kernels.kind_of("sm90_xmma_wgrad", "cudnn-conv-bw-filter.2", scope) == "convolutions, gradient of kernels"
    assert kernels.kind_of("sm90_xmma", "cudnn-conv.1", "jvp(stem_conv)/conv_general_dilated") == "stem convolution"
    assert kernels.kind_of("cutlass_80_tensorop_s1688gemm_64x64", "command_buffer_1") == "matrix products, float32"
    assert kernels.kind_of("input_scatter_fusion", "command_buffer_2") == "pooling"
    assert kernels.kind_of("Memset 3") == "other"


def test_a_profile_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="Expected kernels of a GPU"):
        kernels.milliseconds(lambda: None, 1)
