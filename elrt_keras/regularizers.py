"""Orthogonality regularizers for factor matrices (and for any other weight matrix).

All act on a matrix `A` of m × n through its **smaller Gram matrix** `S` (`AᵀA` if m ≥ n, else `AAᵀ`). Only the smaller
of the two can be the identity. Its size is Φ = min(m, n), which is the rank for a factor matrix. If a weight has more
than two axes, all axes except the last are flattened into one. Sources: Bansal et al., "Can We Gain More from
Orthogonality Regularizations in Training Deep CNNs?", arXiv 1810.09102; ELRT, arXiv 2401.10341.
"""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from elrt_keras.checks import Identifier, by_name, int_in, number_in
from elrt_keras.formats.arrays import Tensor, as_loss, contracted

_PACKAGE = "elrt_keras"
DEFAULT_STRENGTH = 1e-2  # also the default of `elrt-train`; docs/results.md shows the evidence


def smaller_gram(matrix: Tensor) -> Tensor:
    """Computes the smaller one of `AᵀA` and `AAᵀ`, accumulated at least in float32.

    Args:
        matrix: tensor of shape `(m, n)`.

    Returns:
        A tensor of shape `(Φ, Φ)` with Φ = min(m, n).

    Example:

    >>> elrt_keras.regularizers.smaller_gram(keras.ops.ones((2, 5))).shape == (2, 2)
    True
    """
    if keras.backend.standardize_dtype(matrix.dtype) != "float64":
        matrix = ops.cast(matrix, "float32")
    axis = [0 if matrix.shape[0] >= matrix.shape[1] else 1]
    return contracted(matrix, matrix, axis, axis)


def gram_deviation(matrix: Tensor) -> Tensor:
    """Computes `S − I` of the smaller Gram matrix `S`, of shape `(Φ, Φ)`.

    Args:
        matrix: tensor of shape `(m, n)`.

    Example:

    >>> float(keras.ops.sum(elrt_keras.regularizers.gram_deviation(keras.ops.eye(4, 2))))
    0.0
    """
    gram = smaller_gram(matrix)
    return gram - ops.eye(gram.shape[0], dtype=gram.dtype)


@ops.custom_gradient
def _squared_deviation(matrix: Tensor) -> Any:
    """Computes ‖S − I‖_F², with its own gradient `4·A·(S − I)` or `4·(S − I)·A`.

    This gradient is one matrix product; automatic differentiation of `AᵀA` needs two. The gradient can be
    differentiated again. JAX's forward mode (`jax.jvp`) does not support custom gradients like this one.

    Args:
        matrix: tensor of shape `(m, n)`, float32 or float64.
    """
    deviation = gram_deviation(matrix)

    def gradient(*arguments, upstream=None):
        if upstream is None:  # PyTorch passes it by name, the others as the only argument
            (upstream,) = arguments
        # In PyTorch the deviation from the forward pass has no graph. A derivative of the gradient needs one.
        difference = gram_deviation(matrix) if _derived_again() else deviation
        rows, columns = matrix.shape
        product = ops.matmul(matrix, difference) if rows >= columns else ops.matmul(difference, matrix)
        return 4.0 * upstream * product

    return ops.sum(ops.square(deviation)), gradient


def _derived_again():
    """Reports if PyTorch records this gradient in order to differentiate it again."""
    if keras.backend.backend() != "torch":
        return False
    import torch

    return torch.is_grad_enabled()


def orthogonality_error(matrix: Tensor) -> float:
    """Computes ‖S − I‖_F / √Φ as a float: 0 for a semi-orthogonal matrix, 1 for a zero matrix.

    Args:
        matrix: array or tensor of shape `(m, n)`.

    Raises:
        ValueError: for an array that is no matrix.

    Example:

    >>> elrt_keras.regularizers.orthogonality_error(np.eye(4, 2, dtype="float32"))
    0.0
    """
    matrix = ops.convert_to_tensor(matrix)
    if len(matrix.shape) != 2 or 0 in matrix.shape:
        raise ValueError(f"Expected a matrix. Received: an array of shape {tuple(matrix.shape)}")
    deviation = ops.convert_to_numpy(gram_deviation(matrix)).astype("float64")
    return float(np.linalg.norm(deviation) / math.sqrt(deviation.shape[0]))


