"""The list of seeded faults: each fits its file, every part of the package has some, and the docs have their table."""

import pathlib
import subprocess
import sys

import mutants
import pytest
from seeded_faults import MUTANTS

pytestmark = pytest.mark.tensorflow

ROOMS = {
    *("formats", "layers", "initializers", "regularizers", "constraints", "graph"),
    *("ranks", "conversion", "callbacks", "export", "litert", "models", "launch", "launch/data"),
    *("atomic", "checks", "plot", "distillation", "tuning", "freezing", "kept_times"),
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_fault_fits_its_file_and_its_tests_are_there(mutant):
    source = (mutants.ROOT / mutant.file).read_text(encoding="utf-8")
    changed = mutants.mutated(mutant, source)
    assert changed != source
    compile(changed, mutant.file, "exec")
    assert mutant.tests and all((mutants.ROOT / path).is_file() for path in mutant.tests)


def test_a_snippet_that_is_not_there_once_is_told():
    mutant = MUTANTS[0]
    for text, count in (("", 0), (mutant.old * 2, 2)):
        with pytest.raises(ValueError, match=f"{mutant.file}. Received: {count} times"):
            mutants.mutated(mutant, text)


def test_every_room_has_faults():
    assert len(MUTANTS) >= 50 and len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert {mutant.room for mutant in MUTANTS} == ROOMS


def test_results_and_table_are_of_these_faults():
    rows = mutants.read_results()
    assert list(rows) == [mutant.name for mutant in MUTANTS]
    assert [row["file"] for row in rows.values()] == [mutant.file for mutant in MUTANTS]
    # A fault that no test can find has a reason; tests find all others.
    assert all((rows[mutant.name]["killed_by"] is None) == (mutant.equivalent is not None) for mutant in MUTANTS)
    page = mutants.PAGE.read_text(encoding="utf-8")
    assert mutants.with_table(page, rows) == page


@pytest.mark.thorough
@pytest.mark.parametrize("file", ["elrt_keras/atomic.py", "models/blocks.py", "launch/parsing.py"])
def test_what_is_imported_is_the_copy_with_the_fault(file, tmp_path):
    mutants.copy_tree(tmp_path)
    changed = tmp_path / file
    changed.write_text(f"{changed.read_text(encoding='utf-8')}\nraise ImportError('the fault')\n", encoding="utf-8")
    name = file.removesuffix(".py").replace("/", ".")
    name = name if name.startswith("elrt_keras") else f"elrt_keras.{name}"
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"],
        cwd=tmp_path,
        env=mutants.environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "ImportError: the fault" in done.stderr
    assert not pathlib.Path(tmp_path, ".git").exists()
