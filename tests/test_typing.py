"""Types in a user's type checker: the installed package, typical programs, and mistakes in them."""

import ast
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import elrt_keras

ROOT = pathlib.Path(__file__).resolve().parents[1]

PROGRAM = """
import keras
import numpy as np

import elrt_keras as elrt
from elrt_keras.callbacks import OrthogonalityLogger, RegularizationSchedule, StableRankStopping
from elrt_keras.regularizers import DoubleSoftOrthogonality

model: keras.Model = elrt.models.build("resnet20", input_shape=(8, 8, 1), plan=None)
model = elrt.models.resnet20(classes=10, width=0.5, zero_init_residual=True)
plan = elrt.plan_ranks(model, max_macs=0.4, method="energy", exclude=["stem_conv"])
plan["stage1_block1_1_conv"] = "tucker2", (8, 8)
plan["stage1_block1_2_conv"] = None
plan.save("plan.json")
again = elrt.RankPlan.load("plan.json")
entry = again["stage1_block1_1_conv"]
widest: int | float = 0 if entry.ranks is None else max(entry.ranks)
low_rank = elrt.factorize(model, plan, factor_regularizer=DoubleSoftOrthogonality(1e-2), recompute=True)
low_rank = elrt.factorize(model, {"a": ("tucker2", (8, 12)), "b": ("svd", 0.5), "c": "dense", "d": None})
by_hand = {"a": ("svd", 0.5), "b": None}
low_rank = elrt.factorize(model, by_hand, factor_initializer="decomposed", factor_constraint=elrt.constraints.Stiefel())
low_rank.compile("sgd", "sparse_categorical_crossentropy")
callbacks = [RegularizationSchedule({0: 1e-2, 20: 1e-3}), OrthogonalityLogger(), StableRankStopping("svd")]
RegularizationSchedule(lambda epoch: 1e-2 / (1 + epoch))
history = low_rank.fit(np.zeros((4, 8, 8, 1)), np.zeros(4), callbacks=callbacks)

costs = elrt.count_costs(low_rank)
macs: int = costs.macs + sum(row.macs for row in costs.layers)
dense, stock = elrt.merge(low_rank), elrt.expand(low_rank)
curve = elrt.shrink_curve(low_rank, [0.3, 0.2], evaluate=lambda shrunk: 0.5)
smaller: keras.Model = curve.points[1].model
elrt.fuse_batch_norm(elrt.shrink(low_rank, max_params=0.25))

layer = elrt.layers.Tucker2Conv2D(32, 3, ranks=(4, 0.5), padding="same", activation="relu", execution="chain")
outputs = elrt.layers.LowRankDense(10, ranks=4)(keras.layers.Flatten()(layer(keras.Input((8, 8, 3)))))
shape: tuple[int, ...] = layer.kernel_shape
twin = elrt.layers.SVDConv2D.from_dense(keras.layers.Conv2D(8, 3), 4, factor_regularizer=DoubleSoftOrthogonality())
twin.factors[0].assign(np.zeros((3, 3, 4, 4)))

report = elrt.export.to_litert(low_rank, "model.tflite", "int8", np.zeros((9, 8, 8, 1)), class_names=["a", "b"])
kilobytes: float = report.size_bytes / 1e3
fast, slow = elrt.export.benchmark_litert(["model.tflite", "other.tflite"], threads=2)
speedup: float = slow.median_ms / fast.median_ms
aware = elrt.export.quantization_aware(low_rank, preserve="sparsity")
elrt.export.to_litert(aware, "aware.tflite", quantization="int8")

figure = elrt.plot.spectra(low_rank, plan=plan, layers="stage1*", path="spectra.png")
elrt.plot.rank_plan("plan.json").savefig("plan.svg")
elrt.plot.orthogonality(history, axis=figure.axes[0])
elrt.plot.tradeoff([{"name": "dense", "accuracy": 0.83, "macs": 40e6}, fast], cost="macs")
"""

