"""Cache of measured seconds, one file per device, and the identification of processors."""

import hashlib
import json
import math
import os
import pathlib
import platform
from collections.abc import Mapping

from elrt_keras.atomic import write_bytes

_CPUINFO = pathlib.Path("/proc/cpuinfo")
# Lines of this file that identify the kind of processor, on x86 and on ARM.
_TELLING = {"vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features"}
_TELLING |= {f"CPU {name}" for name in ("implementer", "architecture", "variant", "part", "revision")}


class KeptTimes:
    """Seconds by key, in a JSON file for one device.

    Args:
        kind: name of the measurement; the file name begins with it.
        device: text that identifies the device and all other conditions of the times.
        folder: folder of the file; `None` for `$ELRT_CACHE_DIR`, or else `~/.cache/elrt_keras`.

    Raises:
        ValueError: for a folder that cannot be written.
    """

    def __init__(self, kind: str, device: str, folder: str | None = None):
        folder = folder or os.environ.get("ELRT_CACHE_DIR") or os.path.join(_user_cache(), "elrt_keras")
        digest = hashlib.sha256(device.encode()).hexdigest()[:16]
        self._device, self.path = device, os.path.join(folder, f"{kind}_{digest}.json")
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"Cannot keep measured times; $ELRT_CACHE_DIR sets the folder. Received: {folder!r}: {error}"
            ) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(
                f"Expected a folder for measured times that can be written; $ELRT_CACHE_DIR sets it. "
                f"Received: {folder!r}"
            )
        self.seconds: dict[str, float] = self._read()

    def add(self, measured: Mapping[str, float]) -> None:
        """Adds a dict of seconds and writes the file.

        Entries of other processes stay. If two processes write at the same moment, some entries may be lost; they are
        measured again.
        """
        self.seconds = {**self._read(), **self.seconds, **measured}
        document = {"machine": self._device, "seconds": self.seconds}
        try:
            write_bytes(self.path, json.dumps(document, indent=1, sort_keys=True).encode())
        except OSError as error:
            raise ValueError(f"Cannot keep measured times. Received: {self.path!r}: {error}") from error

    def _read(self):
        try:
            with open(self.path, encoding="utf-8") as file:
                seconds = {key: float(value) for key, value in json.load(file)["seconds"].items()}
            return {key: value for key, value in seconds.items() if 0 < value < math.inf}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # no file yet, or a damaged one: times are measured again


def processor() -> str:
    """Returns the name of the processor, or of its architecture if the system does not report a name."""
    names = [value for name, value in _described() if name == "model name"]
    return names[0] if names else platform.processor() or platform.machine()


def processor_kind() -> str:
    """Returns eight digits that identify the kind of processor. Virtual machines may give different kinds one name."""
    features = sorted({f"{name}: {value}" for name, value in _described() if name in _TELLING})
    return hashlib.sha256("\n".join(features).encode()).hexdigest()[:8]


def _described():
    """Lists Linux' description of the processors as (name, value); empty on other systems."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]


def _user_cache():
    return os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
