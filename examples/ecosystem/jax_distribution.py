"""Low-rank training on several devices with `keras.distribution`, on the JAX backend.

  XLA_FLAGS=--xla_force_host_platform_device_count=2 python examples/ecosystem/jax_distribution.py --parallel=data
  XLA_FLAGS=--xla_force_host_platform_device_count=2 python examples/ecosystem/jax_distribution.py --parallel=model

The variable makes two devices of one CPU; leave it out on a machine with GPUs or TPUs. All three ways give the same
weights, up to rounding:

  none    one device
  data    every device has all weights and a part of each batch
  model   every device has a part of the factor matrices, and all of each batch
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
from absl import app, flags, logging
from sklearn.datasets import load_digits

import elrt_keras as elrt

_PARALLEL = flags.DEFINE_enum("parallel", "data", ["none", "data", "model"], "What the devices share.")
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Epochs of training.")


def distribution(parallel):
    """Makes a `keras.distribution` over all devices, or `None` for one device."""
    devices = keras.distribution.list_devices()
    if parallel == "none":
        return None
    if parallel == "data":
        return keras.distribution.DataParallel(devices=devices)
    mesh = keras.distribution.DeviceMesh((1, len(devices)), ["batch", "model"], devices)
    layout = keras.distribution.LayoutMap(mesh)
    # Factors are kernels of convolutions, `(height, width, in, out)`. Each device has a part of the r_in channels
    # (columns of U_in, rows of the core) and a part of the C_out channels (columns of U_out).
    layout[".*factor_in"] = (None, None, None, "model")
    layout[".*core"] = (None, None, "model", None)
    layout[".*factor_out"] = (None, None, None, "model")
    return keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")


def build():
    """Builds a low-rank network for images of 8×8 pixels."""
    model = keras.Sequential([keras.Input((8, 8, 1))])
    for number, (filters, strides) in enumerate([(32, 1), (32, 1), (64, 2), (64, 1)], start=1):
        name = f"conv{number}"
        model.add(keras.layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False, name=name))
        model.add(keras.layers.BatchNormalization())
        # Use a smooth activation: at the kink of a ReLU, rounding differs between layouts and can change a gradient.
        model.add(keras.layers.Activation("gelu"))
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(10, activation="softmax", name="classifier"))
    penalty = elrt.regularizers.DoubleSoftOrthogonality(1e-2)
    return elrt.factorize(model, elrt.plan_ranks(model, max_macs=0.4), factor_regularizer=penalty)


def main(argv):
    """Trains on the digits and prints the losses."""
    logging.set_verbosity(logging.WARNING)  # hides the note that there is no TPU
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32") / 8 - 1
    # Set the distribution before the model is made: new variables are placed on the devices at once.
    keras.distribution.set_distribution(distribution(_PARALLEL.value))
    keras.utils.set_random_seed(0)
    model = build()
    for factor in model.get_layer("conv4").factors:
        shards = factor.value.addressable_shards
        print(f"{factor.path}: {tuple(factor.shape)}, {shards[0].data.shape} on each of {len(shards)} device(s)")
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy")
    count = len(images) // 64 * 64  # full batches, which divide over the devices
    losses = model.fit(images[:count], labels[:count], batch_size=64, epochs=_EPOCHS.value, verbose=0).history["loss"]
    for epoch, loss in enumerate(losses, start=1):
        print(f"epoch {epoch}: loss {loss:.6f}")


if __name__ == "__main__":
    app.run(main)
