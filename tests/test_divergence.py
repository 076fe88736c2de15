"""A warning for a loss that grows without becoming infinite: once, with the remedy."""

import pytest

from elrt_keras.launch.config import TrainConfig
from elrt_keras.launch.faults import DivergenceWarning

pytestmark = pytest.mark.tensorflow  # the same on every backend

CONFIG = TrainConfig(learning_rate=0.5)


def epochs(caplog, *losses):
    """Returns the warnings after epochs with these losses; guessing among 10 classes has a loss of 2.30."""
    caplog.clear()
    callback = DivergenceWarning(CONFIG, 10)
    with caplog.at_level("WARNING"):
        for epoch, logs in enumerate(losses):
            callback.on_epoch_end(epoch, logs if isinstance(logs, dict) else {"loss": logs})
    return [record.getMessage() for record in caplog.records]


def test_a_loss_above_its_best_and_above_guessing_is_told_once(caplog):
    (told,) = epochs(caplog, 2.1, 1.8, 4.7, 9.0)
    assert told == (
        "The training loss has risen from 1.80 to 4.70 by epoch 3; guessing among 10 classes has 2.30. A lower "
        "--learning_rate than 0.5 or a longer --lr_warmup_epochs may help"
    )


@pytest.mark.parametrize(
    "losses",
    [
        (9.0, 4.0, 2.0),  # as bad from the start: nothing has grown
        (2.1, 1.8, 4.5),  # little worse than guessing
        (4.0, 3.5, 5.0),  # little worse than before
    ],
)
def test_other_losses_are_not(caplog, losses):
    assert epochs(caplog, *losses) == []


def test_penalties_do_not_count(caplog):
    assert epochs(caplog, {"loss": 3.0, "cross_entropy": 2.0}, {"loss": 30.0, "cross_entropy": 2.0}) == []
    (told,) = epochs(caplog, {"loss": 3.0, "cross_entropy": 2.0}, {"loss": 3.0, "cross_entropy": 5.0})
    assert "from 2.00 to 5.00" in told
