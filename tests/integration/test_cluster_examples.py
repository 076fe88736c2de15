"""The examples of `examples/cluster/`, started as users start them: with bash, a real Slurm, Kubernetes' models."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse

import keras
import kubernetes_server
import machines
import pytest
from kubernetes_server import pod

from elrt_keras.launch import checkpoints, clusters

CLUSTER = pathlib.Path(__file__).resolve().parents[2] / "examples" / "cluster"
# Long enough to be stopped in the middle.
FLAGS = ("--dataset=digits", "--batch_size=128", "--max_macs=0.3", "--epochs=6")
pytestmark = pytest.mark.tensorflow


@pytest.fixture(autouse=True)
def commands_on_the_path(monkeypatch):
    """Puts `elrt-train` and `python3` of this environment on the path."""
    monkeypatch.setenv("PATH", f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    for name in ("TF_CONFIG", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def until(condition, processes, log, seconds=300):
    """Waits for `condition()` while all the processes run."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert all(process.poll() is None for process in processes), log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


def kill_group(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def has_epoch(run_dir, epoch):
    return any(f"epoch{epoch:04d}" in path for path in checkpoints.paths(str(run_dir)))


def assert_finished(run_dir, replicas=2):
    assert json.loads((run_dir / "summary.json").read_text())["replicas"] == replicas
    keras.models.load_model(run_dir / "model.keras")


# TF_CONFIG


@contextlib.contextmanager
def tf_config(folder, *arguments):
    """Starts `tf_config.sh`, which writes `log` in the folder; ends it and its children afterwards."""
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [CLUSTER / "tf_config.sh", *arguments], cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield process
        finally:
            kill_group(process)
            process.wait()


def workers_of(process):
    """Returns the process ids of the workers, in the order of their indices."""
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"elrt-train" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes()]


def is_running(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_two_workers_of_tf_config_train_together(tmp_path):
    with tf_config(tmp_path, "2", "--run_dir=run", "--model=resnet8", "--smoke") as process:
        assert process.wait(timeout=400) == 0, (tmp_path / "log").read_text()[-3000:]
    assert_finished(tmp_path / "run")
    told = (tmp_path / "log").read_text()
    assert "worker 1 of 2" in told and "worker 2 of 2" in told


@pytest.mark.thorough
def test_workers_that_refuse_their_flags_end_tf_config_with_their_status(tmp_path):
    with tf_config(tmp_path, "2", "--run_dir=run", "--batch_size=33", "--no_such_flag") as process:
        assert process.wait(timeout=100) == 2
    assert (tmp_path / "log").read_text().count("Unknown command line flag 'no_such_flag'") == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("trains", [False, True])
def test_a_worker_of_tf_config_that_dies_leaves_no_other_behind(tmp_path, trains):
    run, log = tmp_path / "run", tmp_path / "log"
    with tf_config(tmp_path, "2", "--run_dir=run", *FLAGS) as process:
        until(lambda: has_epoch(run, 1) if trains else "worker 1 of 2" in log.read_text(), [process], log)
        first, second = workers_of(process)
        os.kill(second, signal.SIGKILL)
        assert process.wait(timeout=100) == 128 + signal.SIGKILL
        assert not is_running(first)


@pytest.mark.slow
def test_tf_config_that_is_stopped_goes_on(tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    with tf_config(tmp_path, "2", "--run_dir=run", *FLAGS) as process:
        until(lambda: has_epoch(run, 1), [process], log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=100) == 128 + signal.SIGTERM
    assert log.read_text().count("elrt-train: told to stop") == 2
    with tf_config(tmp_path, "2", "--run_dir=run", *FLAGS) as process:
        assert process.wait(timeout=400) == 0, log.read_text()[-3000:]
    assert "resuming at epoch" in log.read_text()
    assert_finished(run)


# Slurm

DAEMONS = ("sbatch", "slurmctld", "slurmd")
NODES = ("10.9.0.9", "10.9.0.10")  # as text the second comes first
SLURM_CONF = """
ClusterName=test
SlurmctldHost=localhost({hub})
SlurmUser=root
SlurmdUser=root
SlurmdParameters=config_overrides
AuthType=auth/none
CredType=cred/none
# A job that is requeued starts again so many seconds later.
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=10.9.0.[9-10] CPUs=8
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=2
"""


@contextlib.contextmanager
def slurm(folder):
    """Starts a Slurm of two nodes; yields a function that runs a Slurm command and returns its output."""
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(machines.network(*NODES))
        config = folder / "slurm.conf"
        config.write_text(SLURM_CONF.format(hub=machines.HUB, folder=folder))
        (folder / "state").mkdir()
        environment = {**os.environ, "SLURM_CONF": str(config)}
        started = [(machines.HUB, ["slurmctld", "-D"]), *((node, ["slurmd", "-D", "-N", node]) for node in NODES)]
        for address, daemon in started:
            log = stack.enter_context(open(folder / "daemons.log", "a"))
            process = subprocess.Popen([*there[address], *daemon], env=environment, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)

        def command(*words):
            done = subprocess.run(
                [*there[machines.HUB], *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
            )
            return done.stdout

        log = folder / "daemons.log"
        until(lambda: command("sinfo", "--noheader", "--format=%T %D").split() == ["idle", "2"], [], log, 60)
        yield command


needs_slurm = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, DAEMONS)), reason=f"needs root and {', '.join(DAEMONS)}"
)


