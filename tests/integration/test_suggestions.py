"""Commands suggest the closest flag, and the closest value of a flag; a warning is one line of text."""

import commands
import pytest

pytestmark = pytest.mark.tensorflow  # the same on every backend


@pytest.mark.parametrize(
    ("command", "arguments", "meant"),
    [
        ("train", ["--run_dir=run", "--max_mac=0.4"], "Did you mean: max_macs ?"),
        ("plan", ["--model=resnet20", "--max_mac=0.4"], "Did you mean: max_macs ?"),
        ("export", ["run", "--quantisation=int8"], "Did you mean: quantization ?"),
        ("evaluate", ["run", "--datadir=x"], "Did you mean: data_dir ?"),
        ("benchmark", ["litert", "--thread=2"], "Did you mean: threads ?"),
        ("classify", ["model.tflite", "--topk=1"], "Did you mean: top_k ?"),
        ("train", ["--run_dir=run", "--optimizer=adam"], "one of <sgd|adamw>. Did you mean 'adamw'?"),
        ("train", ["--run_dir=run", "--strategy=miror"], "Did you mean 'mirrored'?"),
        ("plan", ["--model=resnet20", "--method=vmbf"], "Did you mean 'vbmf'?"),
        ("export", ["run", "--format=onxx"], "Did you mean 'onnx'?"),
        ("benchmark", ["data", "--dataset=cifar11"], "Did you mean 'cifar10'?"),
        ("benchmark", ["litret"], "Did you mean 'litert'?"),
        ("train", ["--run_dir=run", "--model=resnet21"], "Did you mean 'resnet20'?"),
        ("train", ["--run_dir=run", "--dataset=fashion_minst"], "Did you mean 'fashion_mnist'?"),
        ("train", ["--run_dir=run", "--format=tucker"], "Did you mean 'tucker2'?"),
        ("train", ["--run_dir=run", "--augmentation=crop,flop"], "Did you mean 'flip'?"),
        ("train", ["--run_dir=run", "--recipe=cifar10_resnet56_62"], "Did you mean 'cifar10_resnet56_62.0'?"),
        ("plan", ["--model=resnet21", "--max_macs=0.4"], "Did you mean 'resnet20'?"),
        ("export", ["run", "--quantization=int16"], "Did you mean 'int8'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_misspelt_flags_and_values(command, arguments, meant, tmp_path):
    done = commands.run(command, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and meant in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_warning_is_one_line_without_the_source_that_warns(tmp_path):
    program = (
        "import warnings; from elrt_keras.launch import cli; "
        "cli.start('elrt-x', lambda argv: warnings.warn('Times scatter'), ['elrt-x'])"
    )
    done = commands.program(program, cwd=tmp_path)
    assert done.returncode == 0 and "elrt-x: warning: Times scatter" in done.stderr.splitlines()
    assert "warnings.warn" not in done.stderr
