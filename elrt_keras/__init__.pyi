# For type checkers and editors: the front door with the rooms that `__init__.py` loads when they are first used.
# `tests/test_typing.py` holds the two to the same names.

from elrt_keras import callbacks as callbacks
from elrt_keras import constraints as constraints
from elrt_keras import export as export
from elrt_keras import formats as formats
from elrt_keras import initializers as initializers
from elrt_keras import layers as layers
from elrt_keras import litert as litert
from elrt_keras import models as models
from elrt_keras import plot as plot
from elrt_keras import regularizers as regularizers
from elrt_keras.conversion import expand as expand
from elrt_keras.conversion import factorize as factorize
from elrt_keras.conversion import merge as merge
from elrt_keras.conversion import recalibrate_batch_norm as recalibrate_batch_norm
from elrt_keras.conversion import shrink as shrink
from elrt_keras.conversion import shrink_curve as shrink_curve
from elrt_keras.distillation import Taught as Taught
from elrt_keras.graph.costs import LayerCosts as LayerCosts
from elrt_keras.graph.costs import ModelCosts as ModelCosts
from elrt_keras.graph.costs import count_costs as count_costs
from elrt_keras.layers.batch_norm import fuse_batch_norm as fuse_batch_norm
from elrt_keras.ranks import LayerPlan as LayerPlan
from elrt_keras.ranks import RankPlan as RankPlan
from elrt_keras.ranks import export_timing_set as export_timing_set
from elrt_keras.ranks import plan_ranks as plan_ranks
from elrt_keras.tuning import TrainingReport as TrainingReport
from elrt_keras.tuning import tune_training as tune_training

__version__: str