@needs_slurm
@pytest.mark.slow
def test_a_job_of_slurm_that_is_preempted_goes_on(tmp_path):
    run, log = tmp_path / "run", tmp_path / "elrt-1.log"

    def state(command):
        return re.search(r"JobState=(\w+)", command("scontrol", "show", "job", "1"))[1]

    with slurm(tmp_path) as command:
        assert command("sbatch", str(CLUSTER / "slurm.sbatch"), "run", *FLAGS) == "Submitted batch job 1\n"
        until(lambda: has_epoch(run, 1), [], tmp_path / "daemons.log")
        command("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--wrap=date > preempted")
        until((tmp_path / "preempted").exists, [], log, 120)
        assert not (run / "summary.json").exists() and state(command) == "PENDING"
        until(lambda: state(command) not in ("PENDING", "RUNNING", "COMPLETING"), [], log)
        assert state(command) == "COMPLETED", log.read_text()[-3000:]
    assert_finished(run)
    told = log.read_text()
    assert told.count("elrt-train: told to stop") == 2 and told.count("resuming at epoch") == 1


@needs_slurm
@pytest.mark.slow
def test_a_job_of_slurm_that_is_refused_fails_and_is_not_started_again(tmp_path):
    with slurm(tmp_path) as command:
        command("sbatch", "--wait", str(CLUSTER / "slurm.sbatch"), "run", "--no_such_flag")
        told = command("scontrol", "show", "job", "1")
    assert "JobState=FAILED" in told and "Restarts=0" in told
    assert "Unknown command line flag 'no_such_flag'" in (tmp_path / "elrt-1.log").read_text()


# Kubernetes


@pytest.fixture(scope="module")
def objects():
    """Returns the objects in `kubernetes.yaml`, by kind."""
    yaml = pytest.importorskip("yaml")
    pytest.importorskip("kubernetes")
    documents = list(yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text()))
    assert len({document["kind"] for document in documents}) == len(documents)
    return {document["kind"]: document for document in documents}


def check(value, kind, place):
    """Raises `ValueError` if a value does not fit the Kubernetes client's model or type."""
    from kubernetes import client

    plain = {"str": str, "int": int, "bool": bool}
    if match := re.fullmatch(r"[Ll]ist\[(.+)\]", kind):
        for index, item in enumerate(value):
            check(item, match[1], f"{place}[{index}]")
    elif match := re.fullmatch(r"[Dd]ict[(\[]str, (.+)[)\]]", kind):
        for name, item in value.items():
            check(item, match[1], f"{place}.{name}")
    elif kind in plain:
        if type(value) is not plain[kind]:
            raise ValueError(f"{place}: expected {kind}, received {value!r}")
    else:
        model = getattr(client, kind)
        names = {key: name for name, key in model.attribute_map.items()}
        if unknown := set(value) - set(names):
            raise ValueError(f"{place}: no {', '.join(unknown)} in {kind}")
        for key, item in value.items():
            check(item, model.openapi_types[names[key]], f"{place}.{key}")
        model(**{names[key]: item for key, item in value.items()})  # refuses missing required fields


def check_object(document):
    from kubernetes import client

    group, _, version = document["apiVersion"].rpartition("/")
    api = "".join(map(str.capitalize, group.removesuffix(".k8s.io").split("."))) or "Core"
    kind = document["kind"]
    snake = re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower()
    if not hasattr(getattr(client, f"{api}{version.capitalize()}Api"), f"create_namespaced_{snake}"):
        raise ValueError(f"no {kind} in {document['apiVersion']}")
    check(document, f"{version.capitalize()}{kind}", kind)


def test_the_objects_of_kubernetes_have_no_unknown_field(objects):
    assert set(objects) == {"ServiceAccount", "Role", "RoleBinding", "PersistentVolumeClaim", "Job"}
    for document in objects.values():
        check_object(document)


@pytest.mark.parametrize(
    "place, value",
    [
        (("spec", "completionsMode"), "Indexed"),
        (("spec", "parallelism"), "2"),
        (("spec", "template", "spec", "containers", 0, "volumeMounts", 0, "mountPoint"), "/runs"),
        (("spec", "template", "spec", "containers", 0, "name"), None),
        (("apiVersion",), "v1"),
    ],
)
def test_a_wrong_field_would_be_found(objects, place, value):
    job = json.loads(json.dumps(objects["Job"]))
    *parents, last = place
    parent = job
    for name in parents:
        parent = parent[name]
    parent[last] = value
    with pytest.raises(ValueError):
        check_object(job)


