"""TensorLy's iterative decompositions, as the formats use them."""

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def tensorly_on_numpy() -> Iterator[None]:
    """A context in which TensorLy computes with NumPy and says nothing of factors that it completes.

    It completes a factor that a short unfolding leaves too narrow. That is asked for here, no news to the user.
    """
    # TensorLy brings SciPy along; importing it here keeps `import elrt_keras` as quick as `import keras`.
    import tensorly

    with tensorly.backend_context("numpy"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Trying to compute SVD with n_eigenvecs", category=UserWarning)
        yield
