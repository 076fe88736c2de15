"""The documentation: its code runs, and it has every public name."""

import importlib.util
import inspect
import pathlib
import re
import types

import keras
import pytest

import elrt_keras
from elrt_keras import formats

pytestmark = pytest.mark.tensorflow  # the same on every backend
DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
EXCERPTS = {"deploy"}  # pages that use models and data of the reader
GUIDES = ("index", "own_model", "ranks", "elrt", "formats", "training", "adding_a_format", "faq")
ROOMS = ("callbacks", "constraints", "export", "formats", "initializers", "layers", "models", "plot", "regularizers")


def public_objects():
    """Lists names and objects that users call: those of `elrt_keras` and of its public modules."""
    found = {}
    for module in (elrt_keras, *(importlib.import_module(f"elrt_keras.{room}") for room in ROOMS)):
        own = [n for n, v in vars(module).items() if n[0] != "_" and getattr(v, "__module__", "") == module.__name__]
        names = getattr(module, "__all__", own)
        found.update({f"{module.__name__}.{name}": getattr(module, name) for name in names})
    return {name: value for name, value in found.items() if not isinstance(value, types.ModuleType)}


def blocks(page):
    """Lists the Python blocks of a page as `(line, code)`."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return [(text[: m.start(1)].count("\n"), m[1]) for m in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)]


@pytest.mark.thorough
@pytest.mark.parametrize("page", GUIDES)
def test_the_code_of_a_guide_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(formats.base, "_FORMATS", dict(formats.base._FORMATS))
    namespace = {"__name__": page}
    assert blocks(page)
    for line, code in blocks(page):
        exec(compile("\n" * line + code, str(DOCS / f"{page}.md"), "exec"), namespace)


def test_every_room_is_looked_at():
    modules = [n for n in elrt_keras.__all__ if (DOCS.parent / "elrt_keras" / f"{n}.py").exists()]
    packages = [n for n in elrt_keras.__all__ if (DOCS.parent / "elrt_keras" / n / "__init__.py").exists()]
    # Only the measuring part of `litert` is for users; the reference has a page for it.
    assert {*modules, *packages, "models"} == {*ROOMS, "litert"}
    assert "::: elrt_keras.litert.CommandTimer" in (DOCS / "api" / "core.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", public_objects())
def test_public_names_are_documented_and_in_the_reference(name):
    pages = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    value = public_objects()[name]
    assert inspect.getdoc(value), f"{name} has no docstring"
    refers = name.endswith(("Report", "Result")) or "`elrt_keras.models.build`" in value.__doc__
    assert refers or ">>> " in value.__doc__, f"{name} has no example"
    assert re.search(rf"^::: {re.escape(name)}$", pages, re.M), f"{name} is missing in docs/api/"
    if inspect.isclass(value):
        # Keras documents the methods that it calls, such as `build`.
        own = {n: v for n, v in vars(value).items() if n[0] != "_" and n not in dir(keras.layers.Layer)}
        methods = [n for n, v in own.items() if inspect.isfunction(v) or isinstance(v, (property, classmethod))]
        assert not [n for n in methods if not inspect.getdoc(getattr(value, n))]


def test_the_navigation_has_every_page():
    text = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/-]+\.md", text))
    assert {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} == named


def test_docstring_examples_become_code_blocks():
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location("griffe_runtime", DOCS / "griffe_runtime.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = "Adds.\n\nExample:\n\n>>> 1 + 1\n2\n\nMore."
    assert module.with_code_blocks(text) == "Adds.\n\n**Example**\n\n```pycon\n>>> 1 + 1\n2\n```\n\nMore."


def test_all_pages_with_code_are_guides():
    pages = {page.stem for page in DOCS.glob("*.md") if "```python\n" in page.read_text(encoding="utf-8")}
    assert pages == {*GUIDES, *EXCERPTS}
