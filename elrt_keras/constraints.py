"""Constraint that keeps factor matrices exactly orthonormal."""

from typing import Any

import keras
from keras import ops

from elrt_keras.checks import Identifier, by_name
from elrt_keras.formats.arrays import Tensor


@keras.saving.register_keras_serializable("elrt_keras")
class Stiefel(keras.constraints.Constraint):
    """Retracts a matrix to the Stiefel manifold: orthonormal columns (m ≥ n) or orthonormal rows (m < n).

    The retraction is the Q of the QR decomposition `A = QR`. The diagonal of R is made positive, so Q is unique and
    continuous. An orthonormal matrix does not change. With `factor_constraint=` it runs after each optimizer step and
    is the hard counterpart of the soft penalties. If a weight has more than two axes, all axes except the last are
    flattened into one. Source of the retraction: Absil, Mahony, Sepulchre, "Optimization Algorithms on Matrix
    Manifolds", 2008, section 4.1.1.

    Raises:
        ValueError: if it is called on a weight with fewer than two axes.

    Example:

    >>> weight = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]], dtype="float32")
    >>> q = keras.ops.convert_to_numpy(elrt_keras.constraints.Stiefel()(weight))
    >>> np.allclose(q.T @ q, np.eye(2), atol=1e-6)
    True
    """

    def __call__(self, weight: Tensor) -> Tensor:
        shape = tuple(weight.shape)
        if len(shape) < 2:
            raise ValueError(f"Expected a weight with at least two axes. Received: shape={shape}")
        matrix = ops.reshape(weight, (-1, shape[-1]))
        dtype = keras.backend.standardize_dtype(weight.dtype)
        # The backends have no QR for types below float32.
        matrix = matrix if dtype == "float64" else ops.cast(matrix, "float32")
        wide = matrix.shape[0] < matrix.shape[1]
        q, r = ops.qr(ops.transpose(matrix) if wide else matrix)
        signs = ops.where(ops.diagonal(r) < 0, -1.0, 1.0)
        q = q * ops.cast(signs, q.dtype)
        return ops.cast(ops.reshape(ops.transpose(q) if wide else q, shape), dtype)

    def get_config(self) -> dict[str, Any]:
        return {}


BY_NAME = {"stiefel": Stiefel}


def get(identifier: Identifier | None) -> Any:
    """Returns a constraint from a name, a config or an object; `None` stays `None`.

    Args:
        identifier: `"stiefel"`, or an argument of `keras.constraints.get`.

    Raises:
        ValueError: for an unknown name.

    Example:

    >>> type(elrt_keras.constraints.get("stiefel")).__name__
    'Stiefel'
    """
    return by_name(identifier, BY_NAME, keras.constraints.get, "factor_constraint")
