# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One training, many sizes: shrinking after training
#
# Not sure how small the network has to be? Train it low-rank at the highest ranks you can afford, and lower them
# afterwards. `shrink` chooses lower ranks from the spectra of the composed kernels and truncates the factors, which for
# Tucker-2 gives the best approximation: both factor matrices are orthonormalised by QR, $U_{in} = Q_{in} R_{in}$ and
# $U_{out} = R_{out} Q_{out}$, what they held goes into the core,
#
# $$\mathcal{G}' = \mathcal{G} \times_{in} R_{in} \times_{out} R_{out},$$
#
# and the small core is decomposed instead of the large kernel.

# %%
# %matplotlib inline
import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import elrt_keras as elrt

images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32") * (255 / 16)
train_images, test_images, train_labels, test_labels = train_test_split(
    images, labels, test_size=360, random_state=0, stratify=labels
)


def build():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 127.5, -1)])
    for number, (filters, strides) in enumerate([(32, 1), (64, 1), (64, 2), (64, 1)], start=1):
        name = f"conv{number}"
        model.add(keras.layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False, name=name))
        model.add(keras.layers.BatchNormalization(momentum=0.9))
        model.add(keras.layers.ReLU())
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(10, activation="softmax", name="classifier"))
    return model


def train(model, epochs, learning_rate=0.1):
    steps = epochs * -(-len(train_images) // 64)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    keras.utils.set_random_seed(1)
    model.fit(train_images, train_labels, batch_size=64, epochs=epochs, verbose=0)
    return model


def accuracy(model):
    scores = keras.ops.convert_to_numpy(model(test_images, training=False))
    return float(np.mean(scores.argmax(axis=-1) == test_labels))


# %% [markdown]
# ## Train once, at 60 % of the MACs

# %%
dense = build()
penalty = elrt.regularizers.DoubleSoftOrthogonality(1e-2)
plan = elrt.plan_ranks(dense, max_macs=0.6)
trained = train(elrt.factorize(dense, plan, factor_regularizer=penalty), epochs=12)
print(f"test accuracy {accuracy(trained):.1%}")

# %% [markdown]
# The spectra end at the ranks of the training (dashed) and have fallen before: that is what shrinking lives on.

# %%
elrt.plot.spectra(trained, layers=["conv2", "conv3", "conv4"])

# %% [markdown]
# ## Lower it
#
# `shrink_curve` goes through a list of budgets, all of them parts of the *dense* network's MACs, and tells what is
# lost: of the kernels' squared norms, and of whatever `evaluate` returns.

# %%
curve = elrt.shrink_curve(trained, [0.5, 0.4, 0.3, 0.2], evaluate=accuracy)
print(curve)

# %% [markdown]
# The first budgets cost little. Further down, batch-norm's statistics no longer fit what the layers put out, and a few
# epochs at a low learning rate repair that. For comparison, the smallest network trained from scratch for as long as
# the large one was.

# %%
fine_tuned = [train(elrt.shrink(trained, max_macs=part), epochs=3, learning_rate=0.02) for part in (0.4, 0.3, 0.2)]
small_plan = elrt.plan_ranks(dense, max_macs=0.2)
from_scratch = train(elrt.factorize(dense, small_plan, factor_regularizer=penalty), epochs=12)


# %%
def row(name, model):
    return {"name": name, "accuracy": accuracy(model), "macs": elrt.count_costs(model).macs}


results = [{"name": "shrunk", "accuracy": point.metric, "macs": point.macs} for point in curve.points]
results += [row("shrunk, 3 epochs more", model) for model in fine_tuned]
results.append(row("from scratch", from_scratch))
for result in results:
    print(f"{result['name']:22} {result['macs'] / curve.dense_macs:4.0%} of the MACs   {result['accuracy']:.1%}")

# %%
elrt.plot.tradeoff(results)

# %% [markdown]
# One long training and a short one for every size stand in for a long training of each. Shrinking helps to choose a
# size; if you know it beforehand, train at its ranks from the first step.
