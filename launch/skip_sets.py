"""Remedy for a slip of Keras: the set of attributes that a save skips is made anew by each save and each load.

`keras.src.saving.saving_lib.get_attr_skipset` files the set under one name and asks for it under another. To make the
one of optimizers it makes an optimizer, whose variables TensorFlow does not free: 70 KB for each checkpoint. No issue
is known to us upstream; seen in Keras 3.15. `tests/test_checkpoints.py` fails on the day Keras keeps the sets: then
this file can go.
"""

import threading


def keep():
    """Has Keras find the set of optimizers that was made first; changes nothing where Keras keeps it itself.

    The set is made in a thread of its own, outside any scope of a strategy: there each variable is one more exchange
    between workers, which all of them would have to make at the same point.
    """
    try:
        from keras.src.backend.common import global_state
        from keras.src.saving import saving_lib
    except ImportError:  # a later Keras with other rooms
        return
    asked_for = "saving_attr_skiplist_Optimizer"
    if global_state.get_global_attribute(asked_for) is not None:
        return
    made = []
    maker = threading.Thread(target=lambda: made.append(saving_lib.get_attr_skipset("Optimizer")))
    maker.start()
    maker.join()
    global_state.set_global_attribute(asked_for, made[0])
