"""Connections that clients keep open follow the traffic. ASGI middleware, in the process of either engine.

A Service that moves leads new connections elsewhere; one that is open stays with its pod as long as both sides keep it. So an answer says
`Connection: close` where it has to be the last one of its connection: while the pod drains, and where the connection has had its time, as
gRPC's MAX_CONNECTION_AGE has it. uvicorn closes after the whole answer, and clients connect anew for the next request; nothing is cut off.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from finetune_runtime.contract.config import DRAINING, SCRATCH_DIR

# Seconds after which a connection has had its time: well within the strategy's watchSeconds, so that the pods it leads to are still there.
MAX_AGE = 15.0

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


def marker() -> Path:
    """File that exists while the pod drains: its preStop hook makes it, and a new engine in the same pod takes it away."""
    return Path(os.environ.get("FINETUNE_SCRATCH", SCRATCH_DIR)) / DRAINING


class Drain:
    """The middleware. `now`: a clock, in seconds."""

    def __init__(self, app: App, *, now: Callable[[], float] = time.monotonic) -> None:
        self._app, self._now, self._marker = app, now, marker()
        # Connections between two requests, by the client's address and port: when the first request came, and when the last answer ended. In the order
        # of the latter. Nobody tells when a connection is closed, and uvicorn closes one after 5 s without a request.
        self._idle = OrderedDict[tuple[str, int], tuple[float, float]]()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["http_version"].startswith("1"):
            await self._app(scope, receive, send)
            return
        client, last = scope.get("client"), False
        began = self._began(client)

        async def tell(message: Message) -> None:
            nonlocal last
            if message["type"] == "http.response.start" and (self._now() - began >= MAX_AGE or self._marker.exists()):
                last = True
                kept = [header for header in message.get("headers", ()) if header[0].lower() != b"connection"]
                message = {**message, "headers": [*kept, (b"connection", b"close")]}
            await send(message)

        try:
            await self._app(scope, receive, tell)
        finally:
            if client and not last:
                self._idle[client] = (began, self._now())

    def _began(self, client: tuple[str, int] | None) -> float:
        """When the connection of a request began. It leaves the idle ones, so that a long answer is never taken for a closed connection."""
        now = self._now()
        while self._idle and now - next(iter(self._idle.values()))[1] >= MAX_AGE:
            self._idle.popitem(last=False)
        return self._idle.pop(client, (now, now))[0] if client else now
