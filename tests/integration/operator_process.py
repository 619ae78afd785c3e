"""The operator as a process of its own against the API server under test, and a stand-in for the kubelet.

The control plane has no node, so the tests write what a kubelet would: the status of pods. Everything else (Jobs,
their controller, garbage collection, tokens, admission) is the real thing.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from tests.integration.kubectl import Kubectl
from tests.integration.rest import Rest

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")


def wait(what: str, check: Callable[[], T], seconds: float = 20) -> T:
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        last = check()
        if last:
            return last
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:.0f} s: {what}; last seen: {last!r}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def now(ago: float = 0) -> str:
    """The time, or that of so many seconds `ago`. The Job controller counts its back-off from the times in a pod's status."""
    return (datetime.now(UTC) - timedelta(seconds=ago)).strftime("%Y-%m-%dT%H:%M:%SZ")


class Operator:
    """`python -m finetune_operator` with a kubeconfig, watching one namespace."""

    def __init__(self, kubeconfig: Path, namespace: str, log: Path, **environment: str) -> None:
        self.status_port, self.metrics_port = free_port(), free_port()
        self._log = log
        self.environment = os.environ | {
            "KUBECONFIG": str(kubeconfig), "PYTHONPATH": f"{ROOT}/operator:{ROOT}/images/runtime", "FINETUNE_WATCH_NAMESPACES": namespace,
            "FINETUNE_TRAINER_IMAGE": "trainer:test", "FINETUNE_INFERENCE_IMAGE": "inference:test", "FINETUNE_STATUS_URL": "https://localhost",
            "FINETUNE_STATUS_PORT": str(self.status_port), "FINETUNE_METRICS_PORT": str(self.metrics_port),
        } | environment  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as out:
            self._process = subprocess.Popen([sys.executable, "-m", "finetune_operator"], env=self.environment, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)
        wait("the operator is ready", self.ready, 90)

    @property
    def running(self) -> bool:
        return self._process is not None

    def has_ended(self) -> bool:
        """Whether it has ended by itself, as if it were done. A kubelet would start it again."""
        if self._process is None or self._process.poll() is None:
            return False
        assert self._process.returncode == 0
        self._process = None
        return True

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

    def log(self, begin: int = 0) -> str:
        """What it printed in all its lives, from a byte on."""
        return self._log.read_bytes()[begin:].decode() if self._log.exists() else ""


class Namespace:
    """Objects of one namespace, and what a kubelet would write about its pods."""

    def __init__(self, kubectl: Kubectl, rest: Rest) -> None:
        self.kubectl, self.rest = kubectl, rest

    def apply(self, *objects: dict[str, Any]) -> None:
        for body in objects:
            self.rest.apply(body)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return self.rest.find(kind, name)

    def items(self, kinds: str, selector: str = "") -> list[dict[str, Any]]:
        return [item for kind in kinds.split(",") for item in self.rest.list(kind, selector)]

    def status(self, name: str = "support") -> dict[str, Any]:
        return dict(self.get("finetunejob", name).get("status") or {})

    def edit(self, name: str = "support", **spec: Any) -> None:
        """Change a FineTuneJob as a user does."""
        self.rest.merge("finetunejob", name, {"spec": spec})

    def pod(self, step: str, attempt: int = 1, not_named: str = "", job: str = "support") -> dict[str, Any]:
        """The living pod of an attempt, once there is one."""
        selector = f"finetune.dev/job={job},finetune.dev/step={step},finetune.dev/attempt={attempt}"

        def find() -> dict[str, Any] | None:
            alive = [p for p in self.items("pods", selector) if "deletionTimestamp" not in p["metadata"] and p["metadata"]["name"] != not_named]
            return alive[0] if alive else None

        return wait(f"a pod of {step} {attempt}", find) or {}

    def bind(self, name: str, node: str) -> None:
        """A scheduler's part. Only pods on a node end slowly: others are gone as soon as they are deleted."""
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"apiVersion": "v1", "kind": "Node", "name": node}}
        self.rest("POST", self.rest.path("pods", name, "binding"), body)

    def evict(self, name: str) -> None:
        """What `kubectl drain` does."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": self.rest.namespace}}
        self.rest("POST", self.rest.path("pods", name, "eviction"), body)

    def gone(self, name: str) -> None:
        """The kubelet confirms that a deleted pod has ended, some time after it has told how."""
        time.sleep(0.5)
        self.rest.delete("pods", name, gracePeriodSeconds=0)

    def set_pod(self, name: str, status: dict[str, Any]) -> None:
        self.rest.merge("pods", name, {"status": status}, "status")

    def run(self, name: str) -> None:
        running = {"name": "main", "image": "x", "imageID": "", "ready": True, "restartCount": 0, "state": {"running": {"startedAt": now()}}}
        self.set_pod(name, {"phase": "Running", **self._conditions(name, {"type": "Ready", "status": "True"}), "containerStatuses": [running]})

    def end(self, name: str, code: int, message: str = "", reason: str = "Error", *, ago: float = 0) -> None:
        """`ago`: seconds since it ended, which spares the Job controller's back-off of 10 s and more after an interruption."""
        ended = {"exitCode": code, "reason": reason if code else "Completed", "message": message, "startedAt": now(ago), "finishedAt": now(ago)}
        status = {"name": "main", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": {"terminated": ended}}
        self.set_pod(name, {"phase": "Failed" if code else "Succeeded", "containerStatuses": [status]})

    def hold(self, name: str, reason: str, message: str) -> None:
        waiting = {"name": "main", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": {"waiting": {"reason": reason, "message": message}}}
        self.set_pod(name, {"phase": "Pending", "containerStatuses": [waiting]})

    def unschedulable(self, name: str, message: str) -> None:
        """What the scheduler writes about a pod that no node takes."""
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        self.set_pod(name, {"phase": "Pending", **self._conditions(name, condition)})

    def _conditions(self, name: str, new: dict[str, Any]) -> dict[str, Any]:
        """A merge patch replaces the whole list: those of others (DisruptionTarget) have to stay."""
        known = (self.get("pods", name).get("status") or {}).get("conditions") or []
        return {"conditions": [*(c for c in known if c["type"] != new["type"]), new]}

    def reap(self) -> bool:
        """End all pods at once. Returns False, for use in conditions."""
        for pod in self.items("pods"):
            self.gone(pod["metadata"]["name"])
        return False
