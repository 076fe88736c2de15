"""Training steps of whole networks: their times, ways to compile them, and their memory."""

import concurrent.futures
import contextlib
import multiprocessing
import resource

from benchmarks.measure.machine import on_host
from benchmarks.measure.runner import Flag, measurement
from benchmarks.measure.variants import (
    BATCHES,
    BUDGETS,
    NAMES,
    builders,
    interleaved,
    tuning_of,
    variants_flag,
    variants_of,
)


@measurement(
    "steps",
    models=builders(),
    rounds=15,
    name="cpu",
    variants=variants_flag(*NAMES),
    batch_size=Flag(None, "Images per step. Default: 128 images of 32×32, 16 of 224×224.", int),
    precision=Flag("float32", "Dtype policy."),
    steps_per_call=Flag(None, "Number of training steps in one compiled call; JAX only.", int),
)
def steps(settings):
    """Times training steps: dense, low-rank, thinned, without the penalty, and written out in stock layers.

      python -m benchmarks.measure steps
      python -m benchmarks.measure steps --models=resnet20 --variants=low_rank_0.4,without_penalty_0.4 --rounds=60 \\
        --name=penalty
      KERAS_BACKEND=torch python -m benchmarks.measure steps --variants=formats,tuned --name=formats_torch
      KERAS_BACKEND=jax python -m benchmarks.measure steps --name=gpu --precision=mixed_bfloat16 --steps_per_call=10 \\
        --batch_size=1024 --models=resnet20,resnet56,vgg16_cifar

    `--steps_per_call` is for accelerators: one compiled call runs that many steps. XLA chooses kernels by their times,
    so nothing else should run on the accelerator.
    """
    import keras

    import elrt_keras as elrt
    from benchmarks.measure.networks import make, training_step, tune

    keras.config.set_dtype_policy(settings.precision)
    name, count = settings.model, settings.steps_per_call
    batch_size = settings.batch_size or BATCHES[name]
    with on_host() if count else contextlib.nullcontext():
        models = {variant: make(name, variant) for variant in variants_of(settings)}
    if count:
        from benchmarks.measure.device_steps import alone, compiled_steps

        if any(tuning_of(variant)[0] for variant in models):
            alone()
        for variant, model in models.items():
            tune(model, variant, batch_size)
        calls = compiled_steps(models, batch_size, count)
    else:
        for variant, model in models.items():
            tune(model, variant, batch_size)
        calls = {variant: training_step(model, batch_size) for variant, model in models.items()}
    seconds = interleaved(calls, settings.rounds, name, per=count or 1)
    costs = {variant: elrt.count_costs(model) for variant, model in models.items()}
    row = {"model": name, "batch_size": batch_size, "precision": settings.precision, "steps_per_call": count}
    macs = {variant: cost.macs for variant, cost in costs.items()}
    return {
        **row,
        "seconds": seconds,
        "macs": macs,
        "params": {variant: cost.params for variant, cost in costs.items()},
    }


# Arguments of `compile`.
_WAYS = {
    "as elrt-train": {"jit_compile": False},
    "4 steps to a call": {"jit_compile": False, "steps_per_execution": 4},
    "16 steps to a call": {"jit_compile": False, "steps_per_execution": 16},
    "XLA": {"jit_compile": True},
}


_CALLS = Flag(16, "Number of training steps in a call of `fit`.")


@measurement("compiling", models=builders("resnet20", "vgg16_cifar"), rounds=7, steps=_CALLS)
def compiling(settings):
    """Times `fit` compiled as in `elrt-train`, with XLA, and with several steps per call; TensorFlow.

      python -m benchmarks.measure compiling --models=resnet20 --steps=32

    Networks are dense and low-rank, images are random; all ways of one network take turns.
    """
    import keras

    import elrt_keras as elrt
    from benchmarks.measure.networks import make

    name, rows = settings.model, []
    for variant in ("dense", "low_rank_0.4"):
        # A model is compiled in one way only, so each way has a copy.
        model = make(name, variant)
        copies = {way: elrt.fuse_batch_norm(keras.models.clone_model(model)) for way in _WAYS}
        fits = {way: _fit_of(copy, BATCHES[name], settings.steps, _WAYS[way]) for way, copy in copies.items()}
        seconds = interleaved(fits, settings.rounds, f"{name} {variant}", per=settings.steps)
        rows.append({"variant": variant, "seconds": seconds})
    return {"model": name, "batch_size": BATCHES[name], "rows": rows}


def _fit_of(model, batch_size, count, options):
    """Returns a compiled function that trains `count` steps with `fit` on a fixed random batch."""
    import tensorflow as tf

    from benchmarks.measure.networks import finite, optimizer, random_batch
    from elrt_keras.launch.data.interface import untuned

    batches = untuned(tf.data.Dataset.from_tensors(random_batch(model, batch_size)).cache().repeat(count))
    model.compile(optimizer(), "categorical_crossentropy", **options)

    def fit():
        return finite(model.fit(batches, shuffle=False, verbose=0).history["loss"][0])

    fit()
    return fit


_SMALL_BATCH = 2
_STEPS = 5
_OF_MEMORY = ("dense", *(f"{kind}_{budget}" for budget in BUDGETS for kind in ("low_rank", "recomputed")))


@measurement("training_memory", models=builders(), rounds=1, variants=variants_flag(*_OF_MEMORY))
def training_memory(settings):
    """Measures the peak memory of training: dense, low-rank, low-rank with recomputation.

    A separate process trains a few steps of each variant and batch size. The peak is the largest resident memory, minus
    the memory before the model was built. It is measured at the full batch and at a batch of two. The difference grows
    with the batch; the rest is weights and the compiled graph.
    """
    name, variants = settings.model, variants_of(settings)
    sizes = (_SMALL_BATCH, BATCHES[name])
    taken = {size: {variant: [] for variant in variants} for size in sizes}
    for _ in range(settings.rounds):
        for size in sizes:
            for variant in variants:
                with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                    taken[size][variant].append(fresh.submit(training_bytes, name, variant, size).result())
                print(name, variant, size, f"{taken[size][variant][-1] / 2**20:.0f} MiB", flush=True)
    return {"model": name, "batch_sizes": sizes, "bytes": [taken[size] for size in sizes]}


def training_bytes(name, variant, batch_size):
    """Measures the bytes for training a variant in this process, which must have done nothing else."""
    import keras

    from benchmarks.measure.networks import built, make, training_step, tune

    # Run something first: TensorFlow then takes memory that does not belong to the model.
    training_step(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")]), 2)
    before = _peak_bytes()
    model = make(name, variant)
    built.cache_clear()  # frees the dense network of a low-rank one
    tune(model, variant, batch_size)
    step = training_step(model, batch_size)
    for _ in range(_STEPS):
        step()
    return _peak_bytes() - before


def _peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
