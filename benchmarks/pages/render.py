"""Pages from templates: a template holds the text; modules of this folder fill in its references."""

import pathlib

import jinja2

from benchmarks.pages import comparisons, costs, formats, layers, litert, networks, numbers, steps, summary, walks

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ("summary", "performance", "results", "models", "first-hour")
# Pages with one part, between marks, that is made from a template: template, page.
PARTS = {
    "headline-readme": "README.md",
    "first-steps-readme": "README.md",
    "first-steps-reliability": "docs/reliability.md",
    "formats-measured": "docs/formats.md",
}
_MODULES = (comparisons, costs, formats, layers, litert, networks, numbers, steps, summary, walks)
MODULES = {module.__name__.rpartition(".")[2]: module for module in _MODULES}


def render(name, draw, modules=MODULES):
    """Makes the text of a page.

    Args:
        name: name of a template.
        draw: function `(name of a picture, function that writes it to a path)` that returns the picture's address.
        modules: dict of the names that the template may use.

    Raises:
        jinja2.UndefinedError: if the template uses an unknown name.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates", encoding="utf-8"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{name}.md").render(draw=draw, **modules).strip("\n") + "\n"


def drawn(images):
    """Returns a `draw` function for `render` that writes pictures into a folder."""

    def draw(name, picture):
        picture(images / name)
        return f"images/{name}"

    return draw


def renewed(page, name, text):
    """Replaces the text between the marks of the part `name` of a page."""
    mark = f"<!-- {name}, made by `python -m benchmarks.pages` -->"
    before, _, after = page.split(mark)
    return f"{before}{mark}\n{text.lstrip()}{mark}{after}"


def write(name):
    """Writes a page of `docs/` with its pictures, or a part of another page; returns its path."""
    docs = ROOT / "docs"
    path = ROOT / PARTS[name] if name in PARTS else docs / f"{name}.md"
    text = render(name, drawn(docs / "images"))
    if name in PARTS:
        text = renewed(path.read_text(encoding="utf-8"), name, text)
    path.write_text(text, encoding="utf-8")
    return path
