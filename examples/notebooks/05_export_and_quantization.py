# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Export and quantise
#
# From a low-rank Keras model to a file for a phone. A low-rank layer becomes plain convolutions in the file, so nothing
# of this package is needed on the device. Quantisation and low rank add up: one makes the numbers shorter, the other
# makes fewer of them.
#
# This needs the TensorFlow backend and the `litert` extra (`pip install elrt_keras[litert]`).

# %%
# %matplotlib inline
import dataclasses
import os
import tempfile

import keras
import matplotlib.pyplot as plt
import numpy as np
from ai_edge_litert.interpreter import Interpreter
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
    model = keras.Sequential([keras.Input((8, 8, 1), name="image"), keras.layers.Rescaling(1 / 127.5, -1)])
    for number, (filters, strides) in enumerate([(64, 1), (128, 1), (128, 2), (128, 1)], start=1):
        name = f"conv{number}"
        model.add(keras.layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False, name=name))
        model.add(keras.layers.BatchNormalization(momentum=0.9))
        model.add(keras.layers.ReLU())
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(10, activation="softmax", name="classifier"))
    return model


def train(model, epochs=5):
    steps = epochs * -(-len(train_images) // 64)
    schedule = keras.optimizers.schedules.CosineDecay(0.1, steps)
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    keras.utils.set_random_seed(1)
    model.fit(train_images, train_labels, batch_size=64, epochs=epochs, verbose=0)
    return model


dense = build()
low_rank = elrt.factorize(
    dense,
    elrt.plan_ranks(dense, max_macs=0.35),
    factor_regularizer=elrt.regularizers.DoubleSoftOrthogonality(1e-2),
)
models = {"dense": train(dense), "low-rank": train(low_rank)}

# %% [markdown]
# ## Four kinds of file
#
# | kind | weights | activations |
# |---|---|---|
# | `None` (float32) | float32 | float32 |
# | `"float16"` | float16 | float32 |
# | `"dynamic_int8"` | int8 per channel | quantised while it runs |
# | `"int8"` | int8 per channel | int8, ranges measured on some hundred training images |
#
# An int8 weight stands for $w \approx s \cdot q$ with $q \in [-127, 127]$ and one scale $s$ per output channel.
#
# Every file is run by the interpreter and compared with Keras before it appears: a file that is too far off, or too
# much less accurate on `evaluation_data`, is an error and not a file.

# %%
folder = tempfile.TemporaryDirectory()
reports = {}
for name, model in models.items():
    for kind in (None, "float16", "dynamic_int8", "int8"):
        title = f"{name}, {kind or 'float32'}"
        reports[title] = elrt.export.to_litert(
            model,
            os.path.join(folder.name, f"{name}_{kind or 'float32'}.tflite"),
            kind,
            representative_data=train_images,
            evaluation_data=(test_images, test_labels),
            class_names=[str(digit) for digit in range(10)],
        )
for title, report in reports.items():
    print(f"{title:24} {report.size_bytes:9,} bytes   test accuracy {report.accuracy:.1%}")

# %%
figure, axis = plt.subplots(figsize=(4.8, 2.6), layout="constrained")
sizes = [report.size_bytes / 1000 for report in reports.values()]
bars = axis.barh(list(reports), sizes, color=["C0" if "dense" in title else "C1" for title in reports])
axis.bar_label(bars, fmt="%.0f", padding=3, fontsize=7.5)
axis.set_xlabel("size of the file (kB)")
axis.margins(x=0.12)
axis.tick_params(labelsize=7.5)
axis.invert_yaxis()

# %% [markdown]
# ## What a report says
#
# How far the outputs are from Keras', how often both agree on the top class, both accuracies, and the operators in the
# file: built-in ones only. Batch-norm is folded into the convolutions.

# %%
for entry, value in dataclasses.asdict(reports["low-rank, int8"]).items():
    if entry != "path":
        print(f"{entry}: {value}")

# %% [markdown]
# ## Latency
#
# All files take turns on one thread. The accuracy is that of the files, not of the Keras models.

# %%
results = elrt.export.benchmark_litert([report.path for report in reports.values()], runs=200)
rows = [
    {"name": title, "accuracy": report.accuracy, "median_ms": result.median_ms, "threads": result.threads}
    for (title, report), result in zip(reports.items(), results)
]
elrt.plot.tradeoff(rows)

# %% [markdown]
# ## On the device
#
# Any LiteRT runtime takes the file; its one signature has the input `image` and the output `scores`, and its metadata
# the class names. In Python:

# %%
classify = Interpreter(reports["low-rank, int8"].path).get_signature_runner()
scores = classify(image=test_images[:1])["scores"][0]
print(f"digit {test_labels[0]}, recognised as {np.argmax(scores)} with a score of {np.max(scores):.2f}")

# %% [markdown]
# Where int8 costs too much accuracy, `elrt.export.quantization_aware(model)` gives a model to fine-tune with
# quantisation in the loop, by tensorflow-model-optimization; pruning and clustering work alike. `docs/deploy.md` has
# them, and `elrt-export` does all of this notebook from the command line.
