"""Description of the machine, for readers of a measurement, and the place where models are built beside a device."""

import contextlib
import os
import pathlib
import platform
import sys

_CPUINFO = pathlib.Path("/proc/cpuinfo")
# Instruction sets by what Linux calls them, on x86 and on ARM: where virtual machines give unlike processors one name,
# they tell which is how fast.
_INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx_vnni": "AVX-VNNI"}
_INSTRUCTIONS |= {"avx512_bf16": "BF16", "amx_tile": "AMX", "asimd": "NEON", "sve": "SVE"}
# Names of packages whose versions count where they are loaded, and of their modules.
_PACKAGES = {name: name for name in ("keras", "numpy", "tensorflow", "jax", "torch", "ai_edge_litert")}
_PACKAGES["tensorly_torch"] = "tltorch"


def describe():
    """Processor, cores, accelerator, Keras backend and versions: those of the libraries that are loaded."""
    import keras

    from elrt_keras.litert.timing import processor

    described = {"processor": processor(), "instructions": instructions(), "cores": os.cpu_count()}
    described |= {"python": platform.python_version(), "backend": keras.backend.backend()}
    if keras.backend.backend() == "jax":
        import jax

        described["device"] = jax.devices()[0].device_kind
        if flags := os.environ.get("XLA_FLAGS"):
            described["xla_flags"] = flags
    loaded = {name: sys.modules[module] for name, module in _PACKAGES.items() if module in sys.modules}
    return described | {name: module.__version__ for name, module in loaded.items()}


def instructions():
    """The vector and matrix instructions of the processor, such as `"AVX2 AVX-512 AMX"`, as far as Linux tells."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.exists() else []
    known = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    return " ".join(name for flag, name in _INSTRUCTIONS.items() if flag in known) or "unknown"


def on_host():
    """A context in which JAX builds models on the processor: there the many small operations compile faster."""
    import keras

    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.default_device(jax.devices("cpu")[0])
