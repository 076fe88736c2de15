"""Remedy for https://github.com/keras-team/keras/issues/20585: `fit` under `MultiWorkerMirroredStrategy`.

Two functions of the TensorFlow trainer of Keras 3 fail with several workers. `_maybe_symbolic_build` eagerly reduces a
batch that is spread over workers, which is impossible. The part of one replica is enough: it has the shapes and types.
`reduce_per_replica` takes the mean of scalars over an axis that scalars do not have. Only this module replaces the two
functions. `tests/integration/test_distribution.py` runs two workers without the remedy; once that run succeeds, the
test fails, and this module can be removed.
"""

import keras
from absl import logging

# Last version known to fail. Later versions get the remedy too, with a warning; it does no harm if it is not needed.
LAST_SEEN_TO_FAIL = (3, 15)


def mend_fit():
    """Replaces the two functions; a second call changes nothing.

    Raises:
        ValueError: if this version of Keras lacks one of them.
    """
    import tensorflow as tf
    from keras.src.backend.tensorflow import trainer

    names = {"reduce_per_replica": trainer, "_maybe_symbolic_build": trainer.TensorFlowTrainer}
    missing = [name for name, owner in names.items() if not hasattr(owner, name)]
    known = f"training on several workers is known to work up to Keras {'.'.join(map(str, LAST_SEEN_TO_FAIL))}"
    if missing:
        raise ValueError(f"Expected a Keras with {missing}; {known}. Received: Keras {keras.__version__}")
    if getattr(trainer.reduce_per_replica, "mended", False):
        return
    if tuple(map(int, keras.__version__.split(".")[:2])) > LAST_SEEN_TO_FAIL:
        logging.warning("%s; this is %s", known, keras.__version__)
    reduce_per_replica = trainer.reduce_per_replica

    def reduced(values, strategy, reduction):
        if reduction not in ("auto", "mean") or not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return reduce_per_replica(values, strategy, reduction)
        return keras.tree.map_structure(lambda value: strategy.reduce("MEAN", value, axis=None), values)

    def symbolic_build(model, iterator=None, data_batch=None):
        strategy = model.distribute_strategy
        if iterator is not None:
            batch = next(next(iter(iterator))[2])
            data_batch = keras.tree.map_structure(lambda v: strategy.experimental_local_results(v)[0], batch)
        with strategy.scope():
            model._symbolic_build(data_batch=data_batch)

    reduced.mended = True
    trainer.reduce_per_replica = reduced
    trainer.TensorFlowTrainer._maybe_symbolic_build = symbolic_build
