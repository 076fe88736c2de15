"""The built wheel: what it installs, and that it works from another directory."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import keras
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="packaging does not depend on the backend"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # Built from a copy: setuptools leaves build folders beside the sources.
    source = tmp_path_factory.mktemp("source") / "project"
    ignored = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)],
        check=True,
        capture_output=True,
        text=True,
    )
    (path,) = target.glob("*.whl")
    return path


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
        for path in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.flags")]:
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
