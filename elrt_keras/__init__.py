"""Compact convolutional networks, trained low-rank from scratch (ELRT) with Keras 3.

import elrt_keras as elrt

model = elrt.models.build("resnet20")
plan = elrt.plan_ranks(model, max_macs=0.4)
low_rank = elrt.factorize(model, plan, factor_regularizer=elrt.regularizers.DoubleSoftOrthogonality(1e-2))
"""

# pyright: reportUnsupportedDunderAll=false
# The lazy subpackages are in `__all__` and in __init__.pyi, which type checkers read.

import importlib
import pathlib
from types import ModuleType

from elrt_keras import callbacks, constraints, formats, initializers, layers, regularizers
from elrt_keras.conversion import expand, factorize, merge, recalibrate_batch_norm, shrink, shrink_curve
from elrt_keras.distillation import Taught
from elrt_keras.graph.costs import LayerCosts, ModelCosts, count_costs
from elrt_keras.layers.batch_norm import fuse_batch_norm
from elrt_keras.ranks import LayerPlan, RankPlan, export_timing_set, plan_ranks
from elrt_keras.tuning import TrainingReport, tune_training

__version__ = "0.1.0"

__all__ = [
    "LayerCosts",
    "LayerPlan",
    "ModelCosts",
    "RankPlan",
    "Taught",
    "TrainingReport",
    "callbacks",
    "constraints",
    "count_costs",
    "expand",
    "export",
    "export_timing_set",
    "factorize",
    "formats",
    "fuse_batch_norm",
    "initializers",
    "layers",
    "litert",
    "merge",
    "models",
    "plan_ranks",
    "plot",
    "recalibrate_batch_norm",
    "regularizers",
    "shrink",
    "shrink_curve",
    "tune_training",
]

# Subpackages that are available after `import elrt_keras`, but loaded at the first use.
_LAZY = ("export", "litert", "models", "plot")

_HERE = pathlib.Path(__file__).parent
if not (_HERE / "models").exists():
    # In the root of a checkout Python finds this folder before an installed package. Other subpackages lie beside it.
    __path__.append(str(_HERE.parent))


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
