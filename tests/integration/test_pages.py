"""Pages with measured numbers agree with the result files."""

import functools
import inspect
import pathlib
import types

import jinja2
import pytest

from benchmarks.measure import first_steps
from benchmarks.pages import comparisons, litert, measured, numbers, render, tables, walks
from benchmarks.pages.measured import STEPS

pytestmark = pytest.mark.tensorflow  # the same on every backend

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"


def address(name, _):
    """Draws nothing."""
    return f"images/{name}"


@pytest.mark.parametrize("name", render.PAGES)
def test_the_pages_are_made_from_the_results(name, tmp_path):
    written = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert render.render(name, render.drawn(tmp_path)) == written
    for picture in tmp_path.iterdir():
        assert f"(images/{picture.name})" in written and (DOCS / "images" / picture.name).exists()


def test_the_readme_has_the_commands_of_the_first_hour():
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n  ", "")
    others = ("install", "dense", "export", "benchmark", "classify")  # these name other files, or two of them
    commands = {name: lines for name, _, lines in STEPS if name not in others}
    assert len(commands) == 4 and all(line in readme for line in commands.values())


def recorded(found):
    """Wraps the modules of the templates: their functions run once per arguments; `found` gets the results."""

    def once(function):
        @functools.cache
        def call(*arguments):
            found.append(function(*arguments))
            return found[-1]

        return call

    functions = {
        name: {key: once(value) for key, value in vars(module).items() if inspect.isfunction(value)}
        for name, module in render.MODULES.items()
    }
    functions["numbers"] = vars(numbers) | {"runs_of": functools.cache(numbers.runs_of)}
    return {name: types.SimpleNamespace(**found) for name, found in functions.items()}


def references(value):
    """Yields `(dict, key)` of all names that templates may use, also nested ones."""
    if isinstance(value, list):
        yield from (pair for inner in value for pair in references(inner))
    elif isinstance(value, dict):
        yield from ((value, key) for key in value)
        inside = [inner for key, inner in value.items() if key not in ("first", "config", "remarks")]
        yield from references(inside)


@pytest.mark.parametrize("name", render.PAGES)
def test_a_reference_to_what_is_missing_is_an_error(name):
    found, errors = [], 0
    modules = recorded(found)
    page = render.render(name, address, modules)
    for value, key in list(references(found)):
        assert not hasattr(dict, key), f"a template would find dict.{key}"
        kept = dict(value)
        del value[key]
        try:
            assert render.render(name, address, modules) == page, f"{key} is missing without an error"
        except jinja2.UndefinedError:
            errors += 1
        value.update(kept)
    assert errors > len(list(references(found))) / 2


def test_a_result_without_a_key_is_an_error(monkeypatch):
    (result,) = measured.one("peers", "torch")
    monkeypatch.setattr(measured, "read", lambda name: {"torch": result} if name == "peers" else {})
    assert f"{result['threads']} threads" in render.render("performance", address)
    del result["threads"]
    with pytest.raises(jinja2.UndefinedError, match="threads"):
        render.render("performance", address)


def test_sections_without_results_are_left_out(monkeypatch):
    for module in [module for module in (measured, *render.MODULES.values()) if hasattr(module, "read")]:
        monkeypatch.setattr(module, "read", lambda experiment: {})
    for name in render.PAGES:
        text = render.render(name, address)
        assert text.startswith("# ") and "\n| " not in text and "Machine" not in text


def test_unlike_processors_are_never_in_one_table_without_a_word():
    epyc, xeon = ({"machine": {"processor": name}} for name in ("AMD EPYC", "Intel(R) Xeon(R) Processor"))
    h200 = {"machine": {**xeon["machine"], "device": "NVIDIA H200"}}
    alike = tables.table("a | b", ["1 | 2", "3 | 4"], [[epyc], [epyc]])
    assert alike == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |"
    unlike = tables.table("a | b", ["1 | 2", "3 | 4"], [[epyc, xeon], [h200]])
    assert unlike.splitlines()[::2] == ["| a | b | processor |", "| 1 | 2 | AMD EPYC; Intel Xeon |"]
    assert unlike.endswith("| 3 | 4 | Intel Xeon, NVIDIA H200 |")
    assert tables.table("a", ["1"], [[epyc]], beside=[xeon]).endswith("| 1 | AMD EPYC |")


def test_times_that_differ_under_one_name_of_a_processor_are_told():
    kinds = {"model": "resnet18", "threads": 1}
    slow, fast, other = {**kinds, "dense_ms": [36.0]}, {**kinds, "dense_ms": [17.0, 17.2]}, {**kinds, "dense_ms": [19]}
    assert litert.unlike([slow, fast]) == ["resnet18, float32: 36.00 and 17.10 ms"]
    assert litert.unlike([fast, other]) == litert.unlike([slow, {**fast, "quantization": "int8"}]) == []


