"""Settings of the whole suite."""

import hypothesis

# Shapes differ from example to example, and backends compile for each: few examples, no time limit on one of them.
hypothesis.settings.register_profile("elrt", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("elrt")
