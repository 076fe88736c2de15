"""What a reader of a measurement needs to know of the machine."""

import os
import pathlib
import platform
import sys


def describe():
    """Processor, cores, accelerator, Keras backend and versions: those of the libraries that are loaded."""
    import keras

    described = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "backend": keras.backend.backend(),
    }
    if keras.backend.backend() == "jax":
        import jax

        described["device"] = jax.devices()[0].device_kind
    names = ("keras", "numpy", "tensorflow", "jax", "torch", "ai_edge_litert")
    return described | {name: sys.modules[name].__version__ for name in names if name in sys.modules}


def _processor():
    if os.path.exists("/proc/cpuinfo"):
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
