"""Changes of what all threads of a process share, such as standard error: made by the first, undone after the last."""

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator

_LOCK = threading.RLock()
_ENTERED: dict[Hashable, list] = {}  # key → [how many are inside, the ExitStack that undoes the change]


@contextlib.contextmanager
def shared(key: Hashable, make: Callable[[], contextlib.AbstractContextManager]) -> Iterator[None]:
    """A context that several threads are in at once: the first one enters `make()`, and the last one leaves it.

    Args:
        key: what the change is about, equal for all that share it.
        make: returns the context that makes the change and undoes it.
    """
    with _LOCK:
        if key not in _ENTERED:
            stack = contextlib.ExitStack()
            stack.enter_context(make())
            _ENTERED[key] = [0, stack]
        entry = _ENTERED[key]
        entry[0] += 1
    try:
        yield
    finally:
        with _LOCK:
            entry[0] -= 1
            if not entry[0]:
                del _ENTERED[key]
                entry[1].close()
