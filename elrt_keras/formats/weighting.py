"""Decompositions that weight a kernel by its inputs: they minimise the error of a layer's outputs.

M = E[x·xᵀ] are the second moments of the channels of a layer's inputs. W is its kernel, as a matrix in × out for each
position. Then

    E‖(W − Ŵ)ᵀx‖² = Σ_positions ‖M^½ (W − Ŵ)‖_F².

So M^½·W is decomposed, and the first factor is multiplied by M^-½: it is the only factor with the axis of the inputs.
This is exact for a kernel of one position. For larger kernels it treats the pixels under the kernel as uncorrelated.
"""

import functools
from collections.abc import Sequence

import numpy as np
from keras import ops

from elrt_keras.formats.base import Format
from elrt_keras.formats.errors import Errors

# This part of the mean moment is added to all moments: errors in directions that no example has must cost something.
_DAMPING = 1e-2


class InputWeighting:
    """The weighting of a layer's kernel by the second moments of its inputs.

    Args:
        moments: array `(groups, C, C)`, E[x·xᵀ] of the channels of each group.

    Example:

    >>> weighting = InputWeighting(np.diag([100.0, 1.0])[None])
    >>> svd = elrt_keras.formats.get("svd")
    >>> kernel = np.diag([1.0, 2.0])  # the second input has the larger weight, and hardly ever a value
    >>> ops.convert_to_numpy(svd.compose(weighting.decompose(svd, kernel, (1,)))).round(2).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """

    def __init__(self, moments: np.ndarray):
        self.moments = moments = np.asarray(moments, "float64")
        mean = np.trace(moments, axis1=1, axis2=2)[:, None, None] / moments.shape[-1]
        self._damped = moments + np.where(mean > 0, _DAMPING * mean, 1.0) * np.eye(moments.shape[-1])

    @functools.cached_property
    def _powers(self):
        """M^½ and M^-½ of each group."""
        values, vectors = np.linalg.eigh(self._damped)
        transposed = np.swapaxes(vectors, 1, 2)
        return [(vectors * np.power(values, power)[:, None]) @ transposed for power in (0.5, -0.5)]

    def decompose(self, format: Format, kernel: np.ndarray, ranks: Sequence[int]) -> list[np.ndarray]:
        """Returns the factors (NumPy arrays) whose kernel gives the outputs closest to those of `kernel`."""
        weighted = self._times(0, kernel).astype(np.asarray(kernel).dtype)
        return self._unweighted(format, format.decompose(weighted, ranks), ranks)

    def truncate(self, format: Format, factors: Sequence[np.ndarray], ranks: Sequence[int]) -> list[np.ndarray]:
        """Returns factors at lower ranks whose kernel gives the outputs closest to those of `factors`."""
        return self._unweighted(format, format.truncate(self._first(0, factors), ranks), ranks)

    def errors(self, format: Format, kernel: np.ndarray) -> Errors:
        """Returns the relative squared error of the outputs as a function of the ranks of `decompose`."""
        return format.errors(self._times(0, kernel))

    def errors_of_factors(self, format: Format, factors: Sequence[np.ndarray]) -> Errors:
        """Returns the relative squared error of the outputs as a function of the ranks of `truncate`."""
        return format.errors_of_factors(self._first(0, factors))

    def relative_error(self, kernel: np.ndarray, other: np.ndarray) -> float:
        """Returns ‖M^½(W − Ŵ)‖² / ‖M^½W‖² of two kernels; 0 for a zero kernel."""
        whole, lost = (
            np.sum(self._times(0, array) ** 2) for array in (kernel, np.subtract(kernel, other, dtype="float64"))
        )
        return float(lost / whole) if whole > 0 else 0.0

    def _unweighted(self, format, factors, ranks):
        # At the same ranks `truncate` keeps the kernel, and makes the orthogonal factors orthonormal.
        return format.truncate(self._first(1, factors), ranks)

    def _first(self, power, factors):
        first, *others = (np.asarray(ops.convert_to_numpy(factor)) for factor in factors)
        return [self._times(power, first).astype(first.dtype), *others]

    def _times(self, power, kernel):
        """Multiplies a kernel or first factor `(…, C, groups·n)` by a power of M (0: M^½, 1: M^-½), group by group."""
        groups, channels, _ = self.moments.shape
        split = np.asarray(kernel, "float64").reshape(*kernel.shape[:-1], groups, -1)
        product = np.einsum("gij,...jgn->...ign", self._powers[power], split)
        return product.reshape(*kernel.shape[:-2], channels, -1)
