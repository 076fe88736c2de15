"""Clusters of workers that train together, read from TF_CONFIG, Slurm or Kubernetes."""

import json
import os
import shutil
import socket
import time

NAMES = ("auto", "tf_config", "slurm", "kubernetes")
_PATIENCE_S = 600


def find(name):
    """Finds the cluster of this process: `(addresses of all workers, own index)`.

    Args:
        name: one of `NAMES`. `"auto"` takes TF_CONFIG if it is set, else Slurm if the job step has several tasks, else
            no cluster.

    Returns:
        A list of `"host:port"`, the chief first, and an int; `([], 0)` for no cluster.

    Raises:
        ValueError: if the named cluster is missing or its description is wrong.
    """
    if name == "auto":
        name = "tf_config" if os.environ.get("TF_CONFIG") else "slurm" if _slurm_tasks() > 1 else None
    if name is None:
        return [], 0
    workers, index = {"tf_config": _tf_config, "slurm": _slurm, "kubernetes": _kubernetes}[name]()
    if not 0 <= index < len(workers):
        raise ValueError(f"Expected an index of the workers {workers}. Received: {index}")
    return workers, index


def _tf_config():
    import tensorflow as tf

    text = os.environ.get("TF_CONFIG", "")
    if not _is_valid(text):
        raise ValueError(
            'Expected TF_CONFIG such as {"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
            '"task": {"type": "worker", "index": 0}}, of workers and at most one chief. '
            f"Received: TF_CONFIG={text!r}"
        )
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    cluster = resolver.cluster_spec().as_dict()
    chiefs, workers = cluster.get("chief", []), cluster.get("worker", [])
    # A chief is the first worker.
    return [*chiefs, *workers], resolver.task_id + len(chiefs) * (resolver.task_type == "worker")


def _is_valid(text):
    try:
        described = json.loads(text)
        cluster, task = described["cluster"], described["task"]
        return (
            set(cluster) <= {"chief", "worker"}
            and all(isinstance(address, str) for addresses in cluster.values() for address in addresses)
            and all(isinstance(addresses, list) for addresses in cluster.values())
            and len(cluster.get("chief", [])) <= 1
            and isinstance(task["index"], int)
            and 0 <= task["index"] < len(cluster[task["type"]])
        )
    except (ValueError, KeyError, TypeError):
        return False


def _slurm_tasks():
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1") if "SLURM_PROCID" in os.environ else "1"
    return int(tasks) if tasks.isdigit() else 1


def _slurm():
    import tensorflow as tf
    from tensorflow.python.distribute.cluster_resolver import slurm_cluster_resolver

    names = [f"SLURM_{name}" for name in ("PROCID", "STEP_NUM_TASKS", "STEP_NODELIST", "STEP_TASKS_PER_NODE")]
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ValueError(f"Expected a task of Slurm, started by srun. Received: no {', '.join(missing)}")
    # The resolver divides the GPUs of a machine among its tasks. If Slurm has already done that, or if there are no
    # GPUs, the resolver gets one GPU per task and changes nothing.
    divided = "SLURM_GPUS_PER_TASK" in os.environ or shutil.which("nvidia-smi") is None
    gpus = {"gpus_per_node": _slurm_tasks(), "gpus_per_task": 1} if divided else {}
    try:
        # Ranks follow Slurm's list of hosts. The resolver would sort host names as text, node10 before node9. So it
        # gets list positions instead of names.
        hosts = slurm_cluster_resolver.expand_hostlist(os.environ["SLURM_STEP_NODELIST"])
        tasks = slurm_cluster_resolver.expand_tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"])
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            tasks_per_node=dict(enumerate(tasks)), **gpus, auto_set_gpu=not divided
        )
        placed = [worker.split(":") for worker in resolver.cluster_spec().as_dict()["worker"]]
        workers = [f"{hosts[int(place)]}:{port}" for place, port in placed]
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"Expected the variables that srun sets for its tasks. Received: {error}") from error
    return workers, resolver.task_id


def _kubernetes():
    """Waits until the wanted number of pods with the labels run; returns them ordered by name, and the own index."""
    import tensorflow as tf

    labels, count = os.environ.get("ELRT_KUBERNETES_LABELS"), os.environ.get("ELRT_KUBERNETES_WORKERS", "")
    if not labels or not count.isdigit():
        raise ValueError(
            "Expected ELRT_KUBERNETES_LABELS, such as job-name=train, and ELRT_KUBERNETES_WORKERS, the number of pods. "
            f"Received: {labels!r} and {count!r}"
        )
    resolver = tf.distribute.cluster_resolver.KubernetesClusterResolver(
        {"worker": [labels]}, override_client=_Pods(os.environ.get("ELRT_KUBERNETES_NAMESPACE", "default"))
    )
    workers = _once_running(resolver, int(count))
    own = os.environ.get("POD_IP") or socket.gethostbyname(socket.gethostname())
    hosts = [worker.rpartition(":")[0] for worker in workers]
    if own not in hosts:
        raise ValueError(f"Expected this pod among those with {labels!r}: {hosts}. Received: {own}; POD_IP sets it")
    return workers, hosts.index(own)


def _once_running(resolver, count):
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            workers = resolver.cluster_spec().as_dict().get("worker", [])
            state = f"{len(workers)} running"
        except RuntimeError as error:  # a pod that is not running yet
            workers, state = [], str(error)
        if len(workers) == count:
            return workers
        if len(workers) > count or time.monotonic() > deadline:
            raise ValueError(f"Expected {count} running pods (ELRT_KUBERNETES_WORKERS). Received: {state}")
        time.sleep(2)


class _Pods:
    """Kubernetes client with the one method that TensorFlow's resolver calls.

    The resolver asks for the addresses of machines; this client returns the addresses of pods instead. Pods on one
    machine share its address, and a pod network may not reach it. The client lists one namespace, which needs fewer
    rights, and leaves out pods that have ended.
    """

    def __init__(self, namespace):
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise ValueError(
                "Expected the Kubernetes client for --cluster=kubernetes: pip install 'elrt_keras[kubernetes]'. "
                "Received: none"
            ) from error
        try:
            if "KUBERNETES_SERVICE_HOST" in os.environ:  # in a pod
                config.load_incluster_config()
            else:
                config.load_kube_config(os.environ.get("KUBECONFIG"))
        except config.ConfigException as error:
            raise ValueError(f"Expected to run in a pod, or a kubeconfig. Received: {error}") from error
        self._client, self._namespace = client.CoreV1Api(), namespace

    def list_pod_for_all_namespaces(self, label_selector):
        from kubernetes.client import ApiException

        try:
            pods = self._client.list_namespaced_pod(self._namespace, label_selector=label_selector)
        except ApiException as error:
            raise ValueError(
                f"Expected the right to list pods in the namespace {self._namespace!r}. Received: {error.status} "
                f"{error.reason}"
            ) from error
        pods.items = [pod for pod in pods.items if pod.status.phase not in ("Failed", "Succeeded")]
        for pod in pods.items:
            pod.status.host_ip = pod.status.pod_ip
        return pods
