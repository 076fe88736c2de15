"""Initializers: variance of the composed kernel, orthonormal factors, seeds."""

import keras
import numpy as np
import pytest
from common import compose, matrices, orthonormality, random_array, thorough_but, tucker2_compose

import elrt_keras as elrt
from elrt_keras import formats, initializers

pytestmark = pytest.mark.backends

SHAPE, RANKS = (3, 3, 16, 24), (6, 8)
DENSE = {
    "he_normal": 2 / (9 * 16),
    "glorot_uniform": 2 / (9 * (16 + 24)),
    "lecun_normal": 1 / (9 * 16),
}


@pytest.mark.parametrize("name", formats.names())
@pytest.mark.parametrize("initializer", [initializers.OrthogonalFactors, initializers.Spectral])
def test_every_format_starts_with_the_dense_norm_and_orthonormal_factors(initializer, name):
    form, shape = formats.get(name), (3, 3, 8, 10)
    ranks = tuple(int(np.ceil(0.4 * limit)) for limit in form.max_ranks(shape))
    norms = []
    for seed in range(8):
        factors = initializer("he_normal", seed=seed).factors(name, shape, ranks)
        assert [factor.shape for factor in factors] == form.factor_shapes(shape, ranks)
        norms.append(np.mean(compose(name, factors) ** 2))
        if not (name == "cp" and initializer is initializers.Spectral):  # the CP of a given kernel has no such factors
            for view in form.orthogonal_factors(2):
                assert orthonormality(keras.ops.convert_to_numpy(view.to_matrix(factors[view.index]))) < 1e-5
    # The mean of 8 draws of 720 entries each: a standard error of about 2 %.
    assert np.mean(norms) == pytest.approx(2 / (9 * 8), rel=0.1)


@pytest.mark.parametrize("initializer", [initializers.OrthogonalFactors, initializers.Spectral])
@pytest.mark.parametrize("dense", thorough_but(("he_normal", "glorot_uniform"), DENSE))
def test_composed_kernel_has_the_dense_variance_and_mean_zero(initializer, dense):
    draws = np.stack(
        [tucker2_compose(initializer(dense, seed=seed).factors("tucker2", SHAPE, RANKS)) for seed in range(60)]
    )
    assert np.mean(draws**2) == pytest.approx(DENSE[dense], rel=0.05)
    # Standard error of the mean over all entries, as if only the core's entries were independent.
    independent = 60 * 9 * RANKS[0] * RANKS[1]
    assert abs(draws.mean()) < 5 * np.sqrt(DENSE[dense] / independent)


@pytest.mark.parametrize("initializer", [initializers.OrthogonalFactors, initializers.Spectral])
@pytest.mark.parametrize("shape, ranks", [(SHAPE, RANKS), ((3, 4, 6), (4, 6)), ((1, 2, 1, 8, 5), (2, 5))])
def test_factor_matrices_are_semi_orthogonal(initializer, shape, ranks):
    left, _, right = initializer(seed=0).factors("tucker2", shape, ranks)
    for factor in (left, right):
        assert orthonormality(factor.reshape(factor.shape[-2:])) < 1e-5


@pytest.mark.tensorflow
def test_random_orthogonal_factors_have_no_sign_that_they_prefer():
    drawn = [initializers.OrthogonalFactors(seed=s).factors("tucker2", (1, 1, 8, 8), (4, 4)) for s in range(64)]
    for index in (0, 2):
        corners = [np.sign(factors[index].flat[0]) for factors in drawn]
        assert abs(np.mean(corners)) < 0.5  # four standard errors; QR alone gives one sign to all


def test_decomposed_takes_the_kernel():
    kernel = random_array(3, 3, 4, 6)
    factors = initializers.Decomposed(kernel).factors("tucker2", kernel.shape, (4, 6))
    np.testing.assert_allclose(tucker2_compose(factors), kernel, atol=1e-5)
    with pytest.raises(ValueError, match=r"\(3, 3, 4, 7\).*Received: kernel.shape=\(3, 3, 4, 6\)"):
        initializers.Decomposed(kernel).factors("tucker2", (3, 3, 4, 7), (4, 6))
    for broken in (None, np.full((1, 1, 2, 2), np.nan)):
        with pytest.raises(ValueError, match="Expected a .*kernel.*Received"):
            initializers.Decomposed(broken)


@pytest.mark.parametrize("initializer", [initializers.OrthogonalFactors, initializers.Spectral])
def test_an_instance_repeats_its_values_and_others_differ(initializer):
    def draw(instance):
        return np.concatenate([factor.ravel() for factor in instance.factors("tucker2", SHAPE, RANKS)])

    instance, same, other = initializer(seed=1), initializer(seed=1), initializer(seed=2)
    np.testing.assert_array_equal(draw(instance), draw(instance))
    np.testing.assert_array_equal(draw(instance), draw(same))
    assert np.abs(draw(instance) - draw(other)).max() > 0.01
    assert np.abs(draw(instance.with_seed(0)) - draw(instance.with_seed(1))).max() > 0.01
    np.testing.assert_array_equal(draw(instance.with_seed(3)), draw(same.with_seed(3)))
    revived = initializer.from_config(instance.get_config())
    np.testing.assert_array_equal(draw(revived), draw(instance))


