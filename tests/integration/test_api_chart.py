"""The chart on a real API server: rights as they work, pod security, changes of scope, and what removal leaves."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from hack.generate import ROOT
from hack.helm import CHART, RELEASE, binary
from tests.integration.kubectl import Kubectl
from tests.integration.test_api_refusals import JOB


class Release:
    """One Helm release in the namespace of the test module."""

    def __init__(self, kubectl: Kubectl) -> None:
        self.kubectl = kubectl
        self.account = f"system:serviceaccount:{kubectl.namespace}:{RELEASE}"

    def upgrade(self, **values: Any) -> None:
        # The CRDs are those that kubectl applied for the session: the release takes them over.
        self._helm("upgrade", "--install", RELEASE, str(ROOT / CHART), "--take-ownership", "--force-conflicts", "--values", "-", stdin=json.dumps(values))

    def uninstall(self) -> None:
        self._helm("uninstall", RELEASE, "--ignore-not-found")

    def _helm(self, *arguments: str, stdin: str | None = None) -> None:
        environment = os.environ | {"KUBECONFIG": str(self.kubectl.kubeconfig)}
        command = [binary(), "--namespace", self.kubectl.namespace, *arguments]
        result = subprocess.run(command, input=stdin, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert result.returncode == 0, result.stderr

    def may(self, verb: str, resource: str, namespace: str, user: str = "") -> bool:
        """Whether the operator, or `user`, may do this to GROUP/RESOURCE or GROUP/RESOURCE/SUBRESOURCE in the namespace."""
        group, name, subresource = [*resource.split("/"), ""][:3]
        attributes = {"verb": verb, "group": group, "resource": name, "subresource": subresource, "namespace": namespace}
        # Groups as the API server gives them to every account: roles for all users count too.
        spec = {"user": user or self.account, "groups": ["system:authenticated"], "resourceAttributes": attributes}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        return bool(self.kubectl.json("create", "-f", "-", stdin=review)["status"]["allowed"])


@pytest.fixture(scope="module")
def release(kubectl: Kubectl) -> Iterator[Release]:
    kubectl("label", "namespace", kubectl.namespace, "pod-security.kubernetes.io/enforce=restricted")
    release = Release(kubectl)
    yield release
    release.uninstall()


def eventually(condition: Callable[[], object], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def test_the_operators_pod_is_admitted_by_the_restricted_standard(release: Release) -> None:
    release.upgrade()

    assert eventually(lambda: release.kubectl("get", "pods", "-l", "app.kubernetes.io/component=controller", "-o", "name"))


ALLOWED = [
    "watch finetune.dev/finetunejobs",
    "patch finetune.dev/finetunejobs/status",
    "patch finetune.dev/modelendpoints",
    "update finetune.dev/finetunejobs/finalizers",
    "delete batch/jobs",
    "patch apps/deployments",
    "create /services",
    "patch /configmaps",
    "list /pods",
    "create /events",
    "delete finetune.dev/finetunejobs",
    "patch kueue.x-k8s.io/workloads",
    "delete gateway.networking.k8s.io/httproutes",
    "list /nodes",
]
DENIED = [
    "get /secrets",
    "list /secrets",
    "list /configmaps",
    "create /pods",
    "create /pods/exec",
    "update batch/jobs",
    "get gateway.networking.k8s.io/gateways",
    "create /serviceaccounts/token",
    "get /nodes",
    "watch /nodes",
]


def test_what_the_operator_may_do_in_any_namespace_and_what_not(release: Release) -> None:
    release.upgrade()

    found = {f"{verb} {resource}": release.may(verb, resource, "default") for verb, resource in map(str.split, ALLOWED + DENIED)}
    assert found == dict.fromkeys(ALLOWED, True) | dict.fromkeys(DENIED, False)


def test_namespaced_rights_end_at_the_namespaces(release: Release) -> None:
    namespace = release.kubectl.namespace
    release.upgrade()
    assert release.may("list", "finetune.dev/finetunejobs", "default")

    release.upgrade(rbac={"scope": "namespaced"}, watchNamespaces=[namespace])

    assert release.may("list", "finetune.dev/finetunejobs", namespace)
    assert release.may("create", "batch/jobs", namespace)
    assert not release.may("list", "finetune.dev/finetunejobs", "default")
    assert not release.may("list", "/pods", "kube-system")
    assert release.may("create", "authentication.k8s.io/tokenreviews", ""), "tokens can only be reviewed cluster-wide"


@pytest.mark.parametrize(
    ("role", "allowed", "denied"),
    [
        pytest.param("edit", ["get", "create", "delete"], ["escalate"], id="edit"),
        pytest.param("view", ["get", "list", "watch"], ["create", "patch", "delete"], id="view"),
    ],
)
def test_users_may_do_with_jobs_what_their_role_says(release: Release, role: str, allowed: list[str], denied: list[str]) -> None:
    release.upgrade()
    namespace, user = release.kubectl.namespace, f"{role}-user"
    release.kubectl("create", "rolebinding", user, f"--clusterrole={role}", f"--user={user}")

    for resource in ("finetune.dev/finetunejobs", "finetune.dev/modelendpoints"):
        for verb in allowed:  # the controller manager adds our rules to Kubernetes' roles, which takes a moment
            assert eventually(partial(release.may, verb, resource, namespace, user=user)), f"{role}: {verb} {resource}"
        for verb in denied:
            assert not release.may(verb, resource, namespace, user=user)
        assert not release.may("patch", f"{resource}/status", namespace, user=user)


def test_removal_leaves_the_kinds_and_what_users_made(release: Release) -> None:
    release.upgrade()
    release.kubectl("create", "-f", "-", stdin=JOB)

    release.uninstall()

    assert release.kubectl("get", "finetunejob/support", "-o", "name").strip() == "finetunejob.finetune.dev/support"
    assert release.kubectl.refused("get", f"deployment/{RELEASE}")