class OrthogonalityRegularizer(keras.regularizers.Regularizer):
    """Base class: `strength · penalty(A)`. Subclasses implement `penalty`.

    The strength is a variable, so `RegularizationSchedule` can change it between calls of compiled functions. Setting
    `regularizer.strength` has the same effect.

    Args:
        strength: float ≥ 0, λ (ρ in ELRT); 0.01 by default, as for `elrt-train`.

    Raises:
        ValueError: for a negative or non-finite strength, or if it is called on a weight with fewer than two axes.

    Example:

    >>> regularizer = elrt_keras.regularizers.DoubleSoftOrthogonality(1e-2)
    >>> regularizer.strength = 1e-3
    >>> regularizer.get_config()["strength"]
    0.001
    """

    def __init__(self, strength: float = DEFAULT_STRENGTH):
        self._strength = number_in(strength, "[0, inf)", "strength")
        # The name is unique, because layers may have several regularizers and a model finds its state by names.
        self.strength_variable: keras.Variable = self._variable(
            f"orthogonality_strength_{keras.backend.get_uid('orthogonality_strength')}"
        )
        self._is_placed = False

    def _variable(self, name):
        return keras.Variable(
            # Keras calls this when it initializes the variable, perhaps later.
            lambda shape, dtype=None: ops.convert_to_tensor(self._strength, dtype=dtype),
            shape=(),
            dtype="float32",
            trainable=False,
            name=name,
            autocast=False,
        )

    def place_strength(self, argument: str) -> None:
        """Replaces the strength's variable by one in the name scope of the first layer that is built with it.

        State trees and PyTorch's state dicts find variables by their paths. The path of the new variable is the same
        for the same model in any program. After a call of the regularizer the variable stays, because a compiled
        function may hold it.

        Args:
            argument: name of the layer's argument for this regularizer.
        """
        if not self._is_placed:
            with keras.name_scope(argument):
                self.strength_variable = self._variable("orthogonality_strength")
            self._is_placed = True

    @property
    def strength(self) -> float:
        """Weight of the penalty, a float; it can be set."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength = number_in(value, "[0, inf)", "strength")
        self.strength_variable.assign(self._strength)

    def penalty(self, matrix: Tensor) -> Tensor:
        """Computes the penalty of a matrix of shape `(m, n)` at strength 1, a scalar tensor."""
        raise NotImplementedError

    def __call__(self, weight: Tensor) -> Tensor:
        self._is_placed = True
        shape = weight.shape
        if len(shape) < 2:
            raise ValueError(f"Expected a weight with at least two axes. Received: shape={tuple(shape)}")
        penalty = self.penalty(ops.reshape(weight, (math.prod(shape[:-1]), shape[-1])))
        return as_loss(ops.cast(self.strength_variable, penalty.dtype) * penalty)

    def get_config(self) -> dict[str, Any]:
        return {"strength": self.strength}


@keras.saving.register_keras_serializable(_PACKAGE)
class SoftOrthogonality(OrthogonalityRegularizer):
    """SO: `(λ/Φ) · ‖S − I‖_F²`, S the smaller Gram matrix and Φ its size.

    Bansal et al. (arXiv 1810.09102) state it without 1/Φ. Here it has the scale of ELRT's penalty. So the gradient of
    `DoubleSoftOrthogonality` is exactly twice this one at the same strength. `normalize=False` drops the 1/Φ.

    Args:
        strength: float ≥ 0, λ; 0.01 by default.
        normalize: whether to divide by Φ.

    Raises:
        ValueError: for a negative or non-finite strength.

    Example:

    >>> penalty = elrt_keras.regularizers.SoftOrthogonality(0.5)(np.zeros((4, 2), dtype="float32"))
    >>> float(penalty)  # 0.5 / 2 · ‖−I₂‖²
    0.5
    """

    def __init__(self, strength: float = DEFAULT_STRENGTH, normalize: bool = True):
        super().__init__(strength)
        self.normalize = bool(normalize)

    def penalty(self, matrix: Tensor) -> Tensor:
        if keras.backend.standardize_dtype(matrix.dtype) != "float64":
            matrix = ops.cast(matrix, "float32")
        value = _squared_deviation(matrix)
        return value / min(matrix.shape) if self.normalize else value

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "normalize": self.normalize}


@keras.saving.register_keras_serializable(_PACKAGE)
class DoubleSoftOrthogonality(SoftOrthogonality):
    """DSO, the penalty of ELRT: `(ρ/Φ) · (‖AᵀA − I‖_F² + ‖AAᵀ − I‖_F²)` (arXiv 2401.10341).

    Only the smaller Gram matrix is computed. For A of m × n the two terms differ by exactly |m − n|, so the sum is
    `2·‖S − I‖_F² + |m − n|`. The constant has no gradient. It is kept so that the value equals that of the paper.

    Args:
        strength: float ≥ 0, ρ; 0.01 by default.
        normalize: whether to divide by Φ = min(m, n), the rank of a factor matrix.

    Raises:
        ValueError: for a negative or non-finite strength.

    Example:

    >>> penalty = elrt_keras.regularizers.DoubleSoftOrthogonality(1.0)(np.eye(3, dtype="float32"))
    >>> float(penalty)
    0.0
    """

    def penalty(self, matrix: Tensor) -> Tensor:
        rows, columns = matrix.shape
        constant = abs(rows - columns)
        return 2.0 * super().penalty(matrix) + (constant / min(rows, columns) if self.normalize else constant)


@keras.saving.register_keras_serializable(_PACKAGE)
class MutualCoherence(OrthogonalityRegularizer):
    """MC: `λ · max |S − I|`, the largest absolute entry (Bansal et al., arXiv 1810.09102).

    Args:
        strength: float ≥ 0, λ; 0.01 by default.

    Raises:
        ValueError: for a negative or non-finite strength.

    Example:

    >>> float(elrt_keras.regularizers.MutualCoherence(1.0)(np.eye(3, dtype="float32")))
    0.0
    """

    def penalty(self, matrix: Tensor) -> Tensor:
        return ops.max(ops.abs(gram_deviation(matrix)))


@keras.saving.register_keras_serializable(_PACKAGE)
class SpectralIsometry(OrthogonalityRegularizer):
    """SRIP: `λ · σ_max(S − I)`, the spectral norm by power iteration (Bansal et al., arXiv 1810.09102).

    From a fixed random vector v: repeat `v ← (S − I)v / ‖(S − I)v‖`, then `σ ≈ ‖(S − I)v‖`, which approaches the norm
    from below. The source takes two steps from a new random vector each time. Here many steps start from a fixed
    vector, so the penalty is deterministic and differs from the norm by only some parts in a thousand. The steps are
    computed by squaring S − I. This needs about log₂ of their number of squarings, each of Φ³ MACs. The gradient treats
    the vector as constant. This is exact for the gradient, but not for derivatives of it.

    Args:
        strength: float ≥ 0, λ; 0.01 by default.
        power_iterations: int ≥ 1, steps of the power iteration; they need about log₂ of this number of squarings.

    Raises:
        ValueError: for a negative or non-finite strength, or a number of iterations that is no int ≥ 1.

    Example:

    >>> matrix = np.diag([2.0, 1.0]).astype("float32")  # S − I = diag(3, 0)
    >>> round(float(elrt_keras.regularizers.SpectralIsometry(1.0)(matrix)), 4)
    3.0
    """

    def __init__(self, strength: float = DEFAULT_STRENGTH, power_iterations: int = 1024):
        super().__init__(strength)
        self.power_iterations = int_in(power_iterations, "[1, inf)", "power_iterations")

    def penalty(self, matrix: Tensor) -> Tensor:
        deviation = gram_deviation(matrix)
        start = np.random.default_rng(0).standard_normal((deviation.shape[0], 1))
        start = (start / np.linalg.norm(start)).astype("float32")
        direction = ops.cast(ops.convert_to_tensor(start), deviation.dtype)
        power, steps = _normalized(ops.stop_gradient(deviation)), self.power_iterations - 1
        while steps:  # multiplies by the squares at the binary digits 1 of the number of steps
            if steps % 2:
                direction = _normalized(ops.matmul(power, direction))
            steps //= 2
            power = _normalized(ops.matmul(power, power)) if steps else power
        # d‖Mv‖ at the leading eigenvector v is the derivative of the spectral norm, so v itself needs no gradient.
        return _norm(ops.matmul(deviation, direction))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "power_iterations": self.power_iterations}


def _normalized(array):
    return array / (_norm(array) + 1e-12)


def _norm(array):
    # The offset keeps the gradient finite at zero, where an orthonormal start would otherwise give NaN.
    return ops.sqrt(ops.sum(ops.square(array)) + 1e-24)


BY_NAME = {
    "so": SoftOrthogonality,
    "dso": DoubleSoftOrthogonality,
    "mc": MutualCoherence,
    "srip": SpectralIsometry,
}


def get(identifier: Identifier | None) -> Any:
    """Returns a regularizer from a name, a config or an object; `None` stays `None`.

    Args:
        identifier: `"so"`, `"dso"`, `"mc"` or `"srip"`, each with its default strength, or an argument of
            `keras.regularizers.get`.

    Raises:
        ValueError: for an unknown name.

    Example:

    >>> elrt_keras.regularizers.get("dso").strength
    0.01
    """
    return by_name(identifier, BY_NAME, keras.regularizers.get, "factor_regularizer")
