"""Initializers for all factors of a low-rank layer at once.

A dense initializer such as He normal has the right variance for a dense kernel. A low-rank layer needs factors whose
*composed* kernel has that variance. So the initializers here draw all factors together and scale the core. A stock
Keras initializer (by name or object) is accepted too; it fills each factor by itself.
"""

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any, Self

import keras
import numpy as np

from elrt_keras import formats
from elrt_keras.checks import Identifier, by_name, int_in
from elrt_keras.formats.arrays import Tensor
from elrt_keras.formats.chain import Shape

_PACKAGE = "elrt_keras"
_MAX_SEED = 2**31 - 1


class FactorInitializer(keras.initializers.Initializer):
    """Base class: subclasses implement `factors`. Each layer needs its own instance; `with_seed` makes them.

    An instance returns the same values at every call, like every seeded Keras initializer.

    Args:
        kernel_initializer: the initializer of the dense kernel, whose variance the composed kernel gets.
        seed: int ≥ 0, or `None` for a random one (fixed by `keras.utils.set_random_seed`).

    Raises:
        ValueError: for `kernel_initializer=None`, an invalid seed, or a call with a single shape, as for a stock layer.

    Example:

    >>> first = elrt_keras.initializers.OrthogonalFactors(seed=0)
    >>> first.with_seed(1).seed != first.with_seed(2).seed  # one for each layer of a model
    True
    """

    def __init__(self, kernel_initializer: Identifier = "he_normal", seed: int | None = None):
        self.kernel_initializer: Any = keras.initializers.get(kernel_initializer)
        if self.kernel_initializer is None:
            raise ValueError("Expected the initializer of the dense kernel. Received: kernel_initializer=None")
        self.seed: int | None = _validated_seed(seed)
        # NumPy's global state, so that `keras.utils.set_random_seed` makes a model reproducible.
        self._seed: Any = int(np.random.randint(_MAX_SEED)) if seed is None else self.seed

    def factors(
        self, factor_format: str | formats.Format, kernel_shape: Shape, ranks: Sequence[int]
    ) -> list[np.ndarray]:
        """Returns the factors as float32 NumPy arrays, in the order of the chain.

        Args:
            factor_format: a `Format` or its name.
            kernel_shape: shape of the dense kernel, `(*kernel_size, C_in, C_out)`.
            ranks: tuple of ints, one per rank of the format.
        """
        raise NotImplementedError

    def with_seed(self, index: int) -> Self:
        """Makes a copy for layer number `index` of a model, with a seed from this seed and the index."""
        config = self.get_config()
        config["seed"] = int(np.random.SeedSequence([self._seed, index]).generate_state(1)[0] % _MAX_SEED)
        return type(self).from_config(config)

    def _dense_kernel(self, kernel_shape):
        """Draws a kernel from the dense initializer, with this seed unless the initializer has its own."""
        initializer = self.kernel_initializer
        config = initializer.get_config() if hasattr(initializer, "get_config") else {}
        if "seed" in config and config["seed"] is None:
            initializer = type(initializer).from_config({**config, "seed": self._seed})
        return np.asarray(keras.ops.convert_to_numpy(initializer(tuple(kernel_shape), dtype="float32")))

    def __call__(self, shape: Shape, dtype: Any = None) -> Tensor:
        raise ValueError(
            f"Expected {type(self).__name__} as `factor_initializer` of a layer of elrt_keras.layers: it initializes "
            f"all factors together. Received: a call with shape={shape}"
        )

    def get_config(self) -> dict[str, Any]:
        return {"kernel_initializer": keras.initializers.serialize(self.kernel_initializer), "seed": self.seed}


