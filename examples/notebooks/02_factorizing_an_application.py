# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Factorising a network of `keras.applications`
#
# You have a trained network and want a cheaper one. Then the ranks are read off the **singular spectra** of its
# weights, the low-rank network takes over these weights, decomposed, and a short fine-tuning repairs the rest.
#
# The network is MobileNet. With `weights="imagenet"` Keras would download trained weights; here it is trained on the
# scikit-learn digits, enlarged to its smallest input of 32×32, so that the notebook needs no network and a minute at
# most.

# %%
# %matplotlib inline
import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import elrt_keras as elrt

images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32") * (255 / 16)
images = np.kron(images, np.ones((1, 4, 4, 3), "float32"))  # 4×4 pixels for each, three equal channels
train_images, test_images, train_labels, test_labels = train_test_split(
    images, labels, test_size=360, random_state=0, stratify=labels
)


def train(model, epochs, learning_rate):
    steps = epochs * -(-len(train_images) // 64)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    keras.utils.set_random_seed(1)
    model.fit(train_images, train_labels, batch_size=64, epochs=epochs, verbose=0)


def accuracy(model):
    scores = keras.ops.convert_to_numpy(model(test_images, training=False))
    return float(np.mean(scores.argmax(axis=-1) == test_labels))


# %%
keras.utils.set_random_seed(0)
mobilenet = keras.applications.MobileNet(
    alpha=0.5, input_shape=(32, 32, 3), weights=None, classes=10, dropout=0.0, name="mobilenet"
)
for layer in mobilenet.layers:
    if isinstance(layer, keras.layers.BatchNormalization):
        layer.momentum = 0.9  # 0.99 averages over more steps than this training has
inputs = keras.Input((32, 32, 3), name="image")
dense = keras.Model(inputs, mobilenet(keras.layers.Rescaling(1 / 127.5, -1)(inputs)), name="digits")
train(dense, epochs=6, learning_rate=0.1)
print(f"test accuracy {accuracy(dense):.1%}")

# %% [markdown]
# ## Where the costs are
#
# `count_costs` takes any Keras model, nested ones as this one included. In a MobileNet nearly all is in the pointwise
# (1×1) convolutions.

# %%
costs = elrt.count_costs(dense)
by_type = {}
for row in costs.layers:
    kind = "pointwise" if "_pw_" in row.name else row.type
    by_type[kind] = by_type.get(kind, 0) + row.macs
for kind, macs in sorted(by_type.items(), key=lambda item: -item[1])[:4]:
    print(f"{kind:16} {macs / costs.macs:6.1%} of {costs.macs:,} MACs")

# %% [markdown]
# ## Ranks from spectra
#
# A layer's truncation to rank $r$ loses $\sum_{i>r} \sigma_i^2$ of its squared norm. `method="energy"` minimises the
# sum of these losses, each relative to its layer, under the budget; a layer may stay dense. A k×k kernel is decomposed
# along both channel axes (Tucker-2); a 1×1 kernel is a matrix, and its format is the SVD:
#
# $$n \cdot r\,(C_{in} + C_{out}) \quad\text{MACs instead of}\quad n \cdot C_{in}\, C_{out}.$$

# %%
plan = elrt.plan_ranks(dense, max_macs=0.65, method="energy")
elrt.plot.rank_plan(plan)

# %% [markdown]
# The depthwise convolutions stay dense: their channels share nothing, so there is nothing to factorise (`plan.reasons`
# says so for each layer). The spectra of some pointwise ones, dashed the ranks that the plan gives them:

# %%
elrt.plot.spectra(dense, layers=["*pw_5", "*pw_8", "*pw_12", "*pw_13"], plan=plan)

# %% [markdown]
# ## Nothing is lost at full rank
#
# Before giving anything up, see that the conversion itself is exact: at full ranks the low-rank network computes what
# the dense one does, up to rounding. `merge` composes the factors again.

# %%
full = elrt.factorize(dense, elrt.plan_ranks(dense, fraction=1.0, break_even=False), factor_initializer="decomposed")
expected = keras.ops.convert_to_numpy(dense(test_images[:64]))
for name, model in {"low-rank at full rank": full, "merged again": elrt.merge(full)}.items():
    difference = np.abs(keras.ops.convert_to_numpy(model(test_images[:64])) - expected).max()
    print(f"{name:22} largest difference of a probability {difference:.0e}")

# %% [markdown]
# ## At 65 % of the MACs
#
# `factor_initializer="decomposed"` takes the best approximation of the dense weights. Without it, the same plan would
# be trained from scratch.

# %%
low_rank = elrt.factorize(dense, plan, factor_initializer="decomposed")
accuracies = {"dense": accuracy(dense), "decomposed": accuracy(low_rank)}
train(low_rank, epochs=4, learning_rate=0.05)
accuracies["fine-tuned"] = accuracy(low_rank)
low_rank_costs = elrt.count_costs(low_rank)
print(f"MACs {low_rank_costs.macs / costs.macs:.1%} of dense, parameters {low_rank_costs.params / costs.params:.1%}")

# %%
figure, axis = plt.subplots(figsize=(4.8, 1.6), layout="constrained")
bars = axis.barh(list(accuracies), [100 * value for value in accuracies.values()], color=["C0", "C1", "C2"])
axis.bar_label(bars, fmt="%.1f", padding=3)
axis.set(xlabel="test accuracy (%)", xlim=(0, 112))
axis.invert_yaxis()

# %% [markdown]
# MobileNets have little to spare, so decomposing alone costs much: the errors add up over the layers, and the
# statistics of batch-norm no longer fit. A few epochs repair both.
#
# The result is an ordinary Keras model that can be saved, and `elrt.expand(low_rank)` is the same with stock layers
# only. `docs/models.md` lists which CNNs of keras.applications and keras-hub were taken how far.
