"""Description of the machine for the result files, and a context that builds models on the processor."""

import contextlib
import os
import pathlib
import platform
import sys

_CPUINFO = pathlib.Path("/proc/cpuinfo")
# Instruction sets by their names in Linux, on x86 and ARM. Virtual machines may give different processors one name; the
# instruction sets tell fast processors from slow ones.
_INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx_vnni": "AVX-VNNI"}
_INSTRUCTIONS |= {"avx512_bf16": "BF16", "amx_tile": "AMX", "asimd": "NEON", "sve": "SVE"}
# Packages whose versions are reported if they are loaded, with their modules.
_PACKAGES = {name: name for name in ("keras", "numpy", "tensorflow", "jax", "torch", "ai_edge_litert")}
_PACKAGES["tensorly_torch"] = "tltorch"


def describe():
    """Describes processor, cores, accelerator, Keras backend, and versions of the loaded libraries."""
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
    """Names the vector and matrix instructions of the processor, such as `"AVX2 AVX-512 AMX"`; needs Linux."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.exists() else []
    known = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    return " ".join(name for flag, name in _INSTRUCTIONS.items() if flag in known) or "unknown"


def on_host():
    """Context in which JAX builds models on the processor, where many small operations compile faster."""
    import keras

    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.default_device(jax.devices("cpu")[0])