@keras.saving.register_keras_serializable(_PACKAGE)
class OrthogonalFactors(FactorInitializer):
    """Random orthonormal factor matrices, and a Gaussian core scaled to the dense initializer's variance.

    For Tucker-2: `U_inᵀU_in = I`, `U_outU_outᵀ = I`. Orthonormal factors keep norms, so
    `‖U_in·G·U_out‖_F = ‖G‖_F = ‖W₀‖_F` for a draw `W₀` of `kernel_initializer`. The orthogonality penalty of ELRT
    (arXiv 2401.10341) is at its minimum from the first step on.

    Args:
        kernel_initializer: the initializer of the dense kernel whose variance the composed kernel gets.
        seed: int, or `None` for a random one (fixed by `keras.utils.set_random_seed`).

    Example:

    >>> initializer = elrt_keras.initializers.OrthogonalFactors("he_normal", seed=0)
    >>> [f.shape for f in initializer.factors("tucker2", (3, 3, 16, 32), (8, 12))]
    [(1, 1, 16, 8), (3, 3, 8, 12), (1, 1, 12, 32)]
    """

    def factors(
        self, factor_format: str | formats.Format, kernel_shape: Shape, ranks: Sequence[int]
    ) -> list[np.ndarray]:
        factor_format = formats.get(factor_format)
        shapes = factor_format.factor_shapes(kernel_shape, ranks)
        streams = np.random.SeedSequence(self._seed).spawn(len(shapes))
        factors = [
            np.random.default_rng(stream).standard_normal(shape, dtype="float32")
            for stream, shape in zip(streams, shapes)
        ]
        for view in factor_format.orthogonal_factors(len(kernel_shape) - 2):
            orthogonal = view.apply(_semi_orthogonal, factors[view.index])
            factors[view.index] = keras.ops.convert_to_numpy(orthogonal)
        return _scaled_to(factor_format, factors, self._dense_kernel(kernel_shape))


@keras.saving.register_keras_serializable(_PACKAGE)
class Spectral(FactorInitializer):
    """Best low-rank approximation of a random dense kernel, scaled to the norm of that kernel.

    Spectral initialization (Khodak et al., arXiv 2105.01029) with the format's own decomposition. For Tucker-2 the
    factor matrices are orthonormal (HOSVD + HOOI). Truncation loses part of the norm. The core is scaled up, so that
    the composed kernel has the dense initializer's variance.

    Args:
        kernel_initializer: the initializer of the dense kernel that is decomposed.
        seed: int, or `None` for a random one.

    Example:

    >>> initializer = elrt_keras.initializers.Spectral("he_normal", seed=0)
    >>> [f.shape for f in initializer.factors("tucker2", (3, 3, 16, 32), (8, 12))]
    [(1, 1, 16, 8), (3, 3, 8, 12), (1, 1, 12, 32)]
    """

    def factors(
        self, factor_format: str | formats.Format, kernel_shape: Shape, ranks: Sequence[int]
    ) -> list[np.ndarray]:
        factor_format = formats.get(factor_format)
        dense = self._dense_kernel(kernel_shape)
        return _scaled_to(factor_format, factor_format.decompose(dense, ranks), dense)


@keras.saving.register_keras_serializable(_PACKAGE)
class Decomposed(FactorInitializer):
    """Best low-rank approximation of a given dense kernel (HOSVD + HOOI for Tucker-2).

    The kernel becomes part of the layer's config. For trained models prefer `from_dense`, `assign_kernel` or
    `factorize(…, factor_initializer="decomposed")`, which only set the weights.

    Args:
        kernel: array of shape `(*kernel_size, C_in, C_out)`.

    Raises:
        ValueError: for a kernel with NaN or infinity, or if the layer's kernel has another shape.

    Example:

    >>> kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 6))
    >>> initializer = elrt_keras.initializers.Decomposed(kernel)
    >>> [f.shape for f in initializer.factors("tucker2", (3, 3, 4, 6), (2, 3))]
    [(1, 1, 4, 2), (3, 3, 2, 3), (1, 1, 3, 6)]
    """

    def __init__(self, kernel: Tensor):
        super().__init__(kernel_initializer="zeros", seed=0)
        if kernel is None:
            raise ValueError("Expected a dense kernel. Received: kernel=None")
        self.kernel = np.asarray(keras.ops.convert_to_numpy(kernel), dtype="float32")
        if not np.all(np.isfinite(self.kernel)):
            raise ValueError("Expected a kernel of finite numbers. Received: NaN or infinity")

    def factors(
        self, factor_format: str | formats.Format, kernel_shape: Shape, ranks: Sequence[int]
    ) -> list[np.ndarray]:
        if self.kernel.shape != tuple(kernel_shape):
            raise ValueError(
                f"Expected a kernel of shape {tuple(kernel_shape)}. Received: kernel.shape={self.kernel.shape}"
            )
        return formats.get(factor_format).decompose(self.kernel, ranks)

    def with_seed(self, index: int) -> Self:
        return self

    def get_config(self) -> dict[str, Any]:
        return {"kernel": self.kernel.tolist()}


