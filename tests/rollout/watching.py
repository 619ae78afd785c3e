"""Users in a pod of the cluster, and a watch of the service that they use: both leave a record without a gap."""

import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.cluster import DEVCLUSTER, apply, kubectl, wait
from tests.e2e.endpoints import Endpoint

from .traffic import Request, Switch, read

IMAGE = "localhost/finetune/inference:cpu"  # it holds the OpenAI client, because vLLM needs it
SCRIPT = Path(__file__).parent / "users.py"
POD = "users"


class Traffic:
    """Who has had the traffic of an endpoint, and what its users got. `log`: lines of users.py."""

    def __init__(self, namespace: str, log: Path) -> None:
        self.switches: list[Switch] = []
        self._namespace, self._log = namespace, log

    def follow(self, stream: Iterable[str]) -> None:
        """Read the versions that a watch of the service tells, until it ends."""
        for version in map(str.strip, stream):
            if not self.switches or self.switches[-1].version != version:
                self.switches.append(Switch(time.time() if self.switches else 0.0, version))

    def requests(self) -> list[Request]:
        """So far."""
        return self._read()[0]

    def _read(self) -> tuple[list[Request], int | None]:
        whole, _, _ = self._log.read_text().rpartition("\n")  # the last line may not be all there yet
        return read(whole)

    def hears(self, answer: str, *kinds: str, seconds: float = 60) -> None:
        """Wait until users of these kinds, else those with a connection for every request, get this answer three times."""
        began = time.time()

        def heard(kind: str) -> bool:
            return sum(r.kind == kind and r.start > began and r.answer == answer for r in self.requests()) >= 3

        wait(f"{' and '.join(kinds) or 'new'} connections are answered: {answer}", lambda: all(map(heard, kinds or ("new",))), seconds)

    def end(self) -> list[Request]:
        """All requests, once the users have ended."""
        # Not by deleting the pod: the kubelet may remove it with the end of its log.
        kubectl("-n", self._namespace, "exec", POD, "--", "sh", "-c", "kill -TERM 1")
        wait("the users have ended and told how many requests they made", lambda: self._read()[1] is not None, 60)
        requests, told = self._read()
        assert len(requests) == told, "lines of the users' log are missing"
        return requests


@contextmanager
def following(*command: str, **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """kubectl as long as it is needed, in a process group of its own: the script and the kubectl that it starts end together."""
    with subprocess.Popen([str(DEVCLUSTER / "kubectl"), *command], text=True, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            subprocess.run(["kill", "--", f"-{process.pid}"], check=False, capture_output=True)  # it may have ended with what it followed


@contextmanager
def users(endpoint: Endpoint) -> Iterator[Traffic]:
    """Users who ask the endpoint all the time, from a pod: by its name, through the cluster's DNS and kube-proxy."""
    namespace, status = endpoint.namespace, endpoint.status()
    selected = r'jsonpath={.spec.selector.finetune\.dev/version}{"\n"}'
    watch = following("-n", namespace, "get", "service", endpoint.name, "--watch", "-o", selected, stdout=subprocess.PIPE)
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as log:
        traffic = Traffic(namespace, Path(log.name))
        with watch as switches:
            follower = threading.Thread(target=traffic.follow, args=(switches.stdout,))
            follower.start()
            try:
                wait("the watch of the service tells who has the traffic", lambda: traffic.switches, 30)
                _start(namespace, status["url"], status["servedName"])
                with following("-n", namespace, "logs", "--follow", POD, stdout=log) as told:
                    wait("the users get answers", lambda: len(traffic.requests()) > 10, 120)
                    yield traffic
                    assert switches.poll() is None, "the watch of the service ended early"
                    assert told.wait(60) == 0, "the users' log broke off"
            finally:
                kubectl("-n", namespace, "delete", "pod", POD, "--wait=false", "--ignore-not-found", "--now")
                subprocess.run(["kill", "--", f"-{switches.pid}"], check=False, capture_output=True)
                follower.join()


def _start(namespace: str, url: str, model: str) -> None:
    security = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "users", "image": IMAGE, "imagePullPolicy": "Never", "command": ["python3", "/users/users.py", url, model], "securityContext": security,
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}, "volumeMounts": [{"name": "users", "mountPath": "/users"}],
    }  # fmt: skip
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 60,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "users", "configMap": {"name": POD}}],
    }
    meta = {"name": POD, "namespace": namespace}
    apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"users.py": SCRIPT.read_text()}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec},
    )
    kubectl("-n", namespace, "wait", f"pod/{POD}", "--for=condition=Ready", "--timeout=120s")
