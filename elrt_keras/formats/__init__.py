"""The low-rank formats, one file each. Importing this package registers all of them."""

from elrt_keras.formats import tucker2
from elrt_keras.formats.base import ChainCosts, Format, MatrixView, Stage, get, names

__all__ = ["ChainCosts", "Format", "MatrixView", "Stage", "get", "names", "tucker2"]
