"""A real API server with the CRDs installed, and a fresh namespace for each module.

KUBECONFIG_TEST names the kubeconfig of a cluster to use. Without it the control plane `ftcp` of tests/devcluster is
used; it is started when it is not up, and then stopped at the end. CRDs and namespaces are made there.
"""

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.kubectl import Kubectl

ROOT = Path(__file__).resolve().parents[2]
UP, DOWN = 0, 3  # exit codes of tests/devcluster/status


def _devcluster(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DEVCLUSTER_NAME": os.environ.get("DEVCLUSTER_NAME", "ftcp")}
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
