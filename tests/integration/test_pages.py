"""Pages with measured numbers say what the files of results say."""

import pathlib

import pytest

from benchmarks import (
    accuracy_sections,
    cost_sections,
    defaults_section,
    first_steps,
    performance,
    recipe_section,
    report,
)
from benchmarks.first_hour_page import first_hour_page
from benchmarks.measure import evidence
from benchmarks.measure.first_hour import STEPS

pytestmark = pytest.mark.tensorflow  # the same on every backend

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_the_first_hour_is_the_walk_and_the_readme_has_its_commands():
    assert first_hour_page() == (DOCS / "first-hour.md").read_text(encoding="utf-8")
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8").replace("\\\n  ", "")
    others = ("install", "dense", "export", "benchmark", "classify")  # these name other files, or two of them
    commands = {name: lines for name, _, lines in STEPS if name not in others}
    assert len(commands) == 4 and all(line in readme for line in commands.values())


@pytest.mark.parametrize("name", ["performance", "results"])
def test_the_pages_are_made_from_the_results(name, tmp_path):
    written = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    page = {"performance": performance.page, "results": report.results_page}[name]
    assert page(tmp_path) == written
    for picture in tmp_path.iterdir():
        assert f"(images/{picture.name})" in written and (DOCS / "images" / picture.name).exists()


def test_accuracies_are_compared_seed_by_seed():
    def run(seed, accuracy):
        return {"config": {"seed": seed}, "summary": {"test_accuracy": accuracy}}

    dense, low_rank = [run(0, 0.9), run(1, 0.8), run(2, 0.7)], [run(2, 0.71), run(0, 0.88), run(5, 0.5)]
    assert accuracy_sections.differences(low_rank, dense) == pytest.approx([1, -2])
    assert accuracy_sections.mean_and_deviation([90.0, 92.0], "+") == "+91.00 ± 1.41 (2)"
    assert accuracy_sections.mean_and_deviation([90.0]) == "90.00 (1)"


def test_gains_count_where_another_seed_would_not_make_them(monkeypatch, tmp_path):
    def runs(*accuracies, epochs=2):
        return [
            {"config": {"seed": seed}, "summary": {"test_accuracy": accuracy}, "history": [{}] * epochs}
            for seed, accuracy in enumerate(accuracies)
        ]

    # Seeds set runs apart by 1 point, so what counts is above 2·√2 points.
    groups = {"elrt": runs(0.79, 0.80, 0.81), "longer": runs(0.83, epochs=6), "label_smoothing": runs(0.81)}
    groups |= {"weight_decay": runs(0.74), "dense": runs(0.84), "dense_longer": runs(0.85, epochs=6)}
    told = []
    monkeypatch.setattr(recipe_section, "runs_of", lambda grid: (groups, 2))
    monkeypatch.setattr(recipe_section, "comparison", lambda title, text, names, images: told.extend([text, names]))
    recipe_section.recipe_section(tmp_path)
    text, names = " ".join(told[0].split()), list(told[1])
    assert names == ["elrt", "longer", "label_smoothing", "weight_decay"]
    changes = "more epochs than the dense network (+4.0); weight decay 1e-4 instead of 5e-4 (-5.0)"
    assert f"What goes beyond a change of the seed: {changes}." in text
    assert "for 6 epochs instead of 2 the dense network reaches 85.00 (1) %" in text
    assert "goes from -5.00 (1) to -2.00 (1) points" in text


def test_whether_a_lead_outlasts_the_schedule_is_told_once_it_was_measured():
    def runs(accuracy, epochs):
        return [{"config": {"seed": 0}, "summary": {"test_accuracy": accuracy}, "history": [{}] * epochs}]

    groups = {"elrt": runs(0.78, 8), "glorot": runs(0.79, 8), "longer": runs(0.83, 24)}
    assert "is open" in defaults_section._told_of_longer_runs(groups)
    told = defaults_section._told_of_longer_runs({**groups, "glorot_longer": runs(0.8325, 24)})
    assert told == "In 24 epochs glorot_uniform's lead goes from +1.00 (1) to +0.25 (1)."


def test_training_is_counted_in_macs_of_its_epochs():
    kept = {"summary": {"macs": 5}, "history": [{"macs": 20}, {"macs": 5}, {"macs": 5}]}
    assert cost_sections.macs_of_epochs(kept) == 30
    assert cost_sections.macs_of_epochs({"summary": {"macs": 5}, "history": [{}, {}]}) == 10
    timed = [{"summary": {"training_cpu_seconds": seconds}} for seconds in (60, 180, 120)]
    assert cost_sections.processor_minutes([*timed, {"summary": {}}]) == "2"
    assert cost_sections.processor_minutes([{"summary": {}}]) == ""


def test_sentences_of_the_first_steps_have_their_place(monkeypatch):
    output = (
        "== quick tests on tensorflow\n2349 passed, 10 skipped in 350.00s\n== quick tests on jax\n590 passed in 1.0s\n"
    )
    tests = first_steps.tests_by_backend(output)
    assert tests == {"tensorflow": 2349, "jax": 590}
    demo = {"demo_seconds": 120, "demo_again_seconds": 40, "demo_megabytes": 2800}
    now = demo | {"test_megabytes": 5300, "test_seconds": [540, 570], "tests": tests, "machine": {"cores": 2}}
    monkeypatch.setattr(evidence, "read", lambda experiment: {"before": demo, "now": now})
    for name, text in first_steps.sentences().items():
        page = (DOCS.parent / name).read_text(encoding="utf-8")
        written = first_steps.renewed(page, text)
        assert text in written and first_steps.renewed(written, text) == written
