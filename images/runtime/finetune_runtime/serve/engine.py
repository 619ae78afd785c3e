"""What the sidecar asks of the engine beside it."""

import http.client
import json
from typing import Any

from .switch import PATH

LIST_SECONDS = 5
LOAD_SECONDS = 300  # a large adapter from a slow disk, while the engine answers others


class EngineRefusesError(Exception):
    """The engine cannot load an adapter; the text is its own."""


class Engine:
    """vLLM at a port of the loopback interface. Methods raise OSError, HTTPException or ValueError while it does not answer."""

    def __init__(self, port: int) -> None:
        self.port = port

    def served(self) -> dict[str, str]:
        """Directories of adapters by the names that they are served under now."""
        status, content = self._request("GET", "/v1/models", LIST_SECONDS)
        if status != http.client.OK:
            raise ValueError(f"/v1/models answers {status}")
        return {str(card["id"]): str(card["root"]) for card in content["data"] if card.get("parent")}

    def serve(self, name: str, directory: str) -> None:
        """Give a name to an adapter. Raises EngineRefusesError."""
        status, content = self._request("PUT", PATH, LOAD_SECONDS, {"name": name, "path": directory})
        if status == http.client.UNPROCESSABLE_ENTITY:
            raise EngineRefusesError(content["message"])
        if status != http.client.OK:
            raise ValueError(f"{PATH} answers {status}")

    def cease(self, name: str) -> None:
        """Serve a name no more."""
        self._request("DELETE", PATH, LIST_SECONDS, {"name": name})

    def _request(self, method: str, path: str, timeout: float, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()
