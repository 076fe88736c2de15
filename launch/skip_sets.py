"""Remedy for a bug of Keras: each save and each load rebuilds the set of attributes that a save skips.

`keras.src.saving.saving_lib.get_attr_skipset` stores the set under one name and looks it up under another. To build the
set of optimizers, it makes an optimizer whose variables TensorFlow does not free: 70 KB for each checkpoint. The bug is
in Keras 3.15; no upstream issue is known. Once Keras keeps the sets, `tests/test_checkpoints.py` fails, and this module
can be removed.
"""

import threading


def keep():
    """Makes Keras reuse its first set of optimizers; changes nothing if Keras keeps the set itself.

    A separate thread builds the set, outside the scope of any strategy. Inside such a scope, each new variable is an
    exchange between workers, and all workers would have to make it at the same point.
    """
    try:
        from keras.src.backend.common import global_state
        from keras.src.saving import saving_lib
    except ImportError:  # a later Keras with other modules
        return
    asked_for = "saving_attr_skiplist_Optimizer"
    if global_state.get_global_attribute(asked_for) is not None:
        return
    skip_sets = []
    maker = threading.Thread(target=lambda: skip_sets.append(saving_lib.get_attr_skipset("Optimizer")))
    maker.start()
    maker.join()
    global_state.set_global_attribute(asked_for, skip_sets[0])
