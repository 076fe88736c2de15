# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ranks for a latency
#
# Half of the multiply-accumulates (MACs) are not half of the time. A convolution that became three reads and writes
# more, and ranks that fill no SIMD lane cost as much as the next multiple. So where time is what counts, it should be
# measured.
#
# `plan_ranks(max_latency=0.5)` times every layer of the network on LiteRT, on this processor, dense and at a grid of
# ranks, and chooses ranks that meet the time budget. It needs the TensorFlow backend and the `litert` extra (`pip
# install elrt_keras[litert]`). Your numbers will differ from these: they are those of your processor.

# %%
# %matplotlib inline
import os
import tempfile

import keras
import matplotlib.pyplot as plt

import elrt_keras as elrt

folder = tempfile.TemporaryDirectory()  # for the LiteRT files; gone at the end

# %% [markdown]
# ## Time over MACs, one layer
#
# A 3×3 convolution of 64 channels at 16×16 positions, as Tucker-2 chains of ranks $(r, r)$ with $r = 8, 16, \dots, 64$.
# In MACs the chain is cheaper while
#
# $$2 \cdot 64\, r + 9 r^2 < 9 \cdot 64^2.$$


# %%
def one_layer(rank=None):
    keras.utils.set_random_seed(0)
    arguments = {"filters": 64, "kernel_size": 3, "padding": "same", "use_bias": False}
    layer = (
        keras.layers.Conv2D(**arguments)
        if rank is None
        else elrt.layers.Tucker2Conv2D(**arguments, ranks=rank, execution="chain")
    )
    return keras.Sequential([keras.Input((16, 16, 64), name="image"), layer])


ranks = [None, *range(8, 65, 8)]
reports = [elrt.export.to_litert(one_layer(rank), os.path.join(folder.name, f"layer_{rank}.tflite")) for rank in ranks]
times = [result.median_ms for result in elrt.export.benchmark_litert([r.path for r in reports], runs=200)]
for rank, report, time in zip(ranks, reports, times):
    name = "dense" if rank is None else f"rank {rank}"
    print(f"{name:8} {report.macs / reports[0].macs:5.0%} of the MACs {time / times[0]:5.0%} of the time")

# %%
figure, axis = plt.subplots(figsize=(4.8, 3.2), layout="constrained")
macs = [100 * report.macs / reports[0].macs for report in reports[1:]]
axis.plot(macs, [100 * time / times[0] for time in times[1:]], "o-", label="measured")
axis.plot([0, 120], [0, 120], color="gray", linestyle="dashed", label="time = MACs")
axis.axhline(100, color="gray", linewidth=0.8)
for rank, x, time in zip(ranks[1:], macs, times[1:]):
    axis.annotate(rank, (x, 100 * time / times[0]), (4, -9), textcoords="offset points", fontsize=7.5)
axis.set(xlabel="MACs (% of the dense layer)", ylabel="time (% of the dense layer)")
axis.legend()
axis.grid(alpha=0.3)

# %% [markdown]
# ## A network, planned by MACs and planned by time
#
# Planning by time takes some seconds the first time. Measured times are kept in `~/.cache/elrt_keras`
# (`$ELRT_CACHE_DIR`), so that further budgets, and further networks with the same layers, take none.


# %%
def build():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((32, 32, 3), name="image"), keras.layers.Rescaling(1 / 127.5, -1)])
    for number, (filters, strides) in enumerate([(32, 1), (32, 1), (64, 2), (64, 1)], start=1):
        name = f"conv{number}"
        model.add(keras.layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False, name=name))
        model.add(keras.layers.BatchNormalization())
        model.add(keras.layers.ReLU())
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(10, activation="softmax", name="classifier"))
    return model


dense = build()
budgets = (0.75, 0.6)
plans = {f"max_macs={part}": elrt.plan_ranks(dense, max_macs=part) for part in budgets}
plans |= {f"max_latency={part}": elrt.plan_ranks(dense, max_latency=part) for part in budgets}
print(plans["max_latency=0.6"])

# %% [markdown]
# The last columns are the measured times of each layer, dense and at its planned ranks. Ranks at which a layer is not
# faster than dense are never taken, however many MACs they save.

# %%
elrt.plot.rank_plan(plans["max_latency=0.6"])

# %% [markdown]
# ## Does it hold?
#
# The prediction is a sum over layers timed alone. So export the whole networks and time them, in turns: one inference
# of each file in every round, so that other load on the machine hits all alike.

# %%
models = {"dense": dense, **{name: elrt.factorize(dense, plan) for name, plan in plans.items()}}
files = [elrt.export.to_litert(model, os.path.join(folder.name, f"{name}.tflite")) for name, model in models.items()]
results = elrt.export.benchmark_litert([file.path for file in files], runs=200)
measured = {name: result.median_ms / results[0].median_ms for name, result in zip(models, results)}
for name, file in zip(models, files):
    print(f"{name:18} MACs {file.macs / files[0].macs:4.0%}   measured time {measured[name]:4.0%}")

# %%
figure, axis = plt.subplots(figsize=(4.8, 2.2), layout="constrained")
for shift, part in zip((-0.17, 0.17), ("MACs", "time")):
    values = [file.macs / files[0].macs for file in files] if part == "MACs" else list(measured.values())
    positions = [index + shift for index in range(len(models))]
    axis.barh(positions, [100 * value for value in values], 0.32, label=part, color="gray" if part == "MACs" else "C0")
axis.set_yticks(range(len(models)), models)
axis.set_xlabel("% of the dense network")
axis.legend(fontsize=7.5)
axis.invert_yaxis()

# %% [markdown]
# The plans by MACs meet their budgets in MACs and miss them in time; the plans by time spend the MACs where they are
# fast.
#
# These networks have random weights: for training from scratch that is what there is. For a trained network the same
# call reads its spectra as well and loses least of them in the given time.
#
# Plan on a processor like the target's. `elrt-benchmark litert` prints the commands that time the files on an Android
# device.
