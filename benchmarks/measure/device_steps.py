"""Training steps on an accelerator: several in one compiled call, so that Python's part does not count. JAX alone."""

import concurrent.futures
import fcntl
import pathlib
import tempfile

import jax
import keras
import numpy as np

from benchmarks.measure.variants import random_batch
from benchmarks.train.in_memory import on_host


def alone():
    """Waits until no other process holds the device for timing, and holds it until this process ends.

    XLA chooses kernels by their times, so neither its compiling nor the measurement may have others beside it; what
    comes before, building and tracing, may.
    """
    if _held:
        return
    lock = open(pathlib.Path(tempfile.gettempdir()) / "elrt_device.lock", "w", encoding="utf-8")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX)
    _held.append(lock)


_held = []


def compiled_steps(models, batch_size, count, seed=0):
    """Functions that train `count` steps in one call, on a fixed random batch, and return when they are done.

    Args:
        models: `{name: model}`; they are traced one by one and, once the device is free, compiled side by side.

    Returns:
        `{name: function}`, each already called once.
    """
    lowered = {}
    for name, model in models.items():
        optimizer, loss = (
            keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True),
            keras.losses.CategoricalCrossentropy(),
        )
        model.compile(optimizer, loss)
        with on_host():
            model.optimizer.build(model.trainable_variables)
        lowered[name] = _lowered(model, random_batch(model, batch_size, seed), count)
        print(f"{name}: traced", flush=True)
    alone()
    print("compiling", flush=True)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiled = list(pool.map(lambda one: one[0].compile(), lowered.values()))
    functions = {}
    for (name, (_, state, batch)), executable in zip(lowered.items(), compiled):
        functions[name] = _caller(executable, state, batch)
        loss = functions[name]()
        if not np.isfinite(loss):
            raise ValueError(f"Expected a finite loss. Received: {loss} of {name}")
    return functions


def _lowered(model, batch, count):
    """The traced call, the state it starts from and its batch."""

    def loss_of(trainable, fixed, images, targets):
        outputs, fixed, losses = model.stateless_call(trainable, fixed, images, training=True, return_losses=True)
        return model.loss(targets, outputs) + sum(losses), fixed

    def step(state, _, images, targets):
        trainable, fixed, slots = state
        (loss, fixed), slopes = jax.value_and_grad(loss_of, has_aux=True)(trainable, fixed, images, targets)
        trainable, slots = model.optimizer.stateless_apply(slots, slopes, trainable)
        return (trainable, fixed, slots), loss

    def steps(state, images, targets):
        state, losses = jax.lax.scan(lambda state, _: step(state, _, images, targets), state, length=count)
        return state, losses[-1]

    groups = (model.trainable_variables, model.non_trainable_variables, model.optimizer.variables)
    state = tuple([variable.value.copy() for variable in group] for group in groups)
    state, batch = jax.device_put((state, batch), jax.devices()[0])
    return jax.jit(steps, donate_argnums=0).lower(state, *batch), state, batch


def _caller(executable, state, batch):
    kept = [state]

    def call():
        kept[0], loss = executable(kept[0], *batch)
        return float(loss)

    return call
