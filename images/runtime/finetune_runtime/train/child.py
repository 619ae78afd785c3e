"""The training process: started in its own group, bound to our life, read by threads, its end announced last."""

import logging
import os
import re
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from .events import Event

log = logging.getLogger(__name__)

_TAIL_LINES = 400
_PROGRESS_BAR = re.compile(r"\d+%\|")


@dataclass(frozen=True)
class Ended:
    """The process is gone and all its events have been delivered. Negative: the signal that ended it."""

    return_code: int


class Child:
    """Hands the events of the callback, and finally Ended, to `deliver`, from threads of its own."""

    def __init__(
        self, command: Sequence[str], environment: Callable[[int], Mapping[str, str]], directory: Path, deliver: Callable[[Event | Ended], None]
    ) -> None:
        """`environment` makes the child's environment for the descriptor on which the callback has to write."""
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._deliver = deliver
        reader, writer = os.pipe()
        # setpriv makes the kernel end the child when we die, however we die: it must never train on without its supervisor.
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            env=environment(writer),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[writer],
            process_group=0,
        )
        os.close(writer)
        threads = [Thread(target=self._read_output, args=(self._process.stdout,), daemon=True), Thread(target=self._read_events, args=(reader,), daemon=True)]
        for thread in threads:
            thread.start()
        Thread(target=self._wait, args=(threads,), daemon=True).start()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process itself; it may be gone already."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Ends the process and everything that it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def _wait(self, readers: list[Thread]) -> None:
        # While it is not reaped its number cannot be given to another process, so this kills only what it left behind: that would
        # hold the pipes open.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        os.killpg(self._process.pid, signal.SIGKILL)
        return_code = self._process.wait()
        for reader in readers:
            reader.join()
        self._deliver(Ended(return_code))

    def _read_output(self, output: Iterable[bytes]) -> None:
        for raw in output:
            for line in re.split(r"[\r\n]+", raw.decode(errors="replace")):
                if line.strip() and not _PROGRESS_BAR.search(line):
                    self.tail.append(line)
                    print(line, flush=True)  # noqa: T201  the pod's log is the place for what ms-swift says

    def _read_events(self, reader: int) -> None:
        with os.fdopen(reader) as lines:
            for line in lines:
                try:
                    self._deliver(Event.parse(line))
                except (ValueError, TypeError, KeyError) as error:
                    log.warning("ignoring an event that cannot be read: %r", error)
