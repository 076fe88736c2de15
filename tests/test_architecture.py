"""The house rules, read from the sources: imports go downwards, the core needs no TensorFlow, examples run."""

import ast
import doctest
import importlib
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import elrt_keras

pytestmark = pytest.mark.tensorflow  # the same on every backend
ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = {"elrt_keras": "elrt_keras", "models": "elrt_keras.models", "launch": "elrt_keras.launch"}
FLOORS = [
    ("atomic", "checks", "terminal"),
    ("formats", "kept_times"),
    ("initializers", "regularizers", "constraints", "graph"),
    ("layers", "litert", "distillation"),
    ("ranks", "tuning", "freezing"),
    ("conversion", "callbacks", "plot"),
    ("export", "models"),
    ("launch",),
]
LEVELS = {f"elrt_keras.{room}": level for level, rooms in enumerate(FLOORS) for room in rooms}
LAZY = FLOORS.index(("export", "models"))  # the package imports modules from here on only on first use
# Imports between modules of one floor, each with its reason.
BESIDE = {}
SOURCES = {
    ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts]).removesuffix(".__init__"): path
    for folder, package in FOLDERS.items()
    for path in sorted((ROOT / folder).rglob("*.py"))
}
LIBRARY = [name for name in SOURCES if not name.startswith("elrt_keras.launch")]


def imports(module, top_level_only=False):
    tree = ast.parse(SOURCES[module].read_text(encoding="utf-8"))
    found = []
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def level(module):
    return max((value for name, value in LEVELS.items() if f"{module}.".startswith(f"{name}.")), default=None)


def room(name):
    return ".".join(name.split(".")[:2])


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_downwards(module):
    own = level(module)
    if own is None:
        assert module == "elrt_keras"  # only `elrt_keras/__init__.py` may import everything, except the lazy modules
        assert not [name for name in imports(module) if (level(name) or 0) >= LAZY]
        return
    for name in imports(module):
        allowed = room(name) == room(module) or (room(module), room(name)) in BESIDE
        assert level(name) is None or level(name) < own or allowed, (module, name)


@pytest.mark.parametrize("module", SOURCES)
def test_tensorflow_is_imported_late_and_only_where_it_may(module):
    heavy = [name for name in imports(module) if name.split(".")[0] in ("tensorflow", "tensorflow_datasets")]
    may = module.startswith(("elrt_keras.export", "elrt_keras.launch", "elrt_keras.litert"))
    # Allowed for an operation that only TensorFlow has, and for gradients, which differ between backends.
    may |= module in ("elrt_keras.layers.batch_norm", "elrt_keras.tuning.steps")
    assert not heavy or may
    early = imports(module, top_level_only=True)
    assert not {"tensorflow", "tensorflow_datasets", "tensorly", "matplotlib", "rich"} & {
        n.split(".")[0] for n in early
    }
    # Only remedies for bugs of Keras may use its private modules.
    may_reach_in = module in ("elrt_keras.launch.multi_worker", "elrt_keras.launch.skip_sets")
    assert may_reach_in or not [name for name in imports(module) if name.startswith("keras.src")]


# Private names of other packages, by module: docs/design.md gives the reason for each.
PRIVATE = {
    "elrt_keras.graph.private": {
        "_flatten_layers",
        "_keras_mask",
        "_trainable_variables",
        "_trainable_variables_indices",
    },
    "elrt_keras.export.tfmot": {"_trainable_weights", "_non_trainable_weights"},
}


def private_names(tree):
    """Lists private attributes of objects other than `self` and `cls`, also by `getattr`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            yield node.attr
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            yield from (one.value for one in node.args[1:] if isinstance(one, ast.Constant))


@pytest.mark.parametrize("module", LIBRARY)
def test_private_names_of_keras_are_in_one_place(module):
    names = set(private_names(ast.parse(SOURCES[module].read_text(encoding="utf-8"))))
    found = {name for name in names if isinstance(name, str) and name[:1] == "_" and name[:2] != "__"}
    assert found == PRIVATE.get(module, set())


def test_private_names_of_keras_are_there_and_no_public_ones_are():
    layer = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    assert elrt_keras.graph.private.held_layers(layer) == layer._flatten_layers(include_self=False)
    masked = keras.layers.Embedding(4, 2, mask_zero=True)(keras.Input((3,)))
    assert elrt_keras.graph.private.mask_of(masked) is not None
    # Once Keras has public names for them, use those.
    assert not hasattr(layer, "flatten_layers") and not hasattr(masked, "keras_mask")


@pytest.mark.parametrize("module", SOURCES)
def test_no_assert_in_the_library(module):
    tree = ast.parse(SOURCES[module].read_text(encoding="utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("name", elrt_keras.__all__)
def test_public_names_resolve_and_are_documented(name):
    if name == "export" and keras.backend.backend() != "tensorflow":
        assert importlib.import_module("elrt_keras.export").__doc__
    assert getattr(elrt_keras, name).__doc__
    assert name in dir(elrt_keras)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="'elrt_keras' has no attribute 'factorise'"):
        _ = elrt_keras.factorise


@pytest.mark.parametrize("module", LIBRARY)
def test_docstring_examples_run(module):
    results = doctest.testmod(
        importlib.import_module(module), extraglobs={"elrt_keras": elrt_keras, "keras": keras, "np": np}
    )
    assert results.failed == 0


def python(program, cwd):
    return subprocess.run([sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("script", ["train", "evaluate", "plan", "export", "benchmark", "classify"])
def test_commands_are_thin(script):
    assert len((ROOT / "launch" / f"{script}.py").read_text(encoding="utf-8").splitlines()) < 120


def test_folders_are_no_packages_of_their_own():
    for folder in ("models", "launch"):
        done = python(f"import {folder}", ROOT)
        assert done.returncode != 0 and f"Import this package as `elrt_keras.{folder}`" in done.stderr


@pytest.mark.thorough
def test_importing_the_package_loads_nothing_heavy(tmp_path):
    done = python(
        "import keras, sys; before = set(sys.modules); import elrt_keras; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))",
        tmp_path,
    )
    loaded = set(ast.literal_eval(done.stdout.strip().splitlines()[-1]))
    assert not loaded & {"tensorly", "scipy", "matplotlib", "sklearn", "tensorflow", "torch", "jax"}


def test_the_tests_that_the_documents_name_are_there():
    for document in (ROOT / "docs").glob("*.md"):
        for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", document.read_text(encoding="utf-8")):
            source = (ROOT / path).read_text(encoding="utf-8")
            assert not name or f"\ndef {name}(" in source, f"{document.name} names {path}::{name}"
