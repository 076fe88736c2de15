"""Training steps on an accelerator (JAX only). One compiled call has several steps, so Python's time does not count."""

import concurrent.futures
import fcntl
import pathlib
import tempfile

import jax
import keras

from benchmarks.measure.machine import on_host
from benchmarks.measure.networks import finite, optimizer, random_batch


def alone():
    """Waits until no other process holds the device for timing, and holds it until this process ends.

    XLA chooses kernels by their times. So compilation and measurement must have the device alone; building and tracing
    need not.
    """
    if _held:
        return
    lock = open(pathlib.Path(tempfile.gettempdir()) / "elrt_device.lock", "w", encoding="utf-8")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX)
    _held.append(lock)


_held = []


def compiled_steps(models, batch_size, count):
    """Compiles functions that train `count` steps in one call, on a fixed random batch, and wait for the result.

    Args:
        models: `{name: model}`; they are traced one by one and then, once the device is free, compiled in parallel.

    Returns:
        `{name: function}`, each already called once.
    """
    lowered = {}
    for name, model in models.items():
        model.compile(optimizer(), keras.losses.CategoricalCrossentropy())
        with on_host():
            model.optimizer.build(model.trainable_variables)
        lowered[name] = _lowered(model, random_batch(model, batch_size), count)
        print(f"{name}: traced", flush=True)
    alone()
    print("compiling", flush=True)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiled = list(pool.map(lambda one: one[0].compile(), lowered.values()))
    functions = {}
    for (name, (_, state, batch)), executable in zip(lowered.items(), compiled):
        functions[name] = _caller(executable, state, batch)
        finite(functions[name]())
    return functions


def functional_step(model):
    """Returns `step(state, images, targets)` of a compiled model; it returns the next state, the loss and the outputs.

    The state holds the values of the trainable, the other and the optimizer's variables.
    """

    def loss_of(trainable, fixed, slots, images, targets):
        metrics = [variable.value for variable in model.metrics_variables]
        loss, (_, outputs, fixed, _) = model.compute_loss_and_updates(
            trainable, fixed, metrics, images, targets, None, training=True, optimizer_variables=slots
        )
        return loss, (outputs, fixed)

    def step(state, images, targets):
        trainable, fixed, slots = state
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (outputs, fixed)), slopes = gradient(trainable, fixed, slots, images, targets)
        trainable, slots = model.optimizer.stateless_apply(slots, slopes, trainable)
        return (trainable, fixed, slots), loss, outputs

    return step


def copied_state(model, device):
    """Copies the state of `functional_step` to a device; copies, because a compiled step reuses its inputs' memory."""
    groups = (model.trainable_variables, model.non_trainable_variables, model.optimizer.variables)
    return jax.device_put(tuple([variable.value.copy() for variable in group] for group in groups), device)


def _lowered(model, batch, count):
    """Returns the traced call, its first state and its batch."""
    step = functional_step(model)

    def steps(state, images, targets):
        state, losses = jax.lax.scan(lambda state, _: step(state, images, targets)[:2], state, length=count)
        return state, losses[-1]

    device = jax.devices()[0]
    state, batch = copied_state(model, device), jax.device_put(batch, device)
    return jax.jit(steps, donate_argnums=0).lower(state, *batch), state, batch


def _caller(executable, state, batch):
    kept = [state]

    def call():
        kept[0], loss = executable(kept[0], *batch)
        return float(loss)

    return call
