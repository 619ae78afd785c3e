"""Readiness: this adapter answers, to the prompts of its training. Standard library only, because it runs every few seconds beside the engine.

The first time it takes the parity samples and a real completion: engines report health with a model that cannot answer. After that the
engine's health is enough, as long as the engine is the same: run.py forgets the proof when it starts one.
"""

import http.client
import json
import os
from pathlib import Path
from typing import Any

from . import parity

# Those of contract.config, contract.result and fetch, which cost the import of pydantic; a test keeps them equal.
CONFIG_PATH = "/etc/finetune/config.json"
SCRATCH_DIR = "/scratch"
SERVING_PORT = 8000
TERMINATION_LOG = "/dev/termination-log"
ADAPTER = "adapter"
ADAPTERS = "adapters"  # holds them where they come and go
STEP = "serve"
REASON = "InvalidConfig"

HEALTH_SECONDS = 5
ANSWER_SECONDS = 60


class NotReadyError(Exception):
    """Says why in one line."""


def main() -> int:
    """0 when ready, 1 when not, with the reason on standard output."""
    try:
        config = json.loads(Path(os.environ.get("FINETUNE_CONFIG", CONFIG_PATH)).read_text())
        check(adapters(config), int(os.environ.get("FINETUNE_SERVING_PORT", SERVING_PORT)), proof())
    except parity.PromptDiffersError as error:
        print(f"not ready: {error}")  # noqa: T201  as below
        _leave(str(error))
        return 1
    except (NotReadyError, OSError, http.client.HTTPException, ValueError, KeyError) as error:
        print(f"not ready: {error or type(error).__name__}".splitlines()[0])  # noqa: T201  kubectl describe shows it
        return 1
    return 0


def proof() -> Path:
    """File that exists once the running engine has answered."""
    return Path(os.environ.get("FINETUNE_SCRATCH", SCRATCH_DIR)) / ".ready"


def adapter_directory(place: int) -> str:
    """Name of the directory in the scratch volume that holds the adapter at this place of a pod's configuration."""
    return ADAPTER if place == 0 else f"{ADAPTER}-{place + 1}"


def live_directory(manifest_sha256: str) -> str:
    """The same where adapters come and go: the name proves which adapter it is."""
    return f"{ADAPTERS}/{manifest_sha256[:16]}"


def adapters(config: dict[str, Any]) -> dict[str, str]:
    """Directories in the scratch volume by the names that adapters are served under, in the order of a pod's configuration."""
    found = [{"name": config["servedName"], "adapter": config.get("adapter")}, *(config.get("others") or ())]
    if config.get("live"):
        return {str(each["name"]): live_directory(each["adapter"]["manifestSha256"]) for each in found}
    return {str(each["name"]): adapter_directory(place) for place, each in enumerate(found)}


def check(names: dict[str, str], port: int, answered: Path) -> None:
    """`names` with the directories of their adapters. Raises NotReadyError, PromptDiffersError, OSError or HTTPException."""
    _request(port, "GET", "/health", HEALTH_SECONDS)
    if answered.exists():
        return
    listed = [model["id"] for model in json.loads(_request(port, "GET", "/v1/models", HEALTH_SECONDS))["data"]]
    if missing := [name for name in names if name not in listed]:
        raise NotReadyError(f"the engine serves {', '.join(listed) or 'nothing'} but not {', '.join(missing)}")
    for name, directory in names.items():
        prove(name, port, parity.samples(answered.parent / directory))
    answered.touch()


def prove(name: str, port: int, samples: list[dict[str, Any]]) -> None:
    """An adapter sees the prompts of its training, and answers. Raises as `check`."""

    def tokenize(messages: list[dict[str, Any]], options: dict[str, Any]) -> list[int]:
        body = {"model": name, "messages": messages, "add_generation_prompt": True, "chat_template_kwargs": options}
        tokens: list[int] = json.loads(_request(port, "POST", "/tokenize", HEALTH_SECONDS, body))["tokens"]
        return tokens

    parity.check(samples, tokenize)
    question = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "temperature": 0}
    answer = json.loads(_request(port, "POST", "/v1/chat/completions", ANSWER_SECONDS, question))
    if not answer.get("choices"):
        raise NotReadyError(f"{name} answers without a choice")


def _leave(message: str) -> None:
    """Waiting does not help: when the kubelet ends the container, its termination message tells why."""
    try:
        with Path(os.environ.get("FINETUNE_TERMINATION_LOG", TERMINATION_LOG)).open("r+") as file:  # never made by us
            file.write(json.dumps({"step": STEP, "reason": REASON, "message": message[:2000]}))
            file.truncate()
    except OSError:
        pass  # standard output has it


def _request(port: int, method: str, path: str, timeout: float, body: dict[str, Any] | None = None) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise NotReadyError(f"{path} answers {response.status}: {content[:200].decode(errors='replace')}")
    return content
