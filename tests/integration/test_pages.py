"""Pages with measured numbers say what the files of results say."""

import pathlib

from benchmarks import performance

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_the_page_on_performance_is_made_from_the_results(tmp_path):
    written = (DOCS / "performance.md").read_text(encoding="utf-8")
    assert performance.page(tmp_path) == written
    for picture in tmp_path.iterdir():
        assert f"(images/{picture.name})" in written and (DOCS / "images" / picture.name).exists()
