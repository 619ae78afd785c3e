"""Kept connections with the real uvicorn that both engines stand on. The clock is the test's own, the sockets are real."""

import asyncio
import socket
import threading
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from finetune_runtime.contract.config import DRAINING
from finetune_runtime.serve.drain import MAX_AGE, Drain, Receive, Send
from tests.runtime.support import free_port, wait_for

PIECES = 5


class Pod:
    """Streams answers; the last piece of one waits until it may go on."""

    def __init__(self) -> None:
        self.now, self.port, self.may_end = 0.0, free_port(), threading.Event()
        self.may_end.set()
        app = Drain(self.answer, now=lambda: self.now)
        self.server = uvicorn.Server(uvicorn.Config(app, port=self.port, lifespan="off", log_level="error"))

    async def answer(self, _scope: MutableMapping[str, Any], _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for piece in range(PIECES):
            while piece and not self.may_end.is_set():
                await asyncio.sleep(0.01)
            await send({"type": "http.response.body", "body": b"piece ", "more_body": piece < PIECES - 1})


class Client:
    """One connection, which is never opened again."""

    def __init__(self, pod: Pod) -> None:
        self.socket, self.seen = socket.create_connection(("127.0.0.1", pod.port), timeout=10), b""

    def begin(self) -> str:
        """Ask; the head of the answer once it is there."""
        self.socket.sendall(b"GET / HTTP/1.1\r\nHost: pod\r\n\r\n")
        return self._until(b"\r\n\r\n").decode()

    def rest(self) -> str:
        """The body to its end."""
        return "".join(line for line in self._until(b"0\r\n\r\n").decode().split("\r\n") if line == "piece ")

    def ends(self) -> bool:
        """Whether the server says that this answer is the last one, and closes the connection after it."""
        head = self.begin()
        assert self.rest() == "piece " * PIECES
        return "connection: close\r\n" in head and self.closed()

    def closed(self) -> bool:
        return not self.seen and self.socket.recv(1) == b""

    def _until(self, end: bytes) -> bytes:
        while end not in self.seen:
            got = self.socket.recv(65536)
            assert got, f"cut off after {self.seen!r}"
            self.seen += got
        found, _, self.seen = self.seen.partition(end)
        return found + end


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pod]:
    monkeypatch.setenv("FINETUNE_SCRATCH", str(tmp_path))
    pod = Pod()
    thread = threading.Thread(target=pod.server.run)
    thread.start()
    wait_for("uvicorn's start", lambda: pod.server.started or not thread.is_alive())
    yield pod
    pod.server.should_exit = True
    thread.join()


def test_a_connection_is_closed_after_a_whole_answer_once_it_has_had_its_time(pod: Pod) -> None:
    old, young = Client(pod), Client(pod)
    assert not old.ends()
    pod.now = MAX_AGE - 1
    assert not old.ends()
    assert not young.ends()
    pod.now = MAX_AGE
    assert old.ends()
    assert not young.ends()


def test_what_is_under_way_when_the_drain_begins_is_answered_and_the_next_answer_is_the_last(pod: Pod, tmp_path: Path) -> None:
    busy, idle = Client(pod), Client(pod)
    assert not idle.ends()
    pod.may_end.clear()
    assert "connection: close" not in busy.begin()
    (tmp_path / DRAINING).touch()
    pod.now = 10 * MAX_AGE
    pod.may_end.set()
    assert busy.rest() == "piece " * PIECES
    assert busy.ends()
    assert idle.ends()
    assert Client(pod).ends(), "a proxy has not heard of it yet"
