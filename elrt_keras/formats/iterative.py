"""Settings under which the formats run TensorLy's iterative decompositions."""

import contextlib
import warnings
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def tensorly_on_numpy() -> Iterator[None]:
    """Context in which TensorLy computes with NumPy and gives no warnings about two expected cases.

    In one case TensorLy completes a factor, because a short unfolding leaves it too narrow. In the other it divides by
    the norm of a zero kernel.
    """
    # TensorLy imports SciPy. The import is here so that `import elrt_keras` stays as quick as `import keras`.
    import tensorly

    zero_kernel = np.errstate(invalid="ignore")
    with tensorly.backend_context("numpy"), warnings.catch_warnings(), zero_kernel:
        warnings.filterwarnings("ignore", message="Trying to compute SVD with n_eigenvecs", category=UserWarning)
        yield
