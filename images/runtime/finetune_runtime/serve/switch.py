"""Where the sidecar tells the engine which adapters to serve. ASGI middleware in the process of `vllm_server`; nobody outside of the pod gets in."""

import json
from collections.abc import MutableMapping
from http import HTTPStatus
from typing import Any

from .drain import App, Receive, Send

PATH = "/finetune/adapters"
_LOOPBACK = ("127.0.0.1", "::1")


class Switch:
    """The middleware. PUT `{"name": ..., "path": ...}` serves the adapter of a directory under a name, DELETE `{"name": ...}` serves it no more."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        client = scope.get("client") or ("", 0)
        # The address of the connection itself: uvicorn believes what a header says of it from the loopback interface only.
        if scope["type"] != "http" or scope["path"] != PATH or client[0] not in _LOOPBACK:
            await self._app(scope, receive, send)  # which knows no such path
            return
        status, told = await self._do(scope, await _body(receive))
        content = json.dumps({"message": told}).encode()
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": content})

    async def _do(self, scope: MutableMapping[str, Any], body: bytes) -> tuple[HTTPStatus, str]:
        models, method = scope["app"].state.openai_serving_models, scope["method"]
        try:
            wanted = json.loads(body)
            name, path = str(wanted["name"]), str(wanted["path"]) if method == "PUT" else ""
        except (KeyError, TypeError, ValueError) as error:
            return HTTPStatus.BAD_REQUEST, f"{type(error).__name__}: {error}"
        if method == "DELETE":
            models.cease(name)
        elif method == "PUT":
            try:
                await models.serve(name, path)
            except Exception as error:  # noqa: BLE001  the engine raises what its workers raised, of whatever kind
                return HTTPStatus.UNPROCESSABLE_ENTITY, str(error)
        else:
            return HTTPStatus.METHOD_NOT_ALLOWED, "PUT or DELETE"
        return HTTPStatus.OK, ""


async def _body(receive: Receive) -> bytes:
    found = b""
    while True:
        message = await receive()
        found += bytes(message.get("body", b""))
        if not message.get("more_body"):
            return found
