"""Writes the pages of the documentation that are made from `benchmarks/results/`, with their pictures.

python -m benchmarks.pages
python -m benchmarks.pages --only=performance --only=models
"""

from absl import app, flags

from benchmarks.pages.render import PAGES, PARTS, write

_ONLY = flags.DEFINE_multi_enum("only", None, [*PAGES, *PARTS], "Only this page; may be given several times.")


def main(argv):
    """Writes the pages."""
    del argv
    for name in _ONLY.value or [*PAGES, *PARTS]:
        print(write(name))


if __name__ == "__main__":
    app.run(main)
