"""Settings of the whole suite: the tests that a command runs, and the number of examples of a property test."""

import os
import pathlib

import hypothesis

# On processors without instructions for neural networks, TensorFlow disables oneDNN, and with it all channels-first
# convolutions. Enable it, so that all machines run the same tests. TensorFlow reads this when it is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# The controller of two workers does not need Keras; its import would take as long as a hundred tests.
BACKEND = os.environ.setdefault("KERAS_BACKEND", "tensorflow")

# No time limit on one example: shapes differ between examples, and backends compile for each.
hypothesis.settings.register_profile("quick", deadline=None, max_examples=8, derandomize=True)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.register_profile("all", deadline=None, max_examples=50, derandomize=False, print_blob=True)

# On JAX, XLA takes most of the suite's time: it compiles every shape of every test. Without optimisation it takes half
# of that, and a cache keeps the compiled code for the next run. `common.random_examples` draws fewer examples there.
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
    # Load the profile before test modules are imported: `common.random_examples` reads it.
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
    """Skips modules, and their imports, if the backend runs none of their tests."""
    if BACKEND == "tensorflow" or collection_path.suffix != ".py":
        return None
    text = collection_path.read_text(encoding="utf-8")
    nothing_quick = config.getoption("--suite") == "quick" and "mark.backends" not in text
    return True if nothing_quick or "\npytestmark = pytest.mark.tensorflow" in text else None


def pytest_collection_modifyitems(config, items):
    """Deselects tests that do not belong to the suite or the backend."""
    suite = config.getoption("--suite")
    left_out = [item for item in items if not _belongs(item, suite)]
    items[:] = [item for item in items if _belongs(item, suite)]
    config.hook.pytest_deselected(items=left_out)
