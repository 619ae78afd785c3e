"""Which answer is the last one of its connection: the middleware as an ASGI server calls it."""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.config import DRAINING
from finetune_runtime.serve.drain import MAX_AGE, Drain, Message, Receive, Send

ALICE, BOB = ("10.0.0.1", 40001), ("10.0.0.1", 40002)


class Server:
    """Answers in pieces. `seconds`: how long an answer takes; `headers`: what it says besides; the clock stands still between requests."""

    def __init__(self) -> None:
        self.now, self.seconds = 1000.0, 0.0
        self.headers: list[tuple[bytes, bytes]] = []
        self.drain = Drain(self.answer, now=lambda: self.now)

    async def answer(self, _scope: MutableMapping[str, Any], _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream"), *self.headers]})
        self.now += self.seconds
        for piece in (b"one ", b"two"):
            await send({"type": "http.response.body", "body": piece, "more_body": piece != b"two"})

    async def ask(self, client: tuple[str, int] | None = ALICE, version: str = "1.1") -> list[Message]:
        told: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request"}

        async def send(message: Message) -> None:
            told.append(message)

        await self.drain({"type": "http", "http_version": version, "path": "/v1/models", "client": client}, receive, send)
        return told

    async def closes(self, client: tuple[str, int] | None = ALICE, version: str = "1.1") -> bool:
        """Whether the answer is the last one of its connection; it is whole in any case."""
        start, *body = await self.ask(client, version)
        assert b"".join(message["body"] for message in body) == b"one two"
        assert start["headers"][0] == (b"content-type", b"text/event-stream")
        return (b"connection", b"close") in start["headers"]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("FINETUNE_SCRATCH", str(tmp_path))
    return Server()


async def test_a_connection_is_kept_until_it_has_had_its_time(server: Server) -> None:
    closed = []
    for _ in range(int(MAX_AGE) + 1):
        closed.append(await server.closes())
        server.now += 1
    assert closed == [False] * int(MAX_AGE) + [True]
    assert not await server.closes(), "the next one from that port is another one"


async def test_every_connection_has_its_own_time(server: Server) -> None:
    assert not await server.closes(ALICE)
    server.now += MAX_AGE - 1
    assert not await server.closes(BOB)
    assert not await server.closes(ALICE)
    server.now += 1
    assert await server.closes(ALICE)
    assert not await server.closes(BOB)


async def test_an_answer_that_takes_longer_is_not_cut_and_the_next_one_is_the_last(server: Server) -> None:
    server.seconds = 4 * MAX_AGE
    assert not await server.closes()
    assert await server.closes()


async def test_a_long_answer_keeps_its_connections_time_whatever_others_ask_meanwhile(server: Server) -> None:
    begun, over = server.answer, []

    async def long(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await begun(scope, receive, send)
        if scope["client"] == ALICE:
            server.now += 4 * MAX_AGE
            over.append(await server.closes(BOB))

    server.drain = Drain(long, now=lambda: server.now)
    assert not await server.closes(ALICE)
    assert over == [False]
    assert await server.closes(ALICE)


async def test_while_the_pod_drains_every_answer_is_the_last_one(server: Server, tmp_path: Path) -> None:
    assert not await server.closes()
    (tmp_path / DRAINING).touch()
    assert await server.closes()
    assert await server.closes(BOB)
    (tmp_path / DRAINING).unlink()
    assert not await server.closes()


async def test_what_the_engine_says_of_the_connection_is_not_said_twice(server: Server, tmp_path: Path) -> None:
    server.headers = [(b"Connection", b"keep-alive"), (b"x-request-id", b"7")]
    (tmp_path / DRAINING).touch()
    start, *_ = await server.ask()
    assert start["headers"] == [(b"content-type", b"text/event-stream"), (b"x-request-id", b"7"), (b"connection", b"close")]


async def test_a_client_without_an_address_is_told_of_the_drain_only(server: Server, tmp_path: Path) -> None:
    assert not await server.closes(None)
    server.now += MAX_AGE
    assert not await server.closes(None)
    (tmp_path / DRAINING).touch()
    assert await server.closes(None)


async def test_http_2_has_no_such_header(server: Server, tmp_path: Path) -> None:
    (tmp_path / DRAINING).touch()
    assert not await server.closes(version="2")


async def test_what_is_no_request_passes_untouched(server: Server) -> None:
    seen = []

    async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        seen.append((scope, receive, send))

    async def nothing(*_: Any) -> Any:
        return {}

    scope = {"type": "lifespan"}
    await Drain(app)(scope, nothing, nothing)
    assert seen == [(scope, nothing, nothing)]


async def test_connections_that_are_not_used_any_more_are_forgotten(server: Server) -> None:
    for port in range(1000):
        await server.closes(("10.0.0.2", port))
        server.now += 1
    assert len(server.drain._idle) <= MAX_AGE + 1


async def test_an_engine_that_fails_leaves_its_connection_the_time_it_had(server: Server) -> None:
    async def broken(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        raise RuntimeError

    well, server.drain._app = server.drain._app, broken
    with pytest.raises(RuntimeError):
        await server.ask()
    server.drain._app = well
    server.now += MAX_AGE - 1
    assert not await server.closes()
    server.now += 1
    assert await server.closes()
