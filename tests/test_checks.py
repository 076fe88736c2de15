"""Messages for misspelt values suggest the closest choice."""

import math
import re

import numpy as np
import pytest

import elrt_keras as elrt
from elrt_keras.checks import int_in, number_in, one_of, suggestion

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


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "told"),
    [
        ("(0, 1]", (0.5, 1, 1.0, np.float32(0.1)), (0, 0.0, 1.5, -1, math.nan, "1", None, True), "a number in (0, 1]"),
        ("[0, 1)", (0, 0.999), (1, 1.0, -1e-9), "a number in [0, 1)"),
        ("[0, inf)", (0, 1e300, 7), (-1e-9, math.inf, math.nan, 10**400), "a number of at least 0"),
        ("(0, inf)", (1e-300,), (0, math.inf), "a number above 0"),
        ("[0, inf]", (0.0, math.inf), (-1, math.nan, 10**400), "a number of at least 0"),
    ],
)
def test_a_number_lies_in_its_interval(interval, inside, outside, told):
    for value in inside:
        number = number_in(value, interval, "x")
        assert type(number) is float and number == value
    for value in outside:
        with pytest.raises(ValueError) as refused:
            number_in(value, interval, "x")
        assert str(refused.value) == f"Expected x as {told}. Received: x={value!r}"


def test_an_int_is_whole_and_in_its_interval():
    assert [int_in(value, "[1, 8]", "x") for value in (1, 8, np.int8(3))] == [1, 8, 3]
    assert type(int_in(np.int64(3), "[1, inf)", "x")) is int
    for value in (0, 9, 2.0, True, "3", None):
        with pytest.raises(ValueError, match=r"Expected x as an int in \[1, 8\]. Received: x="):
            int_in(value, "[1, 8]", "x")


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