# The checker must report every line that ends in `# wrong`, and no other.
MISTAKES = """
import elrt_keras as elrt

model = elrt.models.build("resnet20")
elrt.factorise(model, {})  # wrong
elrt.models.build(20)  # wrong
elrt.models.resnet200()  # wrong
elrt.models.resnet20(depth=20).get_layer("stem_conv")
elrt.plan_ranks(model, 0.4)  # wrong
elrt.plan_ranks(model, max_macs="40%")  # wrong
elrt.plan_ranks(model, method=4)  # wrong
elrt.plan_ranks(model, max_mac=0.4)  # wrong
elrt.plan_ranks("resnet20", max_macs=0.4)  # wrong
plan = elrt.plan_ranks(model, max_macs=0.4)
plan["stem_conv"] = 8  # wrong
plan["stem_conv"].rank  # wrong
elrt.factorize(model, {"stem_conv": (8, 8)})  # wrong
elrt.factorize(model, plan, factor_regularizer=1e-2)  # wrong
elrt.layers.Tucker2Conv2D(32, 3)  # wrong
elrt.layers.Tucker2Conv2D("32", 3, ranks=4)  # wrong
elrt.layers.Tucker2Conv2D(32, 3, ranks=4, execution="both")  # wrong
elrt.layers.LowRankDense(10, ranks="all")  # wrong
elrt.regularizers.DoubleSoftOrthogonality("strong")  # wrong
elrt.callbacks.RegularizationSchedule([1e-2, 1e-3])  # wrong
elrt.export.to_litert(model, "a.tflite", "int4")  # wrong
elrt.export.to_litert(model)  # wrong
elrt.export.benchmark_litert(["a.tflite"])[0].median  # wrong
elrt.plot.tradeoff([], cost="size")  # wrong
elrt.count_costs(model).flops  # wrong
elrt.shrink(model, 0.5)  # wrong
"""

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Makes a folder with the library as an installed package, without `launch`, which is not part of the interface."""
    site = tmp_path_factory.mktemp("site")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "elrt_keras", site / "elrt_keras", ignore=ignored)
    shutil.copytree(ROOT / "models", site / "elrt_keras" / "models", ignore=ignored)
    return site


def pyright(installed, folder, *arguments):
    """Runs pyright on a user's folder with its default settings; returns its JSON."""
    pytest.importorskip("pyright")
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode in (0, 1), done.stderr + done.stdout
    return json.loads(done.stdout)


def wrong_lines(installed, folder, program):
    """Returns `{line: message}` of the errors in a program."""
    (folder / "program.py").write_text(program, encoding="utf-8")
    found = pyright(installed, folder, "program.py")["generalDiagnostics"]
    return {one["range"]["start"]["line"]: one["message"] for one in found if one["severity"] == "error"}


def test_the_front_door_and_its_stub_have_the_same_names():
    tree = ast.parse((ROOT / "elrt_keras" / "__init__.pyi").read_text(encoding="utf-8"))
    imported = {alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == set(elrt_keras.__all__)


@pytest.mark.thorough
def test_a_typical_program_has_no_errors(installed, tmp_path):
    assert wrong_lines(installed, tmp_path, PROGRAM) == {}


@pytest.mark.thorough
def test_mistakes_are_found(installed, tmp_path):
    expected = {number for number, line in enumerate(MISTAKES.splitlines()) if line.endswith("# wrong")}
    assert set(wrong_lines(installed, tmp_path, MISTAKES)) == expected


@pytest.mark.thorough
def test_every_public_function_is_annotated(installed, tmp_path):
    report = pyright(installed, tmp_path, "--verifytypes", "elrt_keras", "--ignoreexternal")["typeCompleteness"]
    symbols = [one for one in report["symbols"] if one["isExported"]]
    assert len(symbols) > 500
    messages = {one["name"]: [m["message"] for m in one["diagnostics"]] for one in symbols}
    functions = [one["name"] for one in symbols if one["category"] in ("function", "method")]
    assert not [name for name in functions if any("annotation" in message for message in messages[name])]
    # Classes lack only the type of their Keras base, which has no types.
    lacking = {m for one in symbols if one["category"] == "class" for m in messages[one["name"]]}
    assert {m for m in lacking if not re.match("Type of (metaclass|base class)|No docstring", m)} == set()
