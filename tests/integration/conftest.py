"""A real API server with the CRDs installed, a fresh namespace for each module, and the operator's own account in it.

KUBECONFIG_TEST names the kubeconfig of a cluster to use. Without it the control plane `ftcp` of tests/devcluster is
used; it is started when it is not up, and then stopped at the end. CRDs and namespaces are made there. Each process of
pytest-xdist has a control plane of its own: some tests change nodes and CRDs, which all namespaces share.
"""

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hack.helm import RELEASE, objects
from tests.integration.history import History
from tests.integration.kubectl import Kubectl
from tests.integration.operator_process import Namespace, Operator, wait
from tests.integration.rest import Rest

ROOT = Path(__file__).resolve().parents[2]
UP, DOWN = 0, 3  # exit codes of tests/devcluster/status


def _devcluster(*command: str) -> subprocess.CompletedProcess[str]:
    name = os.environ.get("DEVCLUSTER_NAME", "ftcp") + os.environ.get("PYTEST_XDIST_WORKER", "")
    environment = os.environ | {"DEVCLUSTER_NAME": name}
    return subprocess.run([str(ROOT / "tests/devcluster" / command[0]), *command[1:]], env=environment, stdout=subprocess.PIPE, text=True, check=False)


@pytest.fixture(scope="session")
def kubeconfig() -> Iterator[Path]:
    """Path of the kubeconfig of the cluster under test."""
    if given := os.environ.get("KUBECONFIG_TEST"):
        yield Path(given)
        return
    state = _devcluster("status").returncode
    if state != UP:
        assert _devcluster("up", "--control-plane").returncode == 0, "tests/devcluster/up --control-plane failed; its output is above"
    yield Path(_devcluster("kubeconfig").stdout.strip())
    if state == DOWN:  # one that was up, if unhealthy, belongs to someone else
        _devcluster("down")


@pytest.fixture(scope="session")
def cluster(kubeconfig: Path) -> Kubectl:
    """kubectl against a cluster that has the CRDs of this tree."""
    kubectl = Kubectl(kubeconfig)
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "manifests/crds"))
    kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(ROOT / "manifests/crds"))
    return kubectl


@pytest.fixture(scope="module")
def kubectl(cluster: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a namespace of the test module's own."""
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    cluster("create", "namespace", namespace)
    yield cluster.within(namespace)
    cluster("delete", "namespace", namespace, "--wait=false")


@pytest.fixture(scope="module")
def operator_kubeconfig(kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Kubeconfig of an operator of the module's namespace, with exactly the rights that the chart gives it."""
    values = {"rbac": {"scope": "namespaced", "aggregate": False}, "watchNamespaces": [kubectl.namespace], "crds": {"install": False}}
    kinds = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
    rights = {"apiVersion": "v1", "kind": "List", "items": [o for o in objects(ROOT, values, namespace=kubectl.namespace) if o["kind"] in kinds]}
    kubectl("apply", "-f", "-", stdin=rights)

    config = json.loads(kubectl("config", "view", "--raw", "-o", "json"))
    config["users"][0]["user"] = {"token": kubectl("create", "token", RELEASE)}
    path = tmp_path_factory.mktemp("account") / "kubeconfig"
    path.write_text(json.dumps(config))
    yield path
    kubectl("delete", "-f", "-", stdin=rights)


@pytest.fixture(scope="module")
def rest(kubectl: Kubectl) -> Iterator[Rest]:
    """Plain HTTP in the module's namespace."""
    found = Rest(kubectl)
    yield found
    found.close()


@pytest.fixture(scope="module")
def process(operator_kubeconfig: Path, kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator of the module's namespace, not yet started."""
    found = Operator(operator_kubeconfig, kubectl.namespace, tmp_path_factory.mktemp("operator") / "log")
    yield found
    code = found.stop()
    print(found.log())
    assert code == 0
    assert "Traceback" not in found.log()


@pytest.fixture
def operator(process: Operator) -> Iterator[Operator]:
    """The operator, up."""
    if not process.running:
        process.start()
    yield process


@pytest.fixture(scope="module")
def history(kubectl: Kubectl) -> Iterator[History]:
    """What happens in the module's namespace. It must never show what is not so."""
    found = History(Rest(kubectl))
    yield found
    found.close()
    assert found.lies() == []


@pytest.fixture
def here(kubectl: Kubectl, rest: Rest) -> Iterator[Namespace]:
    """The module's namespace, empty of ours before and after."""
    namespace = Namespace(kubectl, rest)
    yield namespace
    kubectl("delete", "finetunejobs,modelendpoints", "--all", "--wait=true", "--timeout=30s")
    wait("an empty namespace", lambda: not _left(namespace) or namespace.reap(), 60)


def _left(namespace: Namespace) -> list[dict[str, Any]]:
    ours = "app.kubernetes.io/managed-by=finetune-operator"
    return namespace.items("jobs,pods,deployments,configmaps", ours) + namespace.items("pods")


@pytest.fixture(scope="module")
def node(kubectl: Kubectl, rest: Rest) -> Iterator[str]:
    """Name of a node that is there by name only: pods that are bound to it end when a test says so, not when they are deleted."""
    name = f"node-{kubectl.namespace}"
    rest.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    yield name
    rest.delete("nodes", name)
