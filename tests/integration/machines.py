"""Simulated machines with separate addresses and ports: network namespaces of this machine."""

import contextlib
import os
import shutil
import subprocess

import pytest

HUB = "10.9.0.1"
# A user namespace gives root rights to other users.
_USERS = ([], []) if os.geteuid() == 0 else (["--map-root-user"], ["--user", "--preserve-credentials"])


@contextlib.contextmanager
def network(*addresses):
    """Yields `{address: words that start a command there}` for addresses in 10.9.0.0/24 and for `HUB`.

    The machines reach each other and nothing else. Skips the test if the system does not allow namespaces.
    """
    missing = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    with contextlib.ExitStack() as stack:
        hub = _namespace(stack, ["unshare", "--net", *_USERS[0]])
        there = {HUB: _inside(hub)}
        _run(there[HUB], "ip link set lo up", "ip link add hub type bridge", f"ip addr add {HUB}/24 dev hub")
        _run(there[HUB], "ip link set hub up")
        for index, address in enumerate(addresses):
            machine = _namespace(stack, [*there[HUB], "unshare", "--net"])
            there[address] = _inside(machine)
            _run(there[HUB], f"ip link add port{index} type veth peer name eth0 netns {machine.pid}")
            _run(there[HUB], f"ip link set port{index} master hub up")
            _run(there[address], f"ip addr add {address}/24 dev eth0", "ip link set eth0 up", "ip link set lo up")
        yield there


def _namespace(stack, command):
    """Starts a process in a separate namespace; the namespace lasts as long as the process."""
    process = subprocess.Popen(
        [*command, "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    stack.callback(process.communicate)  # closes the input of the process, which ends it
    if process.stdout.readline() != b"ready\n":
        pytest.skip(f"needs network namespaces: {process.stderr.read().decode()}")
    return process


def _inside(process):
    return ["nsenter", f"--target={process.pid}", "--net", *_USERS[1]]


def _run(there, *commands):
    for command in commands:
        done = subprocess.run([*there, *command.split()], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"needs network namespaces: {command}: {done.stderr}")
