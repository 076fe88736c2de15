"""Settings of the whole suite: which tests a command runs, and how many examples a property is tried on."""

import os
import pathlib

import hypothesis

# On processors without instructions for neural networks TensorFlow leaves oneDNN out, and with it all convolutions of
# channels first; tests run alike everywhere. TensorFlow reads this when it is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# Of two workers' controller nothing else would import Keras, which takes as long as a hundred tests.
BACKEND = os.environ.setdefault("KERAS_BACKEND", "tensorflow")

# Shapes differ from example to example, and backends compile for each: no time limit on one example.
hypothesis.settings.register_profile("quick", deadline=None, max_examples=8, derandomize=True)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.register_profile("all", deadline=None, max_examples=50, derandomize=False, print_blob=True)

# On JAX most of the suite's time is XLA's, which compiles every shape of every test: without optimising it takes half,
# and what it has compiled is kept for the next run. `common.random_examples` draws fewer there for the same reason.
if BACKEND == "jax":
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def pytest_addoption(parser):
    parser.addoption(
        "--suite",
        choices=("quick", "rest", "all"),
        default="all",
        help="quick: `make test`; rest: what continuous integration runs beside it; all: everything, the default",
    )


def pytest_configure(config):
    # Before test modules are imported: `common.random_examples` reads the profile.
    suite = config.getoption("--suite")
    hypothesis.settings.load_profile({"quick": "quick", "rest": "ci", "all": "all"}[suite])


def _is_quick(item):
    if item.get_closest_marker("slow") or item.get_closest_marker("thorough"):
        return False
    return BACKEND == "tensorflow" or item.get_closest_marker("backends") is not None


def _belongs(item, suite):
    if item.get_closest_marker("tensorflow") and BACKEND != "tensorflow":
        return False
    if suite == "all":
        return True
    return _is_quick(item) == (suite == "quick") and not item.get_closest_marker("slow")


def pytest_ignore_collect(collection_path, config):
    """Leaves out whole modules of which a backend has nothing to run, with what they import."""
    if BACKEND == "tensorflow" or collection_path.suffix != ".py":
        return None
    text = collection_path.read_text(encoding="utf-8")
    nothing_quick = config.getoption("--suite") == "quick" and "mark.backends" not in text
    return True if nothing_quick or "\npytestmark = pytest.mark.tensorflow" in text else None


def pytest_collection_modifyitems(config, items):
    """Leaves out what the suite or the backend is not for; a test counts once, where it runs."""
    suite = config.getoption("--suite")
    left_out = [item for item in items if not _belongs(item, suite)]
    items[:] = [item for item in items if _belongs(item, suite)]
    config.hook.pytest_deselected(items=left_out)
