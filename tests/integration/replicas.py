"""Trains a few steps on several logical CPU devices and writes the weights; `test_distribution.py` runs it.
python replicas.py DEVICES PRECISION STEPS OUTPUT FIELDS, the fields of a `TrainConfig` as JSON.
"""

import json
import sys

import keras
import numpy as np

from elrt_keras.launch import data, modeling, strategies
from elrt_keras.launch.config import TrainConfig

devices, precision, steps, output, fields = sys.argv[1:]
devices = int(devices)
distribution = strategies.start("mirrored", num_cpus=devices) if devices > 1 else strategies.SINGLE
config = TrainConfig(model="resnet8", batch_size=64, max_macs=0.4, lr_schedule="constant", **json.loads(fields))
digits = data.load("digits")
batches = distribution.spread(lambda shard: digits.train_batches(config, 0, shard), config.batch_size)
# Set the policy after the pipeline is made: its images are float32, and Keras' MixUp uses numbers of the default type.
keras.config.set_floatx("float64" if precision == "float64" else "float32")
keras.config.set_dtype_policy(precision)
keras.utils.set_random_seed(0)
with distribution.scope():
    dense = modeling.dense_model(config, digits)
    model = modeling.build_model(config, dense, modeling.rank_plan(config, dense))
    model = modeling.with_teacher(config, model, modeling.load_teacher(config, dense, digits))
    modeling.compile_model(model, config, 20)
if distribution.strategy is not None:
    modeling.synchronize_batch_norm(model, True)
history = model.fit(batches, steps_per_epoch=int(steps), epochs=1, verbose=0, shuffle=False)
model.optimizer.use_averages(model.trainable_variables)
arrays = {variable.path: keras.ops.convert_to_numpy(variable) for variable in model.weights}
np.savez(output, loss=history.history["loss"], **arrays)
print("replicas", distribution.replicas)
