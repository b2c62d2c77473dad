"""Ctrl-C and SIGTERM during work that should not be cut off at any place."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def first_signal(deliver: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Passes the first Ctrl-C or SIGTERM to a function instead; a second one acts as before.

    Signals that are ignored stay ignored, as under nohup. Outside the main thread, which alone may set
    handlers, nothing changes.

    Args:
        deliver: Called inside the handler, between any two instructions of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    previous = {number: one for number, one in handlers.items() if one not in (None, signal.SIG_IGN)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def first(number: int, _: object) -> None:
        restore()
        deliver(signal.Signals(number))

    for number in previous:
        signal.signal(number, first)
    try:
        yield
    finally:
        restore()
