"""The command `python -m benchmarks.train`."""

from absl import app

from benchmarks.train import driver

driver.define()
app.run(driver.main)
