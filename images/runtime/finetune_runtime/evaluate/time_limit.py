"""Ends a computation that takes too long. For the main thread, as all signals of Python are."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError inside of the block after `seconds`, wherever it is: waiting for a socket, or in the middle of matching a regular expression."""
    handler, timer = signal.signal(signal.SIGALRM, _end), signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def _end(*_: object) -> NoReturn:
    raise TimeoutError
