"""The built wheel: its files, and that it works from another directory, on every installed Python."""

import glob
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.tensorflow


# Versions of Python for which TensorFlow has wheels.
VERSIONS = ("3.11", "3.12", "3.13")


def pythons():
    """Finds interpreters, `{version: path}`: on the path, and beside this one, where pyenv and others put them."""
    beside = glob.glob(f"{pathlib.Path(sys.base_prefix).parent}/*/bin/python3")
    found = {}
    for path in filter(None, [*(shutil.which(f"python{version}") for version in VERSIONS), *beside]):
        program = "import sys, venv; print('{}.{}'.format(*sys.version_info))"
        done = subprocess.run([path, "-c", program], capture_output=True, text=True)
        if done.stdout.strip() in VERSIONS:
            found.setdefault(done.stdout.strip(), path)
    return found


def copied(tmp_path_factory):
    """Copies the files of the checkout that are under version control."""
    source = tmp_path_factory.mktemp("source") / "project"
    ignored = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__", "node_modules")
    return shutil.copytree(ROOT, source, ignore=ignored)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # Build from a copy: setuptools leaves build folders beside the sources.
    source, target = copied(tmp_path_factory), tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)],
        check=True,
        capture_output=True,
        text=True,
    )
    (path,) = target.glob("*.whl")
    return path


@pytest.mark.thorough
def test_the_root_of_a_checkout_shadows_no_part_of_the_package():
    """Simulates `pip install .` without an editable installation: this folder precedes the installed package."""
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()];"
        "import elrt_keras, elrt_keras.models, elrt_keras.launch.config; print(elrt_keras.models.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert pathlib.Path(done.stdout.strip()) == ROOT / "models" / "__init__.py"


def test_nothing_but_the_package_lands_in_site_packages(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"elrt_keras"}
    for module in ("models/resnet_cifar.py", "launch/train.py", "formats/tucker2.py", "export/litert.py"):
        assert f"elrt_keras/{module}" in names


def test_every_module_of_the_checkout_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in (
        ("elrt_keras", "elrt_keras"),
        ("models", "elrt_keras/models"),
        ("launch", "elrt_keras/launch"),
    ):
        patterns = ("*.py", "*.pyi", "*.flags", "py.typed")
        for path in [path for pattern in patterns for path in (ROOT / folder).rglob(pattern)]:
            assert f"{package}/{path.relative_to(ROOT / folder).as_posix()}" in names


def test_the_installed_wheel_works_elsewhere(wheel, tmp_path):
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)], check=True
    )
    program = (
        "import elrt_keras as elrt, elrt_keras.launch.train, elrt_keras.models, pathlib\n"
        "print(pathlib.Path(elrt_keras.models.__file__).parent.parent)\n"
        "model = elrt.models.build('resnet20', plan={'stage1_block1_1_conv': ('tucker2', (8, 8))})\n"
        "model.save('model.keras')\n"
        "import keras; print(type(keras.models.load_model('model.keras').get_layer('stage1_block1_1_conv')).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [str(site / "elrt_keras"), "Tucker2Conv2D"]


@pytest.mark.thorough
def test_the_source_distribution_makes_the_same_wheel(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("distributions")
    source = copied(tmp_path_factory)
    # Without --wheel and --sdist, the build makes the wheel from the source distribution.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (path,) = target.glob("*.whl")
    assert set(zipfile.ZipFile(path).namelist()) == set(zipfile.ZipFile(wheel).namelist())
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, target.iterdir())],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout + done.stderr


def test_the_metadata_name_what_the_documents_name(wheel):
    (name,) = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA")]
    metadata = zipfile.ZipFile(wheel).read(name).decode()
    assert set(re.findall(r"Classifier: Programming Language :: Python :: (3\.\d+)", metadata)) == set(VERSIONS)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    version = re.search("^Version: (.+)$", metadata, re.M)[1]
    assert re.search("^version: (.+)$", citation, re.M)[1] == version
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    extras = re.findall("^Provides-Extra: (.+)$", metadata, re.M)
    assert extras and not [extra for extra in extras if f"`{extra}`" not in readme]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_clean_environment_trains_and_exports(wheel, version, tmp_path):
    if version not in pythons():
        pytest.skip(f"no Python {version} on this machine")
    environment = tmp_path / "environment"
    binaries = environment / "bin"
    settings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "KERAS_BACKEND")}
    settings |= {"KERAS_HOME": str(tmp_path / "keras"), "TF_CPP_MIN_LOG_LEVEL": "3"}

    def run(*command):
        command = [str(part) for part in command]
        done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    run(pythons()[version], "-m", "venv", "--without-pip", environment)
    pip = [sys.executable, "-m", "pip", "--python", binaries / "python", "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", f"{wheel}[litert]")
    run(*pip, "check")
    three_lines = (
        "import elrt_keras as elrt\n"
        "model = elrt.models.build('resnet20')\n"
        "plan = elrt.plan_ranks(model, max_macs=0.4)\n"
        "low_rank = elrt.factorize(model, plan, factor_regularizer=elrt.regularizers.DoubleSoftOrthogonality(1e-2))\n"
        "print(elrt.count_costs(low_rank).macs / elrt.count_costs(model).macs, elrt.__file__)"
    )
    part, path = run(binaries / "python", "-c", three_lines).split()
    assert 0.38 < float(part) <= 0.4 and path.startswith(str(environment))
    run(binaries / "elrt-train", "--run_dir=run", "--dataset=digits", "--smoke")
    accuracy, reported = re.findall(r"\d\.\d+", run(binaries / "elrt-evaluate", "run"))[:2]
    assert accuracy == reported
    run(binaries / "elrt-plan", "--model=resnet20", "--max_macs=0.4", "--output=plan.json")
    run(binaries / "elrt-export", "run", "--quantization=float32,int8")
    names = {path.name for path in (tmp_path / "run" / "export").glob("*.tflite")}
    assert names == {"low_rank_float32.tflite", "low_rank_int8.tflite"}
    assert "speed-up" in run(binaries / "elrt-benchmark", "litert", "run")
