"""Parts of the handling of faults; `tests/integration/test_faults.py` causes real faults in processes."""

import keras
import pytest

from elrt_keras.launch import faults, modeling
from elrt_keras.launch.checkpoints import Progress
from elrt_keras.launch.config import TrainConfig

pytestmark = pytest.mark.tensorflow


def test_sigterm_that_came_before_ends_work_that_cannot_be_divided():
    request = faults.StopRequest()
    request.note()
    began = []
    with pytest.raises(faults.Stopped, match="told to stop"), request.at_once():
        began.append(True)
    assert not began


def test_a_loss_that_is_no_number_is_told_with_its_step_also_in_an_epoch_that_goes_on(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    modeling.compile_model(model, TrainConfig(), 4)
    model.optimizer.build(model.trainable_variables)
    guard = faults.NonFiniteGuard(str(tmp_path), Progress(epoch=1, step=2))
    guard.set_model(model)
    guard.on_epoch_begin(1)
    guard.on_train_batch_end(0, {"loss": 1.0})
    guard.on_train_batch_end(1, {"loss": float("nan")})
    with pytest.raises(faults.NonFinite, match="The loss is nan at step 4 of epoch 2"):
        guard.on_train_batch_end(2, {"loss": 1.0})
