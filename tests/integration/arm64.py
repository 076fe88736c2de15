"""An aarch64 Python with ai-edge-litert on a machine of another kind: Debian's packages, run by qemu-user.

Nothing is installed: packages and wheels are downloaded and unpacked into a folder. It needs `apt-get` and `dpkg-deb`,
as Debian and Ubuntu have them, and a network.
"""

import pathlib
import platform
import shutil
import subprocess
import sys
import zipfile

# Python 3.11 of Debian 12 with what it and the wheels load; packages are named as there.
_PACKAGES = ("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libexpat1", "zlib1g")
_PACKAGES = (*_PACKAGES, "libssl3", "libgcc-s1", "libstdc++6", "libffi8", "libbz2-1.0", "liblzma5", "libuuid1")
_WHEELS = ("ai-edge-litert", "numpy", "backports.strenum", "flatbuffers", "tqdm", "typing_extensions", "protobuf")
# Programs under qemu-user read the processor of the machine that runs them; what LiteRT makes of that ends it.
_CPUINFO = """processor\t: 0
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
_PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")


class Unavailable(Exception):
    """The machine cannot make such a Python; the text says why."""


def make(folder):
    """Makes the root in a folder, or takes the one that is there; returns the path of a program that runs its Python.

    Raises:
        Unavailable: without the tools, the packages or the network.
    """
    folder = pathlib.Path(folder)
    program = folder / "python3"
    if program.exists():
        return program
    missing = [tool for tool in ("apt-get", "dpkg-deb", "dpkg") if shutil.which(tool) is None]
    if missing:
        raise Unavailable(f"Expected Debian's tools. Received: no {', '.join(missing)}")
    _unpack(folder)
    qemu = folder / "host" / "usr" / "bin" / "qemu-aarch64-static"
    root = folder / "root"
    run = f'exec {qemu} -L {root} {root}/usr/bin/python3.11 "$@"'
    text = f"#!/bin/sh\nexport PYTHONHOME={root}/usr PYTHONPATH={folder}/site\n{run}\n"
    (folder / "python3.tmp").write_text(text, encoding="utf-8")
    (folder / "python3.tmp").chmod(0o755)
    machine = _run(folder, str(folder / "python3.tmp"), "-c", "import platform; print(platform.machine())").strip()
    if machine != "aarch64":
        raise Unavailable(f"Expected an aarch64 Python. Received: {machine!r} on {platform.machine()}")
    (folder / "python3.tmp").rename(program)
    return program


def _unpack(folder):
    debs, native = folder / "debs", _run(None, "dpkg", "--print-architecture").strip()
    for name in ("debs", "wheels", "site", "root/proc", "host", "lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    (folder / "root" / "proc" / "cpuinfo").write_text(_CPUINFO, encoding="utf-8")
    options = [f"APT::Architecture={native}", f"APT::Architectures::={native}", "APT::Architectures::=arm64"]
    options += [
        f"Dir::State::lists={folder}/lists",
        f"Dir::State::status={folder}/status",
        f"Dir::Cache={folder}/cache",
    ]
    apt = ["apt-get", "-q", *(part for option in options for part in ("-o", option))]
    _run(debs, *apt, "update")
    _run(debs, *apt, "download", "qemu-user-static", *(f"{name}:arm64" for name in _PACKAGES))
    for path in sorted(debs.glob("*.deb")):
        _run(debs, "dpkg-deb", "-x", str(path), str(folder / ("host" if path.name.startswith("qemu") else "root")))
    platforms = [part for name in _PLATFORMS for part in ("--platform", name)]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version=3.11"]
    _run(folder / "wheels", *pip, *platforms, *_WHEELS)
    for path in (folder / "wheels").glob("*.whl"):
        with zipfile.ZipFile(path) as wheel:
            wheel.extractall(folder / "site")


def _run(folder, *command):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise Unavailable(f"{' '.join(command)[:200]}: {done.stderr[-300:]}")
    return done.stdout
