"""Signal handlers that belong to one process."""

import os
import signal
from collections.abc import Callable
from types import FrameType


def handle_here_only(number: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> None:
    """Installs a handler of this process; children that it forks get the default action.

    With the handler, workers of a data loader would take the SIGTERM that is to end them for one that asks the training to stop, and their parent would
    wait for them in vain.
    """
    signal.signal(number, handler)

    def default() -> None:
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})

    # A signal that comes between the fork and the default action waits for that; Python would forget it.
    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {number}),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, {number}),
        after_in_child=default,
    )
