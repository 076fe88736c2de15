"""Files and arguments from strangers: they cause only documented exceptions, run no code, write no other files."""

import ast
import json
import pathlib
import string

import commands
import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest

import elrt_keras as elrt
from elrt_keras.launch import flags, rundir, training
from elrt_keras.launch.config import TrainConfig

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = [path for folder in ("elrt_keras", "models", "launch") for path in sorted((ROOT / folder).rglob("*.py"))]
# Number of random cases of each kind: a few hundred in every run of the suite, 21,000 in the long one.
CASES = pytest.mark.parametrize("cases", [300, pytest.param(7000, marks=pytest.mark.slow)])


def try_cases(cases, strategy, attempt):
    """Calls `attempt` with random values."""
    quiet = list(hypothesis.HealthCheck)
    settings = hypothesis.settings(max_examples=cases, suppress_health_check=quiet, database=None)
    settings(hypothesis.given(strategy)(attempt))()


HUGE = (10**400, -(10**400))  # larger than any float
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(HUGE) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def plan_documents(draw):
    """Draws a rank plan in which any part may be replaced by another value."""
    ranks = JSON | st.lists(st.integers(-2, 70), max_size=4)
    entry = JSON | st.just("dense") | st.fixed_dictionaries({"format": JSON | st.just("tucker2"), "ranks": ranks})
    document = {
        "kind": draw(st.just("KIND") | JSON),
        "version": draw(st.just(1) | JSON),
        "layers": draw(st.dictionaries(st.text(max_size=8), entry, max_size=4) | JSON),
        "reasons": draw(st.dictionaries(st.text(max_size=8), JSON, max_size=2) | JSON),
        "costs": draw(st.dictionaries(st.text(max_size=8), JSON, max_size=2) | JSON),
        "latency": draw(st.none() | JSON),
    }
    for name in draw(st.lists(st.sampled_from(sorted(document)), max_size=2)):
        document.pop(name, None)
    return json.dumps(document).encode()


@CASES
def test_a_plan_file_is_a_plan_or_a_value_error_that_names_it(tmp_path, cases):
    path, loaded = tmp_path / "plan.json", []
    valid = elrt.RankPlan({"conv": ("tucker2", (8, 12)), "other": None}, reasons={"other": "too small"})
    valid.save(path)
    text = path.read_bytes()
    kind = json.loads(text)["kind"]

    def attempt(content):
        path.write_bytes(content.replace(b"KIND", kind.encode()))
        try:
            plan = elrt.RankPlan.load(path)
        except ValueError as error:
            assert str(path) in str(error)
            return
        loaded.append(str(plan))
        plan.save(path)
        assert elrt.RankPlan.load(path) == plan

    cut = st.tuples(st.integers(0, len(text)), st.integers(0, len(text)), st.binary(max_size=4))
    damaged = cut.map(lambda spot: text[: spot[0]] + spot[2] + text[spot[1] :])
    try_cases(cases, plan_documents() | damaged | st.binary(max_size=64), attempt)
    assert loaded  # some were plans


@st.composite
def flag_files(draw):
    known = st.sampled_from(sorted(flags._SPECS))
    name = known | st.text(string.printable, max_size=10)
    value = st.text(max_size=10) | st.floats().map(str) | st.integers().map(str) | st.sampled_from(VALUES)
    line = st.builds("--{}={}".format, name, value) | st.text(max_size=20)
    return "\n".join(draw(st.lists(line, max_size=4)))


VALUES = ("true", "false", "nan", "inf", "1e400", "0", "-1", "resnet20", "digits", "folder:x", "tucker2", "cp", "auto")
VALUES += tuple(map(str, HUGE))


@CASES
def test_a_flag_file_is_a_config_or_a_value_error(cases):
    configs = []

    def attempt(text):
        try:
            configs.append(flags.from_flagfile(text))
        except ValueError:
            return
        assert flags.from_flagfile(flags.to_flagfile(configs[-1])) == configs[-1]

    try_cases(cases, flag_files(), attempt)
    assert configs