def test_the_objects_of_kubernetes_belong_together(objects):
    job, binding = objects["Job"]["spec"], objects["RoleBinding"]
    template = job["template"]["spec"]
    (container,) = template["containers"]
    names = {kind: document["metadata"]["name"] for kind, document in objects.items()}
    assert template["serviceAccountName"] == names["ServiceAccount"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": names["ServiceAccount"]}]
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": names["Role"]}
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"]
    (volume,), (mount,) = template["volumes"], container["volumeMounts"]
    assert volume["persistentVolumeClaim"]["claimName"] == names["PersistentVolumeClaim"]
    assert volume["name"] == mount["name"]
    assert environment(objects, {})["RUN_DIR"].startswith(mount["mountPath"] + "/")


def environment(objects, fields):
    """Returns the variables of the Job's container; `fields` gives the values of those that name a field of the pod."""
    (container,) = objects["Job"]["spec"]["template"]["spec"]["containers"]
    return {
        entry["name"]: entry["value"] if "value" in entry else fields.get(entry["valueFrom"]["fieldRef"]["fieldPath"])
        for entry in container["env"]
    }


def test_the_role_grants_what_is_asked_for_and_no_more(objects, tmp_path, monkeypatch):
    job = objects["Job"]
    pods = [pod(f"elrt-train-{index}-x", f"10.0.0.{index}") for index in range(job["spec"]["parallelism"])]
    for name, value in environment(objects, {"metadata.namespace": "vision", "status.podIP": "10.0.0.1"}).items():
        monkeypatch.setenv(name, value)
    with kubernetes_server.serving([pods]) as (url, asked):
        monkeypatch.setenv("KUBECONFIG", str(kubernetes_server.write_config(tmp_path / "kubeconfig", url)))
        workers, index = clusters.find("kubernetes")
    (port,) = [port["containerPort"] for port in job["spec"]["template"]["spec"]["containers"][0]["ports"]]
    assert workers == [f"10.0.0.{index}:{port}" for index in range(2)] and index == 1
    (request,) = asked
    method, _, path = request.partition(" ")
    path, _, query = path.partition("?")
    # Kubernetes labels the pods of a Job with its name.
    assert urllib.parse.parse_qs(query) == {"labelSelector": [f"job-name={job['metadata']['name']}"]}
    # To GET all of a resource in the core group is to list it.
    resource = re.fullmatch(r"/api/v1/namespaces/vision/(\w+)", path)[1]
    assert method == "GET"
    assert objects["Role"]["rules"] == [{"apiGroups": [""], "resources": [resource], "verbs": ["list"]}]


@contextlib.contextmanager
def pods_of(objects, folder):
    """Yields a function that starts the container of the Job as processes, in pods with separate addresses."""
    (container,) = objects["Job"]["spec"]["template"]["spec"]["containers"]
    addresses = [f"10.9.0.{index + 2}" for index in range(objects["Job"]["spec"]["parallelism"])]
    pods = json.dumps([pod(f"elrt-train-{index}-x", address) for index, address in enumerate(addresses)])
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(machines.network(*addresses))
        server = stack.enter_context(
            subprocess.Popen(
                [*there[machines.HUB], sys.executable, kubernetes_server.__file__, machines.HUB, pods],
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(server.kill)
        config = kubernetes_server.write_config(folder / "kubeconfig", server.stdout.readline().strip())

        def start(*arguments):
            processes = []
            for index, address in enumerate(addresses):
                variables = environment(objects, {"metadata.namespace": "vision", "status.podIP": address})
                variables |= {"RUN_DIR": str(folder / "run"), "KUBECONFIG": str(config)}
                log = stack.enter_context(open(folder / f"pod{index}.log", "a"))
                words = [*there[address], *container["command"], *container["args"], *arguments]
                process = subprocess.Popen(
                    words, env={**os.environ, **variables}, stdout=log, stderr=log, start_new_session=True
                )
                processes.append(process)
                stack.callback(process.wait)
                stack.callback(kill_group, process)
            return processes

        yield start


@pytest.mark.slow
def test_the_pods_of_kubernetes_train_together_and_go_on_after_one_was_told_to_stop(objects, tmp_path):
    run, log = tmp_path / "run", tmp_path / "pod0.log"
    with pods_of(objects, tmp_path) as start:
        pods = start(*FLAGS)
        until(lambda: has_epoch(run, 1), pods, log)
        pods[1].send_signal(signal.SIGTERM)  # the first process of a container gets it, here the shell
        assert [pod.wait(timeout=100) for pod in pods] == [1, 1], log.read_text()[-3000:]
        assert log.read_text().count("elrt-train: told to stop") == 1
        assert [pod.wait(timeout=400) for pod in start(*FLAGS)] == [0, 0], log.read_text()[-3000:]
    assert "resuming at epoch" in log.read_text()
    assert_finished(run)
