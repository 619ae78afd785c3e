"""The training process, or one for each GPU: each in a group of its own, bound to our life, read by threads, their end announced last."""

import logging
import os
import re
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread

from .events import Event

log = logging.getLogger(__name__)

_TAIL_LINES = 400
_PROGRESS_BAR = re.compile(r"\d+%\|")


@dataclass(frozen=True)
class Ended:
    """All processes are gone and all events have been delivered. The code of the one that failed first; negative: the signal that ended it."""

    return_code: int


class Child:
    """One process, or one for each GPU that live and die together.

    Hands the events of the callback, and finally Ended, to `deliver`, from threads of its own.
    """

    def __init__(
        self,
        command: Sequence[str],
        environments: Callable[[int], Sequence[Mapping[str, str]]],
        directory: Path,
        deliver: Callable[[Event | Ended], None],
    ) -> None:
        """`environments` makes the environment of each process, for the descriptor on which the callback of the first one writes."""
        self._deliver = deliver
        reader, writer = os.pipe()
        # setpriv makes the kernel end the child when we die, however we die: it must never train on without its supervisor.
        self._processes = [
            subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=environment,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[writer],
                process_group=0,
            )
            for environment in environments(writer)
        ]
        os.close(writer)
        self._tails: list[deque[str]] = [deque(maxlen=_TAIL_LINES) for _ in self._processes]
        self._lock = Lock()
        self._running = set(range(len(self._processes)))
        self._failed: tuple[int, int] | None = None  # which process was the first to end badly, and its return code
        outputs = [
            Thread(target=self._read_output, args=(process.stdout, tail), daemon=True) for process, tail in zip(self._processes, self._tails, strict=True)
        ]
        readers = [*outputs, Thread(target=self._read_events, args=(reader,), daemon=True)]
        for thread in (*readers, *(Thread(target=self._wait, args=(number, readers), daemon=True) for number in range(len(self._processes)))):
            thread.start()

    @property
    def tail(self) -> list[str]:
        """What the processes printed last, the one that failed first at the end: what the others say of their lost connections explains nothing."""
        order = sorted(range(len(self._tails)), key=lambda number: self._failed is not None and number == self._failed[0])
        return [line for number in order for line in tuple(self._tails[number])]

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the processes themselves; they may be gone already."""
        with self._lock:
            for running in self._running:
                os.kill(self._processes[running].pid, number)

    def kill(self) -> None:
        """Ends the processes and everything that they started."""
        with self._lock:
            self._kill()

    def _kill(self) -> None:
        for running in self._running:
            os.killpg(self._processes[running].pid, signal.SIGKILL)

    def _wait(self, number: int, readers: list[Thread]) -> None:
        process = self._processes[number]
        # While it is not reaped its number cannot be given to another process, so this kills only what it left behind: that would
        # hold the pipes open.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            os.killpg(process.pid, signal.SIGKILL)
            return_code = process.wait()
            self._running.discard(number)
            if return_code and not self._failed:
                self._failed = (number, return_code)
                self._kill()  # without it the others would wait in a sum that never comes
            if self._running:
                return
        for reader in readers:
            reader.join()
        self._deliver(Ended(self._failed[1] if self._failed else 0))

    def _read_output(self, output: Iterable[bytes], tail: deque[str]) -> None:
        for raw in output:
            for line in re.split(r"[\r\n]+", raw.decode(errors="replace")):
                if line.strip() and not _PROGRESS_BAR.search(line):
                    tail.append(line)
                    print(line, flush=True)  # noqa: T201  the pod's log is the place for what ms-swift says

    def _read_events(self, reader: int) -> None:
        with os.fdopen(reader) as lines:
            for line in lines:
                try:
                    self._deliver(Event.parse(line))
                except (ValueError, TypeError, KeyError) as error:
                    log.warning("ignoring an event that cannot be read: %r", error)
