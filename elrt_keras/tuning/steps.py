"""Forward and backward pass of one layer, on every backend, and the key of the device."""

import os
from collections.abc import Callable, Sequence

import keras
import numpy as np

from elrt_keras.kept_times import processor, processor_kind
from elrt_keras.layers import FactorizedLayer, TrainingWay


def training_pass(
    layer: FactorizedLayer, way: TrainingWay, input_shape: Sequence[int], jit_compile: bool
) -> Callable[..., None]:
    """Returns a function that runs a layer forward and backward on random inputs. It has already run once.

    The outputs serve as their own gradient. A call returns when all results are computed. For short passes the function
    can repeat them: `function(count)`.

    Args:
        layer: a built layer; it does not change.
        way: one of its `training_ways`.
        input_shape: shape of the inputs, with the batch.
        jit_compile: whether TensorFlow compiles with XLA; JAX always does.
    """
    dtype = layer.compute_dtype
    inputs = np.random.default_rng(0).standard_normal(input_shape, "float32")
    inputs = keras.ops.convert_to_tensor(inputs, dtype=dtype)
    factors = [keras.ops.convert_to_tensor(keras.ops.convert_to_numpy(factor)) for factor in layer.factors]

    def outputs_of(inputs, factors):
        # Variables are cast in every step, and their gradients back.
        return layer.run_training(inputs, [keras.ops.cast(factor, dtype) for factor in factors], way)

    gradients = _GRADIENTS[keras.backend.backend()](outputs_of, inputs, factors, jit_compile)

    def run(count=1):
        for _ in range(count - 1):
            gradients()
        last = gradients()
        # The gradients of the factors are small. When the last one is computed, the whole pass is.
        keras.ops.convert_to_numpy(last)

    run()
    return run


def has_accelerator() -> bool:
    """Reports if the backend computes on another device than CPUs."""
    if keras.backend.backend() == "torch":  # for which Keras lists no devices
        import torch

        return torch.cuda.is_available() or torch.backends.mps.is_available()
    return any(not device.startswith("cpu") for device in keras.distribution.list_devices())


def device_key(jit_compile: bool) -> str:
    """Returns text that identifies the conditions of training times: backend, device and threads."""
    backend = keras.backend.backend()
    return f"Keras {keras.__version__}, {_DEVICES[backend]()}, XLA {jit_compile}"


def _of_tensorflow(outputs_of, inputs, factors, jit_compile):
    import tensorflow as tf

    def gradients(inputs, factors):
        with tf.GradientTape() as tape:
            tape.watch([inputs, factors])
            outputs = outputs_of(inputs, factors)
        return tape.gradient(outputs, [inputs, *factors], output_gradients=outputs)

    # Traced by itself: TensorFlow warns of many functions that are traced once.
    concrete = tf.function(gradients, jit_compile=jit_compile).get_concrete_function(inputs, factors)
    return lambda: concrete(inputs, factors)[-1]


def _of_jax(outputs_of, inputs, factors, jit_compile):
    import jax

    @jax.jit
    def gradients(inputs, factors):
        outputs, pull_back = jax.vjp(outputs_of, inputs, factors)
        return pull_back(outputs)

    return lambda: gradients(inputs, factors)[1][-1]


def _of_torch(outputs_of, inputs, factors, jit_compile):
    import torch

    leaves = [inputs.detach().requires_grad_(), *(factor.detach().requires_grad_() for factor in factors)]

    def gradients():
        outputs = outputs_of(leaves[0], leaves[1:])
        return torch.autograd.grad(outputs, leaves, outputs.detach())[-1]

    return gradients


def _tensorflow_device():
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else _processor()
    return f"TensorFlow {tf.__version__}, {name}, {tf.config.threading.get_intra_op_parallelism_threads()} threads"


def _jax_device():
    import jax

    device = jax.devices()[0]
    return f"JAX {jax.__version__}, {_processor() if device.platform == 'cpu' else device.device_kind}"


def _torch_device():
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return f"PyTorch {torch.__version__}, {name}, {torch.get_num_threads()} threads"


def _processor():
    threads = os.environ.get("OMP_NUM_THREADS") or os.cpu_count()
    return f"{processor()} (kind {processor_kind()}), {threads} cores"


_GRADIENTS = {"tensorflow": _of_tensorflow, "jax": _of_jax, "torch": _of_torch}
_DEVICES = {"tensorflow": _tensorflow_device, "jax": _jax_device, "torch": _torch_device}
