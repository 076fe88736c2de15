"""Who trains together: a cluster of workers, as TF_CONFIG, Slurm or Kubernetes describe it."""

import json
import os
import shutil

NAMES = ("auto", "tf_config", "slurm", "kubernetes")
_LABELS = "ELRT_KUBERNETES_LABELS"
_INDEX = "JOB_COMPLETION_INDEX"


def find(name):
    """The cluster that this process is a worker of: `(addresses of all workers, own index)`.

    Args:
        name: one of `NAMES`; `"auto"` takes TF_CONFIG if it is set, else Slurm if this is a task of several, else none.

    Returns:
        A list of `"host:port"` and an int; `([], 0)` for no cluster.

    Raises:
        ValueError: for a cluster that is asked for and not there, or is described wrongly.
    """
    if name == "auto":
        name = "tf_config" if os.environ.get("TF_CONFIG") else "slurm" if _slurm_tasks() > 1 else None
    if name is None:
        return [], 0
    resolver = {"tf_config": _tf_config, "slurm": _slurm, "kubernetes": _kubernetes}[name]()
    workers = resolver.cluster_spec().as_dict()["worker"]
    if not 0 <= resolver.task_id < len(workers):
        raise ValueError(f"Expected an index of the workers {workers}. Received: {resolver.task_id}")
    return workers, resolver.task_id


def _tf_config():
    import tensorflow as tf

    text = os.environ.get("TF_CONFIG", "")
    try:
        described = json.loads(text)
        workers, task = described["cluster"]["worker"], described["task"]
        valid = all(isinstance(w, str) for w in workers) and task["type"] == "worker"
        valid = valid and isinstance(task["index"], int)
    except (ValueError, KeyError, TypeError):
        valid = False
    if not valid or set(described["cluster"]) != {"worker"}:
        raise ValueError(
            'Expected TF_CONFIG such as {"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
            f'"task": {{"type": "worker", "index": 0}}}}, of workers alone. Received: TF_CONFIG={text!r}'
        )
    return tf.distribute.cluster_resolver.TFConfigClusterResolver()


def _slurm_tasks():
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) if "SLURM_PROCID" in os.environ else 1


def _slurm():
    import tensorflow as tf

    if "SLURM_PROCID" not in os.environ:
        raise ValueError("Expected a task of Slurm, started by srun. Received: no SLURM_PROCID in the environment")
    # It asks nvidia-smi and divides by the GPUs of a task, so on machines without any it is told of one.
    gpus = {} if shutil.which("nvidia-smi") else {"gpus_per_node": _slurm_tasks(), "gpus_per_task": 1}
    return tf.distribute.cluster_resolver.SlurmClusterResolver(**gpus, auto_set_gpu=bool(not gpus))


def _kubernetes():
    import tensorflow as tf

    labels, index = os.environ.get(_LABELS), os.environ.get(_INDEX, "")
    if not labels or not index.isdigit():
        raise ValueError(
            f"Expected the pods of an indexed job: {_LABELS}=job-name=NAME and {_INDEX}, which Kubernetes sets. "
            f"Received: {_LABELS}={labels!r}, {_INDEX}={index!r}"
        )
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise ValueError(
            "--cluster=kubernetes needs the Kubernetes client: pip install kubernetes. Received: none"
        ) from error
    config.load_incluster_config()
    resolver = tf.distribute.cluster_resolver.KubernetesClusterResolver(
        {"worker": [labels]}, override_client=client.CoreV1Api()
    )
    resolver.task_type, resolver.task_id = "worker", int(index)
    return resolver
