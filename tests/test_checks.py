"""Misspelt values are refused with the choice that was probably meant."""

import re

import pytest

import elrt_keras as elrt
from elrt_keras.checks import one_of, suggestion

pytestmark = pytest.mark.tensorflow  # the same on every backend


def test_what_is_among_the_choices_is_returned():
    assert one_of("svd", {"cp": 1, "svd": 2}, "format") == "svd"
    assert one_of(None, (None, "macs"), "cost") is None


@pytest.mark.parametrize(
    ("value", "choices", "message"),
    [
        ("resnet21", ["resnet8", "resnet20", "resnet32"], "Received: x='resnet21'. Did you mean 'resnet20'?"),
        ("DSO", ["none", "dso"], "Received: x='DSO'. Did you mean 'dso'?"),
        ("adam", ["sgd", "adamw"], "Received: x='adam'. Did you mean 'adamw'?"),
        ("inception", ["resnet8", "vgg16"], "Received: x='inception'"),
        (["int8"], [None, "int8"], "Received: x=['int8']. Did you mean 'int8'?"),
        (8, (None,), "Received: x=8"),
        ("", ["int8"], "Received: x=''"),
    ],
)
def test_the_closest_choice_is_suggested_and_nothing_where_none_is_close(value, choices, message):
    with pytest.raises(ValueError) as refused:
        one_of(value, choices, "x")
    assert str(refused.value) == f"Expected one of {list(choices)}. {message}"


def test_of_choices_equally_close_the_first_is_suggested():
    assert suggestion("ab", ["ax", "ay"]) == "" and suggestion("abc", ["abx", "aby"]) == ". Did you mean 'abx'?"


def resnet8():
    return elrt.models.build("resnet8", input_shape=(8, 8, 1))


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: elrt.models.build("resnet21"), "resnet20"),
        (lambda: elrt.models.default_input_shape("mobilenetv3"), "mobilenet_v2"),
        (lambda: elrt.formats.get("tucker"), "tucker2"),
        (lambda: elrt.initializers.get("spectrall"), "spectral"),
        (lambda: elrt.layers.Tucker2Conv2D(4, 3, ranks=(2, 2), execution="chains"), "chain"),
        (lambda: elrt.plan_ranks(resnet8(), max_macs=0.5, method="unifrom"), "uniform"),
        (
            lambda: elrt.plan_ranks(resnet8(), max_macs=0.5, exclude="clasifier"),
            "classifier",
        ),
        (lambda: elrt.plot.tradeoff([{"accuracy": 0.5, "macs": 1}], cost="mac"), "macs"),
    ],
)
def test_the_library_suggests(call, meant):
    with pytest.raises(ValueError, match=re.escape(f"Did you mean {meant!r}?")):
        call()
