"""Distribution of training: messages for wrong devices, and clusters read from their environments."""

import json
import os

import commands
import keras
import kubernetes_server
import pytest
from kubernetes_server import pod

from elrt_keras.launch import clusters, strategies

CLUSTER = {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in ("TF_CONFIG", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "TPU_NAME", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def set_tf_config(monkeypatch, cluster, kind="worker", index=0):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))


def test_a_batch_that_does_not_divide_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="batch_size=100, replicas=8"):
        strategies.Distribution(replicas=8).check_batch(100)
    strategies.Distribution(replicas=8).check_batch(104)


@pytest.mark.backends
def test_one_device_is_one_device():
    for name in ("auto", "none"):
        distribution = strategies.start(name)
        assert distribution == strategies.SINGLE and distribution.is_chief
    assert strategies.SINGLE.any_worker(True, False) == (True, False)
    assert strategies.SINGLE.spread(lambda shard: shard, 32) == (0, 1)
    with pytest.raises(ValueError, match="one device here. Received: num_gpus=None, num_cpus=2"):
        strategies.start("none", num_cpus=2)


@pytest.mark.backends
@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="what other backends refuse")
@pytest.mark.parametrize("name", ["multi_worker", "tpu"])
def test_other_backends_say_what_they_cannot_do(name):
    with pytest.raises(ValueError, match=f"strategy='{name}' with the {keras.backend.backend()} backend"):
        strategies.start(name)


@pytest.mark.backends
@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch")
def test_pytorch_has_no_several_devices():
    with pytest.raises(ValueError, match="strategy='mirrored' with the torch backend"):
        strategies.start("mirrored", num_cpus=2)
    with pytest.raises(ValueError, match="--strategy=auto trains on one device here"):
        strategies.start("auto", num_cpus=2)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="PyTorch refuses before")
def test_more_gpus_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"at most the \d+ GPUs of this machine. Received: num_gpus=99"):
        strategies.start("mirrored", num_gpus=99)


@pytest.mark.tensorflow
def test_gpus_and_cpus_together_are_refused():
    with pytest.raises(ValueError, match="num_gpus=1, num_cpus=2"):
        strategies.start("mirrored", num_gpus=1, num_cpus=2)


@pytest.mark.tensorflow
def test_a_tpu_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="Expected a TPU; TPU_NAME"):
        strategies.start("tpu")


@pytest.mark.tensorflow
def test_several_workers_need_a_cluster_and_one_cpu_each(monkeypatch):
    with pytest.raises(ValueError, match="Expected a cluster, described by TF_CONFIG, Slurm or Kubernetes"):
        strategies.start("multi_worker")
    set_tf_config(monkeypatch, CLUSTER)
    with pytest.raises(ValueError, match="one CPU device per worker. Received: num_cpus=2, 2 workers"):
        strategies.start("multi_worker", num_cpus=2)


MENDED = """
import sys
from absl import logging
from keras.src.backend.tensorflow import trainer
from elrt_keras.launch import multi_worker

logging.set_verbosity(logging.WARNING)
if sys.argv[1] == "later":
    multi_worker.LAST_SEEN_TO_FAIL = (3, 0)
if sys.argv[1] == "other":
    del trainer.reduce_per_replica
multi_worker.mend_fit()
print("mended", trainer.reduce_per_replica.mended)
"""


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "version, told",
    [
        ("seen", "mended True"),
        pytest.param("later", "known to work up to Keras 3.0; this is 3.", marks=pytest.mark.thorough),
        pytest.param(
            "other",
            r"Expected a Keras with ['reduce_per_replica']; training on several workers is known to work up to",
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_the_remedy_for_several_workers_knows_its_versions(version, told, tmp_path):
    done = commands.program(MENDED, version, cwd=tmp_path)
    assert (done.returncode == 0) == (version != "other") and told in done.stdout + done.stderr, done.stderr[-3000:]
    assert ("known to work" in done.stderr) == (version != "seen")


@pytest.mark.tensorflow
def test_the_cluster_of_tf_config(monkeypatch):
    assert clusters.find("auto") == ([], 0)
    set_tf_config(monkeypatch, CLUSTER, index=1)
    assert clusters.find("auto") == clusters.find("tf_config") == (CLUSTER["worker"], 1)
    with_chief = {"chief": ["10.0.0.9:1"], **CLUSTER}
    set_tf_config(monkeypatch, with_chief, index=1)
    assert clusters.find("auto") == (["10.0.0.9:1", *CLUSTER["worker"]], 2)
    set_tf_config(monkeypatch, with_chief, "chief")
    assert clusters.find("auto") == (["10.0.0.9:1", *CLUSTER["worker"]], 0)


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        "{}",
        json.dumps({"cluster": CLUSTER}),
        json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 2}}),
        json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": -1}}),
        json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": "0"}}),
        json.dumps({"cluster": CLUSTER, "task": {"type": "chief", "index": 0}}),
        json.dumps({"cluster": {**CLUSTER, "ps": ["h:1"]}, "task": {"type": "worker", "index": 0}}),
        json.dumps({"cluster": {**CLUSTER, "chief": ["h:1", "h:2"]}, "task": {"type": "worker", "index": 0}}),
        json.dumps({"cluster": {"worker": [1, 2]}, "task": {"type": "worker", "index": 0}}),
        json.dumps({"cluster": {"worker": "host:1"}, "task": {"type": "worker", "index": 0}}),
    ],
)
def test_a_tf_config_that_is_none_is_refused_with_its_text(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError) as caught:
        clusters.find("tf_config")
    assert "Expected TF_CONFIG such as" in str(caught.value) and repr(text) in str(caught.value)


