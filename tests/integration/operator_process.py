"""The operator as a process of its own against the API server under test, and a stand-in for the kubelet.

The control plane has no node, so the tests write what a kubelet would: the status of pods. Everything else (Jobs,
their controller, garbage collection, tokens, admission) is the real thing.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from tests.integration.kubectl import Kubectl

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")


def wait(what: str, check: Callable[[], T], seconds: float = 20) -> T:
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        last = check()
        if last:
            return last
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds:.0f} s: {what}; last seen: {last!r}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def now() -> str:
    """The Job controller counts its back-off from the times in a pod's status, so they have to be true."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Operator:
    """`python -m finetune_operator` with a kubeconfig, watching one namespace."""

    def __init__(self, kubeconfig: Path, namespace: str, log: Path) -> None:
        self.status_port, self.metrics_port = free_port(), free_port()
        self._log = log
        self._env = os.environ | {
            "KUBECONFIG": str(kubeconfig), "PYTHONPATH": f"{ROOT}/operator:{ROOT}/images/runtime", "FINETUNE_WATCH_NAMESPACES": namespace,
            "FINETUNE_TRAINER_IMAGE": "trainer:test", "FINETUNE_INFERENCE_IMAGE": "inference:test", "FINETUNE_STATUS_URL": "https://localhost",
            "FINETUNE_STATUS_PORT": str(self.status_port), "FINETUNE_METRICS_PORT": str(self.metrics_port),
        }  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as out:
            self._process = subprocess.Popen([sys.executable, "-m", "finetune_operator"], env=self._env, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)
        wait("the operator is ready", self.ready, 30)

    @property
    def running(self) -> bool:
        return self._process is not None

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(how)
        code = self._process.wait(timeout=20)
        self._process = None
        return code

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def log(self) -> str:
        return self._log.read_text()


class Namespace:
    """Objects of one namespace, and what a kubelet would write about its pods."""

    def __init__(self, kubectl: Kubectl) -> None:
        self.kubectl = kubectl

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin={"apiVersion": "v1", "kind": "List", "items": list(objects)})

    def get(self, kind: str, name: str) -> dict[str, Any]:
        found = self.kubectl("get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(found) if found.strip() else {}

    def items(self, kinds: str, selector: str = "") -> list[dict[str, Any]]:
        return list(json.loads(self.kubectl("get", kinds, "-o", "json", *(["-l", selector] if selector else [])))["items"])

    def status(self, name: str = "support") -> dict[str, Any]:
        return dict(self.get("finetunejob", name).get("status") or {})

    def pod(self, step: str, attempt: int = 1, not_named: str = "") -> dict[str, Any]:
        """The living pod of an attempt, once there is one."""
        selector = f"finetune.dev/step={step},finetune.dev/attempt={attempt}"

        def find() -> dict[str, Any] | None:
            alive = [p for p in self.items("pods", selector) if "deletionTimestamp" not in p["metadata"] and p["metadata"]["name"] != not_named]
            return alive[0] if alive else None

        return wait(f"a pod of {step} {attempt}", find) or {}

    def set_pod(self, name: str, status: dict[str, Any]) -> None:
        self.kubectl("patch", "pod", name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))

    def run(self, name: str) -> None:
        running = {"name": "main", "image": "x", "imageID": "", "ready": True, "restartCount": 0, "state": {"running": {"startedAt": now()}}}
        self.set_pod(name, {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [running]})

    def end(self, name: str, code: int, message: str = "", reason: str = "Error") -> None:
        ended = {"exitCode": code, "reason": reason if code else "Completed", "message": message, "startedAt": now(), "finishedAt": now()}
        status = {"name": "main", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": {"terminated": ended}}
        self.set_pod(name, {"phase": "Failed" if code else "Succeeded", "containerStatuses": [status]})

    def hold(self, name: str, reason: str, message: str) -> None:
        waiting = {"name": "main", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": {"waiting": {"reason": reason, "message": message}}}
        self.set_pod(name, {"phase": "Pending", "containerStatuses": [waiting]})
