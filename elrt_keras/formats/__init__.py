"""The low-rank formats, one file each. Importing this package registers the format of every file in this folder."""

import importlib
import pkgutil

from elrt_keras.formats.arrays import MatrixView
from elrt_keras.formats.base import Format, get, names, register
from elrt_keras.formats.chain import ChainCosts, Stage
from elrt_keras.formats.groups import grouped

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["ChainCosts", "Format", "MatrixView", "Stage", "get", "grouped", "names", "register"]
