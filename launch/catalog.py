"""Lists of the models, data sets and recipes that users can choose from."""

import pathlib

from elrt_keras import models
from elrt_keras.checks import one_of
from elrt_keras.launch import data, flags
from elrt_keras.terminal.tables import render_table

_RECIPES = pathlib.Path(__file__).parent / "recipes"
_DATA_NOTES = {
    "digits": "1,797 grey digits of 8×8 pixels, embedded in scikit-learn",
    "cifar10": "60,000 images of 32×32 pixels in 10 classes",
    "cifar100": "60,000 images of 32×32 pixels in 100 classes",
    "fashion_mnist": "70,000 grey images of 28×28 pixels in 10 classes",
    "svhn_cropped": "99,289 house numbers of 32×32 pixels in 10 classes",
    "imagenet2012": "1.3 million photographs in 1000 classes; TFDS cannot download it, but prepares the archives",
    "imagenette": "13,394 photographs in 10 classes; also as imagenette/320px-v2 and imagenette/160px-v2",
}


def recipes():
    """Returns `{name: path}` of the package's flag files; each repeats one published reduction."""
    return {path.stem: path for path in sorted(_RECIPES.glob("*.flags"))}


def recipe_path(name):
    """Returns the path of a recipe's flag file.

    Raises:
        ValueError: for an unknown name.
    """
    known = recipes()
    return known[one_of(name, known, "recipe")]


def recipe_notes(name):
    """Returns the comment lines of a recipe: its subject, the published result and its cost."""
    lines = recipe_path(name).read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("# ") for line in lines if line.startswith("#")]


def recipe_config(name):
    """Returns the `TrainConfig` of a recipe."""
    lines = recipe_path(name).read_text(encoding="utf-8").splitlines()
    return flags.from_flagfile("\n".join(line for line in lines if not line.startswith("#")))


def listing():
    """Returns the text of all three lists."""
    bar = next(line for line in models.__doc__.splitlines() if line.startswith("==="))
    table = models.__doc__.split(bar, 1)[1].rsplit(bar, 1)[0].replace(f"{bar}\n", "").strip("\n")
    kinds = [(name, "streamed" if data.is_streamed(name) else "in memory", note) for name, note in _DATA_NOTES.items()]
    folder = ("folder:PATH", "streamed", "your images: one folder per class, or train/ and val/ with such folders")
    notes = [(name, *recipe_notes(name)) for name in recipes()]
    costs = [(name, what, cost.split(" MACs")[0].removeprefix("Training costs ")) for name, what, _, cost in notes]
    return "\n\n".join(
        [
            f"Models (--model)\n\n{table}",
            "Data sets (--dataset)\n\n" + render_table(["name", "kind", "what"], [*kinds, folder]),
            "Recipes (--recipe)\n\n" + render_table(["name", "what", "MACs to train"], costs),
        ]
    )
