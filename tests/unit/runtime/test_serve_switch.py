"""Who may tell the engine which adapters to serve."""

import asyncio
import json
from collections.abc import MutableMapping
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_runtime.serve.drain import Receive, Send
from finetune_runtime.serve.switch import PATH, Switch

INSIDE, OUTSIDE = ("127.0.0.1", 40000), ("10.0.0.7", 40000)


class Models:
    """The part of the engine's list that the middleware uses."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {"support": "/scratch/adapters/1"}

    async def serve(self, name: str, path: str) -> None:
        if path == "/large":
            raise ValueError("LoRA rank 128 is greater than max_lora_rank 64.")
        if path == "/broken":
            raise RuntimeError("no such tensor")
        self.names[name] = path

    def cease(self, name: str) -> None:
        self.names.pop(name, None)


async def _engine(_scope: MutableMapping[str, Any], _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def ask(models: Models, method: str, body: object, client: tuple[str, int] | None = INSIDE, path: str = PATH) -> tuple[int, str]:
    """Status and message."""
    sent: list[MutableMapping[str, Any]] = []
    parts = [json.dumps(body).encode()[:5], json.dumps(body).encode()[5:]]

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    app = SimpleNamespace(state=SimpleNamespace(openai_serving_models=models))
    asyncio.run(Switch(_engine)({"type": "http", "method": method, "path": path, "client": client, "app": app}, receive, send))
    return int(sent[0]["status"]), str(json.loads(sent[1]["body"]).get("message", ""))


@pytest.mark.parametrize(
    ("method", "body", "client", "status", "names", "case"),
    [
        (
            "PUT",
            {"name": "rooms", "path": "/scratch/adapters/2"},
            INSIDE,
            200,
            {"support": "/scratch/adapters/1", "rooms": "/scratch/adapters/2"},
            "a new name",
        ),
        ("PUT", {"name": "support", "path": "/scratch/adapters/2"}, ("::1", 1), 200, {"support": "/scratch/adapters/2"}, "another adapter"),
        ("DELETE", {"name": "support"}, INSIDE, 200, {}, "a name that goes"),
        ("DELETE", {"name": "rooms"}, INSIDE, 200, {"support": "/scratch/adapters/1"}, "one that is gone"),
        ("POST", {"name": "rooms", "path": "/x"}, INSIDE, 405, {"support": "/scratch/adapters/1"}, "another method"),
        ("PUT", {"path": "/x"}, INSIDE, 400, {"support": "/scratch/adapters/1"}, "no name"),
        ("PUT", ["rooms"], INSIDE, 400, {"support": "/scratch/adapters/1"}, "no document"),
        ("PUT", {"name": "support", "path": "/x"}, OUTSIDE, 404, {"support": "/scratch/adapters/1"}, "from another pod"),
        ("DELETE", {"name": "support"}, None, 404, {"support": "/scratch/adapters/1"}, "from nobody knows where"),
    ],
)
def test_only_the_pod_itself_gives_names_to_adapters(
    method: str, body: object, client: tuple[str, int] | None, status: int, names: dict[str, str], case: str
) -> None:
    models = Models()
    assert (ask(models, method, body, client)[0], models.names) == (status, names), case


@pytest.mark.parametrize("path", ["/large", "/broken"])
def test_what_the_engine_says_against_an_adapter_comes_back(path: str) -> None:
    status, message = ask(Models(), "PUT", {"name": "rooms", "path": path})
    assert (status, bool(message)) == (422, True)


def test_everything_else_is_the_engines() -> None:
    assert ask(Models(), "PUT", {}, path="/v1/models")[0] == 404
