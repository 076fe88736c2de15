"""Distribution of a run over devices and machines: `start` sets them up, `Distribution` describes them."""

import contextlib
import dataclasses
import functools
import os
import sys

import keras

from elrt_keras.launch import clusters, multi_worker

NAMES = ("auto", "none", "mirrored", "multi_worker", "tpu")


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Distribution of a run over devices.

    Attributes:
        strategy: a `tf.distribute.Strategy`, or `None` if Keras needs none (one device, or JAX).
        replicas: number of devices that train together, on all workers.
        worker, workers: index of this process, and number of processes that train together.
    """

    strategy: object = None
    replicas: int = 1
    worker: int = 0
    workers: int = 1

    @property
    def is_chief(self):
        """Reports if this process writes the files of the run."""
        return self.worker == 0

    def scope(self):
        """Returns the context in which models must be made and loaded."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def check_batch(self, batch_size):
        """Refuses a global batch that does not divide over the replicas.

        Raises:
            ValueError: with both numbers.
        """
        if batch_size % self.replicas:
            raise ValueError(
                f"Expected a global batch size that divides over the replicas. "
                f"Received: batch_size={batch_size}, replicas={self.replicas}"
            )

    def spread(self, batches_of, batch_size):
        """Distributes the training data over all replicas.

        Args:
            batches_of: function from a shard `(worker, workers)` to a dataset of the worker's part of each batch.
            batch_size: size of the global batch.
        """
        if self.strategy is None:
            return batches_of((0, 1))
        local, per_replica = batch_size // self.workers, batch_size // self.replicas

        def of_worker(context):
            batches = batches_of((context.input_pipeline_id, context.num_input_pipelines))
            return batches if local == per_replica else batches.rebatch(per_replica, drop_remainder=True)

        return self.strategy.distribute_datasets_from_function(of_worker)

    def any_worker(self, *flags):
        """Reports for each flag if it is true on any worker (a tuple). All workers must call it at the same step."""
        if self.workers == 1:
            return flags
        import tensorflow as tf

        return tuple(bool(total > 0) for total in self._total(tf.constant([float(flag) for flag in flags])).numpy())

    @functools.cached_property
    def _total(self):
        """Function that sums a tensor over all replicas."""
        import tensorflow as tf

        @tf.function
        def total(value):
            return self.strategy.reduce("SUM", self.strategy.run(tf.identity, args=(value,)), axis=None)

        return total

    def wait_for_all(self):
        """Waits until every worker has called this method."""
        self.any_worker(False)


SINGLE = Distribution()


def start(name="auto", num_gpus=None, num_cpus=None, cluster="auto"):
    """Sets up the devices of a run. Call it before anything runs on a device.

    Args:
        name: one of `NAMES`. `"mirrored"` uses all accelerators of this machine, `"multi_worker"` those of all machines
            of a cluster. `"auto"` is multi_worker if a cluster of several workers is described, else mirrored if there
            are several accelerators, else none. On JAX, `"mirrored"` is `keras.distribution.DataParallel`.
        num_gpus: number of this machine's GPUs to use; all by default.
        num_cpus: int, number of logical CPU devices to use instead, to try distribution without GPUs.
        cluster: one of `clusters.NAMES`, the description of the cluster.

    Returns:
        A `Distribution`.

    Raises:
        ValueError: for missing devices, a missing cluster, or a backend that cannot distribute training.
        RuntimeError: from TensorFlow, if something has run on a device before.
    """
    backend = keras.backend.backend()
    if name == "none":
        _refuse_devices(name, num_gpus, num_cpus)
        return SINGLE
    if backend == "tensorflow":
        return _tensorflow(name, num_gpus, num_cpus, cluster)
    if backend == "jax" and name in ("auto", "mirrored"):
        return _jax(name, num_gpus, num_cpus)
    if name == "auto":
        _refuse_devices(name, num_gpus, num_cpus)
        return SINGLE
    raise ValueError(
        "Expected the TensorFlow backend, or 'mirrored' on JAX, to train on several devices. "
        f"Received: strategy={name!r} with the {backend} backend"
    )


