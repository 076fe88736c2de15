# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Low-rank training from scratch
#
# A convolution of $k \times k$ from $C_{in}$ to $C_{out}$ channels has a kernel $\mathcal{K}$ of $k \cdot k \cdot
# C_{in} \cdot C_{out}$ numbers. Here it is a **Tucker-2 chain** from the first training step to the last: a 1×1
# convolution $U_{in}$ down to $r_{in}$ channels, a $k \times k$ core $\mathcal{G}$ between few channels, and a 1×1
# convolution $U_{out}$ up again,
#
# $$\mathcal{K}_{xypq} = \sum_{a=1}^{r_{in}} \sum_{b=1}^{r_{out}} U_{in}[p, a]\; \mathcal{G}_{xyab}\; U_{out}[b, q].$$
#
# A soft penalty keeps both factor matrices orthonormal. That is ELRT, [Efficient Low-Rank
# Training](https://arxiv.org/abs/2401.10341): no large model first, no compression afterwards.
#
# This notebook plans ranks for 40 % of the multiply-accumulates (MACs), trains a small network dense and low-rank on
# the digits that come with scikit-learn, and looks at what the penalty does. It takes less than a minute on two CPU
# cores.

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
train_images, test_images, train_labels, test_labels = train_test_split(
    images, labels, test_size=360, random_state=0, stratify=labels
)
print(f"{len(train_images)} images to train on, {len(test_images)} to test on")

# %%
figure, axes = plt.subplots(1, 8, figsize=(4.8, 0.8))
for axis, image, label in zip(axes, train_images, train_labels):
    axis.imshow(image[..., 0], cmap="gray_r")
    axis.set_title(label, fontsize=8)
    axis.axis("off")

# %% [markdown]
# ## The dense network
#
# An ordinary Keras model. Layers have names, because a rank plan refers to them.


# %%
def build():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 127.5, -1)])
    for number, (filters, strides) in enumerate([(32, 1), (32, 1), (64, 2), (64, 1)], start=1):
        name = f"conv{number}"
        model.add(keras.layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False, name=name))
        model.add(keras.layers.BatchNormalization())
        model.add(keras.layers.ReLU())
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(10, activation="softmax", name="classifier"))
    return model


dense = build()

# %% [markdown]
# ## A rank plan
#
# You give the budget, `plan_ranks` gives the ranks. For $n_{in}$ input and $n_{out}$ output positions the chain costs
#
# $$n_{in}\, C_{in}\, r_{in} + n_{out} \left(k^2\, r_{in}\, r_{out} + r_{out}\, C_{out}\right)
# \quad\text{instead of}\quad n_{out}\, k^2\, C_{in}\, C_{out}$$
#
# MACs. The first convolution and the classifier stay dense, as in the literature; other layers get multiples of 8,
# which SIMD units like.

# %%
plan = elrt.plan_ranks(dense, max_macs=0.4)
print(plan)

# %%
elrt.plot.rank_plan(plan)

# %% [markdown]
# ## Training
#
# `factorize` replaces the layers of the plan by low-rank layers of the same names. The result is a Keras model like any
# other: `compile`, `fit`, `save`. The penalty is double soft orthogonality,
#
# $$\rho \left(\|U^\top U - I\|_F^2 + \|U U^\top - I\|_F^2\right),$$
#
# of each factor matrix $U$. We train the dense network, the low-rank one with the penalty ($\rho = 10^{-2}$, what
# `elrt-train` uses) and, to see what it does, the low-rank one without.


# %%
def train(model, epochs=15):
    steps = epochs * -(-len(train_images) // 64)
    schedule = keras.optimizers.schedules.CosineDecay(0.1, steps)
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    keras.utils.set_random_seed(1)
    return model.fit(
        train_images,
        train_labels,
        batch_size=64,
        epochs=epochs,
        validation_data=(test_images, test_labels),
        callbacks=[elrt.callbacks.OrthogonalityLogger()],
        verbose=0,
    )


penalty = elrt.regularizers.DoubleSoftOrthogonality(1e-2)
models = {
    "dense": dense,
    "low-rank": elrt.factorize(dense, plan, factor_regularizer=penalty),
    "without penalty": elrt.factorize(dense, plan),
}
histories = {name: train(model).history for name, model in models.items()}

# %%
for name, model in models.items():
    costs = elrt.count_costs(model)
    accuracy = histories[name]["val_accuracy"][-1]
    print(f"{name:16} test accuracy {accuracy:.1%}   {costs.macs:9,} MACs   {costs.params:6,} parameters")

# %% [markdown]
# Forty per cent of the MACs, and about as accurate. The differences are of a few images: one of the 360 is 0.3 points.
# `docs/results.md` has larger data sets.
#
# ## What the penalty does
#
# The error of a factor is $\|S - I\|_F / \sqrt{\Phi}$ with $S$ its smaller Gram matrix, of $\Phi \times \Phi$. All
# factors start orthonormal. The first epochs, at a high learning rate, pull them away from that; the penalty brings
# them back.

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.8), sharey=True, layout="constrained")
for axis, name in zip(axes, ["low-rank", "without penalty"]):
    elrt.plot.orthogonality(histories[name], axis=axis)
    axis.set_title(name)

# %% [markdown]
# With orthonormal factors all scales are in the core: $\|\mathcal{K}\|_F = \|\mathcal{G}\|_F$, and no channel inside
# the chain repeats another one.

# %%
for name in ("low-rank", "without penalty"):
    layer = models[name].get_layer("conv4")
    core = keras.ops.convert_to_numpy(layer.factors[1])
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    ratio = np.linalg.norm(kernel) / np.linalg.norm(core)
    print(f"{name:16} ‖K‖ / ‖G‖ = {ratio:.2f}")

# %% [markdown]
# ## The spectra
#
# Singular values of the kernels' unfoldings, relative to the largest. The low-rank layers end at their ranks (dashed);
# the dense layers, `conv1` here, go on to the full rank.

# %%
elrt.plot.spectra(models["low-rank"], layers="conv*")

# %% [markdown]
# ## What next
#
# - The same from the command line: `elrt-train --run_dir=runs/digits`.
# - [Factorise a network of keras.applications](02_factorizing_an_application.ipynb), one that is trained already.
# - [Plan ranks for a latency](03_ranks_for_a_latency.ipynb): fewer MACs are not the same fraction of time.
# - [Shrink after training](04_shrinking_after_training.ipynb).
# - [Export and quantise](05_export_and_quantization.ipynb).