ANYTHING = JSON | st.tuples(st.integers(-2, 5), st.integers(-2, 5)) | st.binary(max_size=2) | st.just(np.float32(0.5))
LAYER_ARGUMENTS = {
    "filters": st.integers(1, 8) | ANYTHING,
    "kernel_size": st.sampled_from([1, 3, (3, 5)]) | ANYTHING,
    "ranks": st.integers(1, 8) | st.tuples(st.integers(1, 8), st.integers(1, 8)) | st.floats(0, 1) | ANYTHING,
    "strides": st.sampled_from([1, 2, (2, 1)]) | ANYTHING,
    "padding": st.sampled_from(["same", "valid", "causal"]) | ANYTHING,
    "data_format": st.sampled_from([None, "channels_last", "channels_first"]) | ANYTHING,
    "dilation_rate": st.sampled_from([1, 2]) | ANYTHING,
    "groups": st.sampled_from([1, 2]) | ANYTHING,
    "activation": st.sampled_from([None, "relu"]) | ANYTHING,
    "factor_initializer": st.sampled_from(["orthogonal_factors", "spectral", "he_normal"]) | ANYTHING,
    "factor_regularizer": st.sampled_from([None, "l2"]) | ANYTHING,
    "kernel_regularizer": st.sampled_from([None, "l2"]) | ANYTHING,
    "factor_constraint": st.sampled_from([None, "max_norm"]) | ANYTHING,
    "execution": st.sampled_from(["auto", "chain", "compose"]) | ANYTHING,
    "recompute": st.booleans() | ANYTHING,
}
OPTIONAL = [name for name in LAYER_ARGUMENTS if name not in ("filters", "kernel_size", "ranks")]


@st.composite
def layer_arguments(draw):
    names = ["filters", "kernel_size", "ranks", *draw(st.lists(st.sampled_from(OPTIONAL), max_size=3, unique=True))]
    return {name: draw(LAYER_ARGUMENTS[name]) for name in names}


@CASES
def test_layer_arguments_make_a_layer_or_a_documented_error(cases):
    layers = []

    def attempt(arguments):
        try:
            layer = elrt.layers.Tucker2Conv2D(**arguments)
            layer.compute_output_shape((1, 9, 9, 9))
        except (ValueError, TypeError):
            return
        layers.append(layer)
        again = type(layer).from_config(layer.get_config())
        assert again.get_config() == layer.get_config()

    try_cases(cases, layer_arguments(), attempt)
    assert len(layers) > cases / 50
    run = 0
    for layer in [layer for layer in layers if layer.filters < 100][:20]:
        try:
            run += layer(np.zeros((1, 9, 9, 9), "float32")).shape[0]
        except ValueError:  # ranks above the full rank, which depends on the input
            continue
    assert run


def test_nothing_here_loads_code_from_files():
    """Checks that pickle, unsafe loading and `Lambda` layers do not occur in the sources.

    There is one exception: copies of a model keep the `Lambda` layers that it has in memory.
    """
    suspects = {"pickle", "dill", "marshal", "shelve", "joblib", "eval", "exec", "Lambda", "allow_pickle", "safe_mode"}
    suspects |= {"enable_unsafe_deserialization", "yaml"}
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "arg", None)]
            names += [alias.name for alias in getattr(node, "names", ()) if isinstance(alias, ast.alias)]
            names.append(getattr(node, "module", None))
            found += [(f"{path.parent.name}/{path.name}", name) for name in names if name in suspects]
    assert len(SOURCES) > 50 and found == [("graph/copies.py", "Lambda")]


def test_a_model_file_that_brings_code_is_refused_and_not_run(tmp_path):
    path, sign = tmp_path / "model.keras", tmp_path / "it_ran"
    inputs = keras.Input((3,))

    code = lambda x, name=str(sign): (open(name, "w").close(), x)[1]  # noqa: E731, Keras refuses others anyway
    keras.Model(inputs, keras.layers.Lambda(code, output_shape=(3,))(inputs)).save(path)
    sign.unlink(missing_ok=True)  # saving may try it; loading may not
    with pytest.raises(ValueError, match="Received: .*model.keras.*(?i:lambda)"):
        rundir.load_model(path)
    assert not sign.exists()


def test_the_flags_of_a_run_directory_cannot_start_a_download(tmp_path):
    """Checks that evaluation and export of somebody else's run never download data."""
    (tmp_path / "elsewhere").mkdir()
    config = TrainConfig(dataset="cifar10", download=True, data_dir=str(tmp_path / "elsewhere"))
    rundir.prepare(config, str(tmp_path / "run"), None)
    with pytest.raises(ValueError, match="--download"):
        training.load_data(rundir.read_config(str(tmp_path / "run")))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_flag_file_cannot_have_a_profile_written_anywhere(tmp_path):
    (tmp_path / "flags").write_text(f"--profile_file={tmp_path / 'profile'}\n--list\n")
    done = commands.run("train", f"--flagfile={tmp_path / 'flags'}", cwd=tmp_path)
    assert done.returncode != 0 and "cProfile" in done.stderr and not (tmp_path / "profile").exists()