def _refuse_devices(name, num_gpus, num_cpus):
    if num_gpus is not None or num_cpus is not None:
        raise ValueError(
            f"Expected no --num_gpus and no --num_cpus: --strategy={name} trains on one device here. "
            f"Received: num_gpus={num_gpus}, num_cpus={num_cpus}"
        )


def _tensorflow(name, num_gpus, num_cpus, cluster):
    import tensorflow as tf

    workers, index = clusters.find(cluster) if name in ("auto", "multi_worker") else ([], 0)
    if name == "multi_worker" and not workers:
        raise ValueError("Expected a cluster, described by TF_CONFIG, Slurm or Kubernetes. Received: none of them")
    if len(workers) > 1 and num_cpus not in (None, 1):
        raise ValueError(f"Expected one CPU device per worker. Received: num_cpus={num_cpus}, {len(workers)} workers")
    if name == "multi_worker" or len(workers) > 1:
        return _workers(tf, workers, index, _devices(tf, num_gpus, num_cpus))
    if name == "tpu":
        return _tpu(tf)
    devices = _devices(tf, num_gpus, num_cpus)
    if name == "auto" and len(devices) < 2:
        return SINGLE
    strategy = tf.distribute.MirroredStrategy(devices)
    return Distribution(strategy, strategy.num_replicas_in_sync)


def _devices(tf, num_gpus, num_cpus):
    """Names of this machine's devices to train on: the GPUs, or one CPU if there are none."""
    if num_cpus is not None:
        if num_gpus is not None:
            raise ValueError(f"Expected either GPUs or CPUs. Received: num_gpus={num_gpus}, num_cpus={num_cpus}")
        logical = [tf.config.LogicalDeviceConfiguration()] * num_cpus
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], logical)
        return [f"CPU:{index}" for index in range(num_cpus)]
    gpus = tf.config.list_physical_devices("GPU")
    if num_gpus is not None:
        _check_count(num_gpus, len(gpus))
        gpus = gpus[:num_gpus]
        tf.config.set_visible_devices(gpus, "GPU")
    return [f"GPU:{index}" for index in range(len(gpus))] or ["CPU:0"]


def _check_count(num_gpus, available):
    if num_gpus > available:
        raise ValueError(f"Expected at most the {available} GPUs of this machine. Received: num_gpus={num_gpus}")


def _workers(tf, workers, index, devices):
    multi_worker.mend_fit()
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": workers}),
        task_type="worker",
        task_id=index,
        num_accelerators={"GPU": sum(device.startswith("GPU") for device in devices)},
        rpc_layer="grpc",
    )
    print(f"worker {index + 1} of {len(workers)}, on {', '.join(devices)}: waiting for the others", file=sys.stderr)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    return Distribution(strategy, strategy.num_replicas_in_sync, index, len(workers))


def _tpu(tf):
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(os.environ.get("TPU_NAME", ""))
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except Exception as error:  # ValueError, NotFoundError or gRPC errors
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise ValueError(f"Expected a TPU; TPU_NAME names a TPU outside this machine. Received: {reason}") from error
    strategy = tf.distribute.TPUStrategy(resolver)
    return Distribution(strategy, strategy.num_replicas_in_sync)


def _jax(name, num_gpus, num_cpus):
    import jax

    if num_cpus is not None:
        jax.config.update("jax_num_cpu_devices", num_cpus)
        devices = jax.devices("cpu")
    else:
        devices = jax.devices()
    if num_gpus is not None:
        _check_count(num_gpus, len([device for device in devices if device.platform == "gpu"]))
        devices = devices[:num_gpus]
    if len(devices) < 2 and name == "auto":
        return SINGLE
    platform = devices[0].platform
    names = [f"{platform}:{device.id}" for device in devices]
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=names))
    return Distribution(replicas=len(names))
