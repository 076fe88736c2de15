"""Writes the documentation pages that are made from `benchmarks/results/`, with their pictures.

python -m benchmarks.pages
python -m benchmarks.pages --only=performance --only=models
"""

from absl import app, flags

from benchmarks.pages.render import PAGES, PARTS, write

_ONLY = flags.DEFINE_multi_enum("only", None, [*PAGES, *PARTS], "Write only this page. The flag may be repeated.")


def main(argv):
    """Writes the pages."""
    del argv
    for name in _ONLY.value or [*PAGES, *PARTS]:
        print(write(name))


if __name__ == "__main__":
    app.run(main)