def test_unseeded_instances_differ_and_follow_keras_random_seed():
    def draw():
        return initializers.OrthogonalFactors().factors("tucker2", SHAPE, RANKS)[0]

    keras.utils.set_random_seed(7)
    first, second = draw(), draw()
    keras.utils.set_random_seed(7)
    np.testing.assert_array_equal(draw(), first)
    assert np.abs(first - second).max() > 0.01


def test_factors_of_equal_shape_differ():
    # U_in and U_out are both 8 × 8 here, and a repeated seed would make them equal.
    left, _, right = initializers.OrthogonalFactors(seed=0).factors("tucker2", (3, 3, 8, 8), (8, 8))
    assert np.abs(left - right).max() > 0.01
    naive = initializers.draw_factors(
        keras.initializers.GlorotUniform(seed=0), formats.get("tucker2"), (1, 1, 8, 8), (8, 8)
    )
    assert min(np.abs(naive[a] - naive[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 0.01


@pytest.mark.parametrize("name", ["orthogonal_factors", "spectral", "he_normal", "zeros"])
def test_layers_take_names(name):
    layer = elrt.layers.Tucker2Conv2D(8, 3, (3, 4), factor_initializer=name)
    layer.build((None, 8, 8, 6))
    if name in ("orthogonal_factors", "spectral"):
        assert max(map(orthonormality, matrices(layer))) < 1e-5
    is_zero = np.abs(tucker2_compose(layer.factors)).max() == 0
    assert is_zero == (name == "zeros")


def test_calling_one_like_a_stock_initializer_is_refused():
    with pytest.raises(ValueError, match=r"all factors.*Received: a call with shape=\(3, 3\)"):
        initializers.OrthogonalFactors()((3, 3))


def test_activations_keep_the_variance_of_the_dense_layer():
    inputs = random_array(4, 16, 16, 32)
    dense = keras.layers.Conv2D(32, 3, kernel_initializer=keras.initializers.HeNormal(seed=0), use_bias=False)
    low = elrt.layers.Tucker2Conv2D(
        32, 3, 0.5, factor_initializer=initializers.OrthogonalFactors(seed=0), use_bias=False
    )
    spread = [float(np.std(keras.ops.convert_to_numpy(layer(inputs)))) for layer in (dense, low)]
    assert spread[1] == pytest.approx(spread[0], rel=0.25)  # one draw of a kernel of rank 16


@pytest.mark.parametrize("initializer", [initializers.OrthogonalFactors, initializers.Spectral])
@pytest.mark.parametrize(
    "arguments, received",
    [
        ({"seed": -1}, "seed=-1"),
        ({"seed": "one"}, "seed='one'"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"kernel_initializer": None}, "kernel_initializer=None"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_at_once(initializer, arguments, received):
    with pytest.raises(ValueError, match=f"Received: {received}"):
        initializer(**arguments)


def test_config_is_plain_python():
    config = initializers.OrthogonalFactors(seed=np.int64(3)).get_config()
    assert type(config["seed"]) is int


@pytest.mark.parametrize("initializer", [initializers.OrthogonalFactors, initializers.Spectral])
def test_a_function_serves_as_dense_initializer(initializer):
    def two(shape, dtype=None):
        return 2.0 * keras.ops.ones(shape, dtype=dtype)

    composed = tucker2_compose(initializer(two, seed=0).factors("tucker2", SHAPE, RANKS))
    assert np.mean(composed**2) == pytest.approx(4.0, rel=1e-5)


class Wrapped(keras.Model):
    """A subclassed model; its layers are built in its first call."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.pool = layer, keras.layers.GlobalAveragePooling2D()

    def call(self, inputs):
        return self.pool(self.layer(inputs))


@pytest.mark.parametrize("initializer", ["orthogonal_factors", "spectral", "he_normal"])
@pytest.mark.parametrize("kind", thorough_but(("subclassed",), ["sequential", "subclassed"]))
def test_a_model_that_fit_builds_itself_starts_from_the_initializer(initializer, kind):
    # Keras builds such a model while it traces it; a tensor has no value then.
    layer = elrt.layers.Tucker2Conv2D(6, 3, (2, 3), factor_initializer=initializer)
    pooled = keras.Sequential([layer, keras.layers.GlobalAveragePooling2D()])
    model = pooled if kind == "sequential" else Wrapped(layer)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(random_array(4, 6, 6, 4), random_array(4, 6, seed=1), verbose=0)
    assert np.abs(tucker2_compose(layer.factors)).max() > 0
    if initializer != "he_normal":
        assert max(map(orthonormality, matrices(layer))) < 1e-5