def _validated_seed(seed: Any) -> int | None:
    return None if seed is None else int_in(seed, "[0, inf)", "seed")


_BY_NAME = {"orthogonal_factors": OrthogonalFactors, "spectral": Spectral}


def get(identifier: Identifier) -> Any:
    """Returns a `FactorInitializer` or stock Keras initializer from a name, config, or object.

    Args:
        identifier: `"orthogonal_factors"`, `"spectral"`, or an argument of `keras.initializers.get`.

    Raises:
        ValueError: for an unknown name, or an array: it fits only one shape, and factors have several.

    Example:

    >>> type(elrt_keras.initializers.get("spectral")).__name__
    'Spectral'
    """
    return by_name(identifier, _BY_NAME, _of_keras, "factor_initializer")


def _of_keras(identifier):
    if identifier is None or keras.ops.is_tensor(identifier) or isinstance(identifier, (np.ndarray, np.generic)):
        raise ValueError("Expected an initializer for arrays of any shape")
    return keras.initializers.get(identifier)


def draw_factors(
    initializer: Callable[..., Any], factor_format: str | formats.Format, kernel_shape: Shape, ranks: Sequence[int]
) -> list[np.ndarray]:
    """Draws the initial factors of one layer as NumPy arrays, with any kind of initializer.

    Keras may ask for initial values while it traces a graph, in which nothing has a value yet. Graphs, traces and
    scopes belong to a thread. So the draw runs in a separate thread, where every backend computes eagerly.

    Args:
        initializer: a `FactorInitializer`, or a stock Keras initializer, which fills each factor by itself.
        factor_format: a `Format` or its name.
        kernel_shape: shape of the dense kernel, `(*kernel_size, C_in, C_out)`.
        ranks: tuple of ints, one per rank of the format.

    Example:

    >>> initializer = elrt_keras.initializers.get("orthogonal_factors")
    >>> [f.shape for f in elrt_keras.initializers.draw_factors(initializer, "svd", (3, 3, 4, 6), (2,))]
    [(3, 3, 4, 2), (1, 1, 2, 6)]
    """

    def draw():
        if isinstance(initializer, FactorInitializer):
            return initializer.factors(factor_format, kernel_shape, ranks)
        shapes = formats.get(factor_format).factor_shapes(kernel_shape, ranks)
        return [
            keras.ops.convert_to_numpy(one(shape, dtype="float32")) for one, shape in _one_each(initializer, shapes)
        ]

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(draw).result()


def _one_each(initializer, shapes):
    """Makes one copy of a stock initializer per factor, with separate seeds: one instance would repeat its values."""
    if not hasattr(initializer, "get_config"):
        return [(initializer, shape) for shape in shapes]
    config = initializer.get_config()
    if "seed" not in config:
        return [(initializer, shape) for shape in shapes]
    # Objects without a seed in their config hold a fixed one, so new draws need new objects.
    first = config["seed"] if isinstance(config["seed"], int) else int(np.random.randint(_MAX_SEED))
    seeds = np.random.SeedSequence(first).generate_state(len(shapes)) % _MAX_SEED
    return [(type(initializer).from_config({**config, "seed": int(s)}), shape) for s, shape in zip(seeds, shapes)]


def _semi_orthogonal(matrix):
    """Makes a uniformly distributed semi-orthogonal matrix from a Gaussian one (QR with the signs of R removed)."""
    matrix = keras.ops.convert_to_numpy(matrix)
    rows, columns = matrix.shape
    tall = matrix if rows >= columns else matrix.T
    q, r = np.linalg.qr(tall.astype("float64"))
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)
    return np.ascontiguousarray(q if rows >= columns else q.T, dtype="float32")


def _scaled_to(factor_format, factors, dense):
    """Scales the core so that the composed kernel has the Frobenius norm of `dense`. Returns the factors."""
    composed = np.linalg.norm(keras.ops.convert_to_numpy(factor_format.compose(factors)))
    scale = np.linalg.norm(dense) / composed if composed > 0 else 0.0
    factors = [np.asarray(factor, dtype="float32") for factor in factors]
    factors[factor_format.core_index] = (factors[factor_format.core_index] * scale).astype("float32")
    return factors
