"""A time limit ends what takes too long, and leaves nothing behind."""

import re
import signal
import socket
import time
from collections.abc import Callable

import pytest

from finetune_runtime.evaluate.time_limit import time_limit


def wait_for_a_socket() -> None:
    first, second = socket.socketpair()
    with first, second:
        first.recv(1)


def spin() -> None:
    while True:
        pass


ENDLESS: dict[str, Callable[[], object]] = {
    "a wait for a socket": wait_for_a_socket,
    "a regular expression": lambda: re.search(r"(a+)+$", "a" * 60 + "!"),
    "Python": spin,
    "sleep": lambda: time.sleep(60),
}


@pytest.mark.parametrize("work", ENDLESS.values(), ids=ENDLESS)
def test_it_ends(work: Callable[[], object]) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError), time_limit(0.1):
        work()
    assert 0.1 <= time.monotonic() - started < 10


def test_what_is_quick_enough_is_let_be_and_the_alarm_before_it_goes_on() -> None:
    rung: list[int] = []
    handler, timer = signal.signal(signal.SIGALRM, lambda number, _: rung.append(number)), signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with time_limit(0.2):
            assert sum(range(10)) == 45
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.3
        time.sleep(0.5)
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)
    assert rung == [signal.SIGALRM]
