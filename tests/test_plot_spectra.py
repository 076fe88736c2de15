"""`plot.spectra`: singular values equal to NumPy's, ranks as lines, plain messages for bad input."""

import keras
import numpy as np
import pytest
from common import compose, curves, dense_model, model_of, to_numpy

import elrt_keras as elrt
from elrt_keras.plot.kernels import layer_spectra

pytestmark = pytest.mark.tensorflow  # the same on every backend


def unfolded(kernel):
    """Unfolds a kernel by hand to the matrices that decide r_in and r_out of Tucker-2."""
    *_, channels, filters = kernel.shape
    return [np.einsum("...pq->p...q", kernel).reshape(channels, -1), kernel.reshape(-1, filters)]


def relative_singular_values(matrix):
    values = np.linalg.svd(matrix, compute_uv=False)
    return values / values[0]


def ranks(axis):
    return [line.get_xdata()[0] for line in axis.get_lines() if line.get_gid() == "rank"]


def titles(figure):
    return [axis.get_title() for axis in figure.axes]


def test_spectra_of_a_dense_model_are_those_of_its_unfoldings():
    model = dense_model()
    figure = elrt.plot.spectra(model)
    assert titles(figure) == ["stem", "body", "pointwise", "classifier"]
    for axis in figure.axes:
        kernel = to_numpy(model.get_layer(axis.get_title()).kernel)
        matrices = unfolded(kernel) if kernel.shape[0] == 3 else [kernel.reshape(-1, kernel.shape[-1])]
        drawn = curves(axis)
        assert list(drawn) == (["r_in", "r_out"] if len(matrices) == 2 else ["r"])
        for values, matrix in zip(drawn.values(), matrices):
            np.testing.assert_allclose(values, relative_singular_values(matrix), rtol=1e-9, atol=1e-9)
        assert not ranks(axis)
    assert figure.get_supxlabel().startswith("index i") and "σ" in figure.get_supylabel()


def test_spectra_of_a_low_rank_model_end_at_its_ranks():
    plan = {"body": ("tucker2", (4, 3)), "classifier": ("svd", 2)}
    low_rank = elrt.factorize(dense_model(), plan)
    figure = elrt.plot.spectra(low_rank, layers=["body", "class*"])
    assert titles(figure) == ["body", "classifier"]
    assert [ranks(axis) for axis in figure.axes] == [[4, 3], [2]]
    kernel = compose("tucker2", low_rank.get_layer("body").factors)
    for (name, values), matrix, rank in zip(curves(figure.axes[0]).items(), unfolded(kernel), (4, 3)):
        np.testing.assert_allclose(values, relative_singular_values(matrix), atol=1e-6, err_msg=name)
        assert np.all(values[rank:] < 1e-6) and np.all(values[:rank] > 1e-3)


@pytest.mark.parametrize("format_name", elrt.formats.base.names())
def test_spectra_by_a_plan_for_a_dense_model(format_name):
    model = dense_model()
    figure = elrt.plot.spectra(model, plan={"body": (format_name, 3), "stem": None})
    axis = dict(zip(titles(figure), figure.axes))["body"]
    names = elrt.formats.get(format_name).rank_names
    assert list(curves(axis)) == list(names) and ranks(axis) == [3] * len(names)
    if format_name == "spatial_svd":  # rows (h, p), columns (w, q)
        matrix = to_numpy(model.get_layer("body").kernel).transpose(0, 2, 1, 3).reshape(36, 30)
        np.testing.assert_allclose(curves(axis)["r"], relative_singular_values(matrix), atol=1e-9)


def test_spectra_of_shared_nested_grouped_and_zero_layers():
    shared = keras.layers.Conv2D(6, 3, padding="same", name="shared", kernel_initializer="zeros")
    grouped = keras.layers.Conv2D(6, 3, groups=2, name="two")
    inner = keras.Sequential([keras.Input((8, 8, 6)), shared, grouped], name="inner")
    inputs = keras.Input((8, 8, 6))
    model = keras.Model(inputs, inner(shared(inputs)))
    figure = elrt.plot.spectra(model)
    assert titles(figure) == ["shared", "inner/two"]
    assert [len(curve) for curve in curves(figure.axes[1]).values()] == [3, 3]  # full ranks of a group
    assert np.all(curves(figure.axes[0])["r_in"] == 0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": 3}, "Expected a Keras model. Received: model=3"),
        ({"model": model_of(keras.layers.Flatten(), shape=(2, 2, 1))}, "Expected a model with built convolutions"),
        ({"format": "tucker"}, "Expected one of .* Received: format='tucker'. Did you mean 'tucker2'"),
        ({"layers": "conv*"}, r"Nothing matched.*\['stem', 'body', .*Received: layers='conv\*'"),
        ({"layers": []}, r"names or patterns of layers among .*Received: layers=\[\]"),
        ({"layers": [5]}, "Expected a name or pattern. Received: 5"),
        ({"plan": {"conv": ("svd", 2)}}, r"Expected a plan of layers among .*Received: \['conv'\]"),
        ({"plan": {"body": ("svd", 99)}}, "full rank, 10"),
        ({"plan": {"classifier": ("tucker2", 2)}}, "spatial dimensions for format 'tucker2'.*'classifier'"),
        ({"path": "spectra.xyz"}, r"Expected a plot of a kind in \[.*'png'.*Received: path='spectra.xyz'"),
        ({"path": 7}, "Received: path=7"),
    ],
    ids=str,
)
def test_bad_input_of_spectra(arguments, message):
    with pytest.raises(ValueError, match=message):
        elrt.plot.spectra(**{"model": dense_model(), **arguments})


def test_a_name_with_brackets_is_a_name():
    layers = [keras.layers.Conv2D(4, 3, name=name) for name in ("conv[1]", "conv1")]
    model = model_of(*layers, shape=(8, 8, 2))
    assert list(layer_spectra(model, layers="conv[1]")) == ["conv[1]"]
    assert list(layer_spectra(model, layers=["conv?", "conv[1]"])) == ["conv[1]", "conv1"]


def test_spectra_refuse_weights_that_are_no_numbers():
    model = dense_model()
    model.get_layer("body").kernel.assign(np.full((3, 3, 12, 10), np.nan))
    with pytest.raises(ValueError, match="finite numbers. Received: NaN or infinity in layer 'body'"):
        elrt.plot.spectra(model)
