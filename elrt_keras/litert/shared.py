"""Changes of state that all threads share, such as standard error: the first thread makes, the last undoes them."""

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator

_LOCK = threading.RLock()
_ENTERED: dict[Hashable, list] = {}  # key → [number of threads inside, the ExitStack that undoes the change]


@contextlib.contextmanager
def shared(key: Hashable, make: Callable[[], contextlib.AbstractContextManager]) -> Iterator[None]:
    """Context that several threads can be in at once: the first thread enters `make()`, the last one leaves it.

    Args:
        key: identifies the change; equal for all threads that share it.
        make: returns the context that makes and undoes the change.
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