def run(accuracy, seed=0, epochs=2):
    summary = {"test_accuracy": accuracy}
    return {
        "config": {"seed": seed, "epochs": epochs},
        "summary": summary,
        "history": [{"val_accuracy": accuracy}] * epochs,
    }


def runs(*accuracies, epochs=2):
    return [run(accuracy, seed, epochs) for seed, accuracy in enumerate(accuracies)]


def test_accuracies_are_compared_seed_by_seed():
    dense, low_rank = [run(0.9, 0), run(0.8, 1), run(0.7, 2)], [run(0.71, 2), run(0.88, 0), run(0.5, 5)]
    assert numbers.differences(low_rank, dense) == pytest.approx([1, -2])
    assert numbers.against(dense, dense) == numbers.against([run(0.5, 5)], dense) == ""
    assert numbers.mean_and_deviation([90.0, 92.0], "+") == "+91.00 ± 1.41 (2)"
    assert numbers.mean_and_deviation([90.0]) == "90.00 (1)"


def test_gains_count_where_another_seed_would_not_make_them():
    # Seeds have a deviation of 1 point, so a significant difference is above 2·√2 points.
    groups = {"elrt": runs(0.79, 0.80, 0.81), "longer": runs(0.83, epochs=6), "label_smoothing": runs(0.81)}
    groups |= {"weight_decay": runs(0.74), "dense": runs(0.84)}
    assert list(comparisons.gains(groups)) == ["longer", "label_smoothing", "weight_decay"]
    changes = ["more epochs than the dense network (+4.0)", "weight decay 1e-4 instead of 5e-4 (-5.0)"]
    assert comparisons.clear_gains(groups) == changes
    assert comparisons.clear_gains({"elrt": runs(0.79), "longer": runs(0.83)}) is None


def test_templates_get_numbers_of_runs_by_their_names():
    groups = {"elrt": runs(0.79, 0.80, 0.81), "longer": runs(0.83, epochs=6), "dense_longer": runs(0.85, epochs=6)}
    assert numbers.accuracy(groups["dense_longer"]) == "85.00 (1)" and numbers.epochs(groups) == 2
    assert numbers.against(groups["longer"], groups["dense_longer"]) == "-2.00 (1)"
    assert numbers.best(groups, "elrt", "longer", "svd") == "longer" and numbers.best(groups, "svd") is None
    assert numbers.apart(groups["elrt"], groups["longer"], -1) == "4.00"
    assert numbers.noise(groups) == {"deviation": "1.00", "least": "2.8"}


def test_training_is_counted_in_macs_of_its_epochs():
    kept = {"summary": {"macs": 5}, "history": [{"macs": 20}, {"macs": 5}, {"macs": 5}]}
    assert numbers.macs_of_epochs(kept) == 30
    assert numbers.macs_of_epochs({"summary": {"macs": 5}, "history": [{}, {}]}) == 10
    timed = [{"summary": {"training_cpu_seconds": seconds}} for seconds in (60, 180, 120)]
    assert numbers.processor_minutes([*timed, {"summary": {}}]) == "2"
    assert numbers.processor_minutes([{"summary": {}}]) == ""


def test_sentences_of_the_first_steps_have_their_place(monkeypatch):
    output = (
        "== quick tests on tensorflow\n2349 passed, 10 skipped in 350.00s\n== quick tests on jax\n590 passed in 1.0s\n"
    )
    tests = first_steps.tests_by_backend(output)
    assert tests == {"tensorflow": 2349, "jax": 590}
    demo = {"demo_seconds": 120, "demo_again_seconds": 40, "demo_megabytes": 2800}
    demo |= {"command": "python -m benchmarks.measure first_steps", "machine": {"cores": 2}}
    now = demo | {"test_megabytes": 5300, "test_seconds": [540, 570], "tests": tests}
    runs = {"now": {"seconds": 2040, "parts": {"lint": 120, "test-rest": 1500}}}
    found = {"first_steps": {"before": demo, "now": now}, "ci": runs}
    monkeypatch.setattr(walks, "read", found.get)
    text = render.render("first-steps-reliability", address)
    assert "34 minutes from a fresh clone to the end (`make lint` 2.0, `make test-rest` 25.0)" in text
    assert first_steps.seconds_by_part("== make lint: 120 s\n== make test-rest: 1500 s\n") == runs["now"]["parts"]
    for name, page in render.PARTS.items():
        text = render.render(name, address)
        if name.startswith("first-steps"):
            assert (
                "On 2 cores" in text or "9.0, 9.5 minutes in\n2 runs; 2,349 on tensorflow + 590 on jax tests." in text
            )
        written = render.renewed((ROOT / page).read_text(encoding="utf-8"), name, text)
        assert text in written and render.renewed(written, name, text) == written
