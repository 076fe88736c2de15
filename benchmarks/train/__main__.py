from absl import app

from benchmarks.train import driver

driver.define()
app.run(driver.main)
