"""Choice of formats and ranks. Importing this package registers the methods of every file in this folder."""

import importlib
import pkgutil

from elrt_keras.ranks.plan import LayerPlan, RankPlan
from elrt_keras.ranks.planner import export_timing_set, plan_ranks

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["LayerPlan", "RankPlan", "export_timing_set", "plan_ranks"]
