"""A proxy between the operator and the API server that notes every request, and can be a bad line."""

import asyncio
import base64
import json
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

_HOP = {"connection", "transfer-encoding", "content-encoding", "content-length", "host"}


@dataclass(frozen=True)
class Request:
    """One request as the API server sees it."""

    verb: str
    path: str  # without the query
    watch: bool
    status: int

    @property
    def writes(self) -> bool:
        return self.verb in ("POST", "PUT", "PATCH", "DELETE") and not self.path.endswith("/tokenreviews")

    def __str__(self) -> str:
        return f"{self.verb} {self.path.partition('/namespaces/')[2].partition('/')[2] or self.path} {self.status}"


class CountingProxy:
    """Listens on loopback; `kubeconfig(path)` is that of its upstream, going through it."""

    def __init__(self, kubeconfig: Path) -> None:
        self.requests: list[Request] = []
        self.down = False  # whoever connects is thrown out
        self._muted: set[int] = set()  # requests over which nothing comes any more
        self._open: dict[int, web.Request] = {}
        self._config = json.loads(kubeconfig.read_text())
        cluster = self._config["clusters"][0]["cluster"]
        self._upstream, self._tls = cluster["server"], ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        self._loop, self._started, self._port = asyncio.new_event_loop(), threading.Event(), 0
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig that goes through this proxy."""
        clusters = [{"name": self._config["clusters"][0]["name"], "cluster": {"server": f"http://127.0.0.1:{self._port}"}}]
        path.write_text(json.dumps(self._config | {"clusters": clusters}))
        return path

    def cut(self) -> None:
        """Break all connections."""
        self._loop.call_soon_threadsafe(self._abort)

    def mute(self) -> None:
        """Let nothing through on what is open now, as a firewall does that has forgotten a connection: nobody is told."""
        self._loop.call_soon_threadsafe(lambda: self._muted.update(self._open))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)
        self._loop.close()

    def _abort(self) -> None:
        for request in list(self._open.values()):
            if request.transport:
                request.transport.abort()

    async def _serve(self) -> None:
        self._ended = asyncio.Event()
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        runner = web.AppRunner(app, shutdown_timeout=1)
        async with ClientSession(connector=TCPConnector(ssl=self._tls, limit=0), timeout=ClientTimeout(total=None), auto_decompress=False) as self._client:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self._port = runner.addresses[0][1]
            self._started.set()
            await self._ended.wait()
            await runner.cleanup()

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        if self.down and request.transport:
            request.transport.abort()
        self._open[id(request)] = request
        try:
            return await self._answer(request)
        finally:
            del self._open[id(request)]
            self._muted.discard(id(request))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP | {"accept-encoding"}}
        body = await request.read()
        async with self._client.request(request.method, self._upstream + request.path_qs, headers=headers, data=body or None) as answer:
            self.requests.append(Request(request.method, request.path, request.query.get("watch") in ("true", "1"), answer.status))
            told = web.StreamResponse(status=answer.status, headers={n: v for n, v in answer.headers.items() if n.lower() not in _HOP})
            await told.prepare(request)
            async for chunk in answer.content.iter_any():
                if id(request) in self._muted:
                    await self._ended.wait()
                await told.write(chunk)
            await told.write_eof()
            return told
