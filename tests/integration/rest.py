"""The API server by plain HTTP, for what stands in for a kubelet and for watching: kubectl takes a tenth of a second a call."""

import base64
import http.client
import json
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from tests.integration.kubectl import Kubectl

Body = dict[str, Any]
BUSY = 429  # also while a kind that has just been installed gets its storage
PATIENCE = 30.0  # seconds
MERGE, APPLY, JSON = "application/merge-patch+json", "application/apply-patch+yaml", "application/json"
_PREFIXES = {
    "/api/v1": ("pods", "configmaps", "services", "events", "secrets", "nodes", "namespaces", "resourcequotas"),
    "/apis/batch/v1": ("jobs",),
    "/apis/apps/v1": ("deployments",),
    "/apis/policy/v1": ("poddisruptionbudgets",),
    "/apis/finetune.dev/v1alpha1": ("finetunejobs", "modelendpoints"),
    "/apis/kueue.x-k8s.io/v1beta2": ("workloads",),
    "/apis/gateway.networking.k8s.io/v1": ("httproutes",),
    "/apis/apiextensions.k8s.io/v1": ("customresourcedefinitions",),
}
_PREFIX = {plural: prefix for prefix, plurals in _PREFIXES.items() for plural in plurals}
_CLUSTERED = ("nodes", "namespaces", "customresourcedefinitions")


class RestError(AssertionError):
    """The API server refused."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


def plural(kind: str) -> str:
    """Name of a kind in paths."""
    name = kind.lower()
    return name if name in _PREFIX else f"{name}s"


class Rest:
    """One API server with the credentials of a kubeconfig, in one namespace. May be used by several threads at once."""

    def __init__(self, kubectl: Kubectl) -> None:
        self.namespace = kubectl.namespace
        config = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._host = urlsplit(cluster["server"]).netloc
        self._headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        self._tls = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        if "client-certificate-data" in user:
            with tempfile.NamedTemporaryFile() as file:
                file.write(base64.b64decode(user["client-certificate-data"]) + b"\n" + base64.b64decode(user["client-key-data"]))
                file.flush()
                self._tls.load_cert_chain(file.name)
        self._local = threading.local()
        self._connections: list[http.client.HTTPSConnection] = []

    def path(self, kind: str, name: str = "", subresource: str = "") -> str:
        """Path of an object or of all of a kind."""
        where = plural(kind)
        scope = [] if where in _CLUSTERED else ["namespaces", self.namespace]
        return "/".join(part for part in (_PREFIX[where], *scope, where, name, subresource) if part)

    def __call__(self, verb: str, path: str, body: Body | None = None, content: str = JSON, *, query: Mapping[str, str] | None = None) -> Body:
        """The answer to a request. Raises RestError."""
        target = f"{path}?{urlencode(query)}" if query else path
        text = None if body is None else json.dumps(body)
        end = time.monotonic() + PATIENCE
        status, found = self._send(verb, target, text, content)
        while status == BUSY and time.monotonic() < end:
            time.sleep(0.5)
            status, found = self._send(verb, target, text, content)
        told: Body = json.loads(found) if found.startswith(b"{") else {}
        if status >= 400:
            raise RestError(status, f"{verb} {path}: {told.get('message', found[:200])}")
        return told

    def _send(self, verb: str, target: str, text: str | None, content: str) -> tuple[int, bytes]:
        try:
            return self._once(verb, target, text, content)
        except (OSError, http.client.HTTPException):  # a connection that was not used for long may be closed
            self._connection().close()
            return self._once(verb, target, text, content)

    def _once(self, verb: str, target: str, text: str | None, content: str) -> tuple[int, bytes]:
        connection = self._connection()
        connection.request(verb, target, text, self._headers | {"Content-Type": content})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def find(self, kind: str, name: str) -> Body:
        """An object; empty when there is none."""
        try:
            return self("GET", self.path(kind, name))
        except RestError as error:
            if error.status == 404:
                return {}
            raise

    def list(self, kind: str, selector: str = "") -> list[Body]:
        """Objects of a kind, each with its kind in it."""
        answer = self("GET", self.path(kind), query={"labelSelector": selector})
        return [{"kind": answer["kind"].removesuffix("List"), **item} for item in answer["items"]]

    def apply(self, body: Body) -> Body:
        """Server-side apply as a user."""
        return self("PATCH", self.path(body["kind"], body["metadata"]["name"]), body, APPLY, query={"fieldManager": "test", "force": "true"})

    def merge(self, kind: str, name: str, change: Body, subresource: str = "") -> Body:
        """JSON merge patch."""
        return self("PATCH", self.path(kind, name, subresource), change, MERGE)

    def delete(self, kind: str, name: str, **options: Any) -> None:
        """Delete; what is gone is fine."""
        try:
            self("DELETE", self.path(kind, name), {"propagationPolicy": "Background", **options})
        except RestError as error:
            if error.status != 404:
                raise

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            connection.close()

    def watch(self, kind: str, version: str, opened: Callable[[http.client.HTTPSConnection], None]) -> Iterator[Body]:
        """Events of a kind after a resource version until the connection ends; `opened` is given the connection, to end it."""
        connection = self._connect(timeout=None)
        opened(connection)
        query = urlencode({"watch": "true", "resourceVersion": version, "timeoutSeconds": "3000"})
        connection.request("GET", f"{self.path(kind)}?{query}", headers=self._headers)
        answer = connection.getresponse()
        if answer.status >= 400:
            raise RestError(answer.status, answer.read().decode())
        with answer:
            for line in answer:
                yield json.loads(line)

    def _connection(self) -> http.client.HTTPSConnection:
        found: http.client.HTTPSConnection | None = getattr(self._local, "connection", None)
        if found is None:
            found = self._local.connection = self._connect(timeout=60)
        return found

    def _connect(self, timeout: float | None) -> http.client.HTTPSConnection:
        made = http.client.HTTPSConnection(self._host, context=self._tls, timeout=timeout)
        self._connections.append(made)
        return made
