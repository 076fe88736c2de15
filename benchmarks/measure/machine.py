"""What a reader of a measurement needs to know of the machine."""

import os
import platform
import sys


def describe():
    """Processor, cores, accelerator, Keras backend and versions: those of the libraries that are loaded."""
    import keras

    from elrt_keras.litert.timing import processor

    described = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "backend": keras.backend.backend(),
    }
    if keras.backend.backend() == "jax":
        import jax

        described["device"] = jax.devices()[0].device_kind
        if flags := os.environ.get("XLA_FLAGS"):
            described["xla_flags"] = flags
    names = ("keras", "numpy", "tensorflow", "jax", "torch", "ai_edge_litert")
    return described | {name: sys.modules[name].__version__ for name in names if name in sys.modules}
