"""The command `python -m benchmarks.train`."""

from absl import app, flags

from benchmarks.train import driver

__doc__ = driver.__doc__  # which --help shows, with the flags
driver.define()
flags.adopt_module_key_flags(driver)
app.run(driver.main)
