"""A ModelEndpoint as tests see it: its versions, who has its traffic, its pods and its API."""

import json
import urllib.request
from collections.abc import Callable
from typing import Any

from openai import OpenAI

from .cluster import apply, forward, get, items, kubectl, wait

VERSION = "finetune.dev/version"


class Endpoint:
    """One ModelEndpoint. `port` of this machine leads to its service."""

    def __init__(self, namespace: str, name: str, port: int) -> None:
        self.namespace, self.name, self.port = namespace, name, port

    def create(self, **spec: Any) -> None:
        metadata = {"name": self.name, "namespace": self.namespace}
        apply({"apiVersion": "finetune.dev/v1alpha1", "kind": "ModelEndpoint", "metadata": metadata, "spec": spec})

    @property
    def spec(self) -> dict[str, Any]:
        return dict(get("modelendpoint", self.name, self.namespace)["spec"])

    def put(self, spec: dict[str, Any]) -> None:
        """Replace the whole spec."""
        self._patch("json", [{"op": "replace", "path": "/spec", "value": spec}])

    def merge(self, **spec: Any) -> None:
        """Change these fields; None takes one away."""
        self._patch("merge", {"spec": spec})

    def propose(self, job: str, adapter: dict[str, Any], **more: Any) -> None:
        """Propose an adapter by hand. The whole candidate is replaced: nothing of the last job's gate stays."""
        self._patch("json", [{"op": "add", "path": "/spec/candidate", "value": {"job": job, "adapter": adapter, **more}}])

    def _patch(self, kind: str, patch: Any) -> None:
        kubectl("-n", self.namespace, "patch", "modelendpoint", self.name, f"--type={kind}", "-p", json.dumps(patch))

    def status(self) -> dict[str, Any]:
        return dict(get("modelendpoint", self.name, self.namespace).get("status") or {})

    def until(self, what: str, check: Callable[[dict[str, Any]], Any], seconds: float) -> dict[str, Any]:
        """Status once `check` holds; the failure shows versions and conditions."""
        seen: dict[str, Any] = {}

        def look() -> bool:
            nonlocal seen
            seen = self.status()
            return bool(check(seen))

        try:
            wait(what, look, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\nversions: {seen.get('versions')}\nconditions: {seen.get('conditions')}") from None
        return seen

    def current(self) -> dict[str, Any]:
        """The version that the status says has the traffic."""
        return in_role(self.status(), "Current")

    def selected(self) -> str:
        """The version that the service leads to."""
        return str(get("service", self.name, self.namespace).get("spec", {}).get("selector", {}).get(VERSION, ""))

    def pods(self, version: str) -> dict[str, tuple[str, int]]:
        """Pods of a version that are not told to end: name -> (UID, restarts)."""
        found = [p for p in items("pods", self.namespace, f"{VERSION}={version}") if "deletionTimestamp" not in p["metadata"]]
        return {p["metadata"]["name"]: (p["metadata"]["uid"], sum(c["restartCount"] for c in p["status"].get("containerStatuses", []))) for p in found}

    def objects(self, version: str) -> list[str]:
        """All that a version has in the cluster, pods that end included."""
        return [f"{o['kind']}/{o['metadata']['name']}" for o in items("deployments,configmaps,services,pods", self.namespace, f"{VERSION}={version}")]

    def url(self) -> str:
        """Base URL on this machine. Asked for anew by every user, because a service that was deleted comes back at another address."""
        return forward(self.namespace, self.name, self.port)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What the engine answers beside the OpenAI API."""
        request = urllib.request.Request(self.url() + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def text(self, tokens: list[int]) -> str:
        """What tokens stand for."""
        return str(self.post("/detokenize", {"model": "base", "tokens": tokens})["prompt"])

    def client(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url()}/v1", api_key="none", timeout=60, **options)

    def answer(self, question: str, model: str = "", **options: Any) -> str:
        """The text of a chat completion, greedy unless `options` say otherwise. `model`: the endpoint's own, or base."""
        messages = [{"role": "user", "content": question}]
        request = {"model": model or self.status()["servedName"], "messages": messages, "max_tokens": 24, "temperature": 0, **options}
        return str(self.client().chat.completions.create(**request).choices[0].message.content)


def in_role(status: dict[str, Any], role: str, job: str = "") -> dict[str, Any]:
    """The first version in a role, of a job where one is named; empty when there is none."""
    return next((v for v in status.get("versions", []) if v["role"] == role and job in ("", v.get("job"))), {})


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next((c for c in status.get("conditions", []) if c["type"] == kind), {})


def settled(status: dict[str, Any]) -> bool:
    """No version is on its way."""
    return condition(status, "Progressing").get("status") == "False"
