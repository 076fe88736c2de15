"""TensorLy's iterative decompositions, as the formats use them."""

import contextlib
import warnings
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def tensorly_on_numpy() -> Iterator[None]:
    """A context in which TensorLy computes with NumPy, without warnings of what is asked for here.

    It completes a factor that a short unfolding leaves too narrow, and divides by the norm of a kernel that is zero.
    """
    # TensorLy brings SciPy along; importing it here keeps `import elrt_keras` as quick as `import keras`.
    import tensorly

    zero_kernel = np.errstate(invalid="ignore")
    with tensorly.backend_context("numpy"), warnings.catch_warnings(), zero_kernel:
        warnings.filterwarnings("ignore", message="Trying to compute SVD with n_eigenvecs", category=UserWarning)
        yield
