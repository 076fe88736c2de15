"""Settings of the whole suite."""

import os

import hypothesis

# Shapes differ from example to example, and backends compile for each: few examples, no time limit on one of them.
hypothesis.settings.register_profile("elrt", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("elrt")

# On JAX most of the suite's time is XLA's, which compiles every shape of every test: without optimising it takes half.
# `common.random_examples` draws fewer there for the same reason.
if os.environ.get("KERAS_BACKEND") == "jax":
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