def set_slurm(monkeypatch, rank, tasks, nodes, per_node):
    for name, value in {
        "PROCID": rank,
        "STEP_NUM_TASKS": tasks,
        "STEP_NODELIST": nodes,
        "STEP_TASKS_PER_NODE": per_node,
        "GPUS_PER_TASK": 1,
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


@pytest.mark.tensorflow
def test_the_cluster_of_slurm(monkeypatch):
    set_slurm(monkeypatch, 3, 5, "node[08-09],login", "2(x2),1")
    workers = ["node08:8888", "node08:8889", "node09:8888", "node09:8889", "login:8888"]
    assert clusters.find("auto") == clusters.find("slurm") == (workers, 3)
    set_slurm(monkeypatch, 0, 1, "login", "1")
    assert clusters.find("auto") == ([], 0)


@pytest.mark.tensorflow
@pytest.mark.parametrize("rank, gpus", [(0, "0,1"), (1, "2,3"), (2, "0,1")])
def test_tasks_of_slurm_are_in_the_order_of_its_hosts(monkeypatch, rank, gpus):
    # The order is not that of the names as text, where node10 comes first.
    set_slurm(monkeypatch, rank, 3, "node[9-10]", "2,1")
    monkeypatch.delenv("SLURM_GPUS_PER_TASK")
    monkeypatch.setattr(clusters.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert clusters.find("slurm") == (["node9:8888", "node9:8889", "node10:8888"], rank)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == gpus


@pytest.mark.tensorflow
def test_slurm_without_its_variables_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="no SLURM_PROCID"):
        clusters.find("slurm")
    monkeypatch.setenv("SLURM_PROCID", "0")
    with pytest.raises(ValueError, match="no SLURM_STEP_NUM_TASKS, "):
        clusters.find("slurm")
    set_slurm(monkeypatch, 0, 2, "node[", "2")
    with pytest.raises(ValueError, match="hostlist"):
        clusters.find("slurm")


@pytest.fixture
def kubernetes(monkeypatch, tmp_path):
    """Serves lists of pods, one after the other, as the stand-in for Kubernetes; records the requests."""
    pytest.importorskip("kubernetes")
    answers = []
    with kubernetes_server.serving(answers) as (url, asked):
        monkeypatch.setenv("KUBECONFIG", str(kubernetes_server.write_config(tmp_path / "kubeconfig", url)))
        monkeypatch.setenv("ELRT_KUBERNETES_LABELS", "job-name=train")
        monkeypatch.setenv("ELRT_KUBERNETES_WORKERS", "2")
        monkeypatch.setenv("ELRT_KUBERNETES_NAMESPACE", "vision")
        monkeypatch.setenv("POD_IP", "10.0.0.7")
        yield answers, asked


@pytest.mark.thorough
@pytest.mark.tensorflow
def test_the_cluster_of_kubernetes(kubernetes):
    answers, asked = kubernetes
    pods = [pod("train-1-b", "10.0.0.7"), pod("train-0-x", "10.0.0.6"), pod("train-1-a", "10.0.0.5", "Failed")]
    answers += [pods[:1], [*pods[:1], pod("train-0-x", None, "Pending")], pods]  # the pods start one after the other
    assert clusters.find("kubernetes") == (["10.0.0.6:8470", "10.0.0.7:8470"], 1)
    assert len(asked) == 3 and asked[0] == "GET /api/v1/namespaces/vision/pods?labelSelector=job-name%3Dtrain"


@pytest.mark.tensorflow
def test_a_kubernetes_cluster_that_is_not_there_is_refused(kubernetes, monkeypatch):
    answers, _ = kubernetes
    answers.append([pod(f"train-{index}", f"10.0.0.{index}") for index in range(3)])
    with pytest.raises(ValueError, match="Expected 2 running pods .*Received: 3 running"):
        clusters.find("kubernetes")
    answers[:] = [[pod("train-0", "10.0.0.1"), pod("train-1", "10.0.0.2")]]
    with pytest.raises(ValueError, match="Expected this pod among .*Received: 10.0.0.7"):
        clusters.find("kubernetes")
    answers[:] = [None]
    with pytest.raises(ValueError, match="the right to list pods in the namespace 'vision'. Received: 403"):
        clusters.find("kubernetes")
    monkeypatch.setenv("ELRT_KUBERNETES_WORKERS", "two")
    with pytest.raises(ValueError, match="Received: 'job-name=train' and 'two'"):
        clusters.find("kubernetes")
