"""The rights that the chart hands out, verb by verb."""

from typing import Any

import pytest

from hack.generate import ROOT
from hack.helm import objects

ALL = {"get", "list", "watch", "create", "patch", "delete"}
READ = {"get", "list", "watch"}
OPERATOR = {
    "finetune.dev/finetunejobs": READ | {"delete"},
    "finetune.dev/modelendpoints": READ | {"create", "patch"},
    "finetune.dev/finetunejobs/status": {"get", "patch"},
    "finetune.dev/modelendpoints/status": {"get", "patch"},
    "finetune.dev/finetunejobs/finalizers": {"update"},
    "finetune.dev/modelendpoints/finalizers": {"update"},
    "batch/jobs": ALL,
    "apps/deployments": ALL,
    "/services": ALL,
    "policy/poddisruptionbudgets": {"get", "create", "patch"},
    "/configmaps": {"get", "create", "patch", "delete"},
    "/pods": READ | {"patch"},
    "kueue.x-k8s.io/workloads": READ | {"patch"},
    "gateway.networking.k8s.io/httproutes": ALL,
    "/events": {"create", "patch"},
}
ANYWHERE = {  # what knows no namespaces
    "/finetune-system:finetune-operator:token-review": {"authentication.k8s.io/tokenreviews": {"create"}},
    "/finetune-system:finetune-operator:nodes": {"/nodes": {"list"}},
}
USERS = {"finetune.dev/finetunejobs", "finetune.dev/modelendpoints"}


def rendered(values: dict[str, Any] | None, *kinds: str) -> list[dict[str, Any]]:
    return [o for o in objects(ROOT, values) if o["kind"] in kinds]


def verbs(role: dict[str, Any]) -> dict[str, set[str]]:
    """Verbs by group/resource. A rule with resource names would be narrower than it looks here: there is none."""
    assert all(set(rule) == {"apiGroups", "resources", "verbs"} for rule in role["rules"])
    return {f"{group}/{resource}": set(rule["verbs"]) for rule in role["rules"] for group in rule["apiGroups"] for resource in rule["resources"]}


def by_name(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f"{o['metadata'].get('namespace', '')}/{o['metadata']['name']}": o for o in found}


def test_cluster_scope() -> None:
    roles = by_name(rendered(None, "ClusterRole", "Role"))

    assert {name: verbs(role) for name, role in roles.items() if ":" in name} == {
        "/finetune-system:finetune-operator": OPERATOR,
        **ANYWHERE,
    }


def test_namespaced_scope_leaves_two_rights_in_the_whole_cluster() -> None:
    values = {"rbac": {"scope": "namespaced"}, "watchNamespaces": ["team-a", "team-b"]}
    roles = by_name(rendered(values, "ClusterRole", "Role"))

    assert {name: verbs(role) for name, role in roles.items() if "finetune-operator-" not in name} == {
        "team-a/finetune-operator": OPERATOR,
        "team-b/finetune-operator": OPERATOR,
        **ANYWHERE,
    }


@pytest.mark.parametrize("values", [{}, {"rbac": {"scope": "namespaced"}, "watchNamespaces": ["team-a"]}], ids=["cluster", "namespaced"])
def test_every_role_of_the_operator_is_bound_to_its_account_alone(values: dict[str, Any]) -> None:
    account = rendered(values, "ServiceAccount")[0]["metadata"]
    roles = {name for name in by_name(rendered(values, "ClusterRole", "Role")) if "finetune-operator-" not in name}
    bindings = by_name(rendered(values, "ClusterRoleBinding", "RoleBinding"))

    assert set(bindings) == roles, "a binding has its role's name"
    for name, binding in bindings.items():
        assert f"{binding['metadata'].get('namespace', '')}/{binding['roleRef']['name']}" == name
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}]


@pytest.mark.parametrize("values", [{}, {"rbac": {"scope": "namespaced"}, "watchNamespaces": ["team-a"]}], ids=["cluster", "namespaced"])
def test_no_role_has_wildcards_secrets_or_exec(values: dict[str, Any]) -> None:
    for role in rendered(values, "ClusterRole", "Role"):
        for resource, allowed in verbs(role).items():
            assert "*" not in resource
            assert "*" not in allowed
            assert resource not in {"/secrets", "/pods/exec", "/serviceaccounts/token"}
            assert resource != "/nodes" or allowed == {"list"}
            assert not allowed & {"escalate", "bind", "impersonate"}


def test_users_get_the_kinds_through_kubernetes_own_roles() -> None:
    roles = by_name(rendered(None, "ClusterRole"))
    edit, view = roles["/finetune-operator-edit"], roles["/finetune-operator-view"]

    assert {label for label in edit["metadata"]["labels"] if "aggregate" in label} == {
        "rbac.authorization.k8s.io/aggregate-to-admin",
        "rbac.authorization.k8s.io/aggregate-to-edit",
    }
    assert {label for label in view["metadata"]["labels"] if "aggregate" in label} == {"rbac.authorization.k8s.io/aggregate-to-view"}
    assert {verbs(edit)[resource] == ALL | {"update", "deletecollection"} for resource in USERS} == {True}
    assert {verbs(view)[resource] == READ for resource in USERS} == {True}
    assert "patch" not in verbs(edit)["finetune.dev/finetunejobs/status"], "a status is the operator's word"


def test_the_right_to_list_nodes_can_be_left_out() -> None:
    assert [name for name in by_name(rendered({"rbac": {"nodes": False}}, "ClusterRole", "ClusterRoleBinding")) if name.endswith(":nodes")] == []


def test_users_roles_can_be_left_out() -> None:
    assert [name for name in by_name(rendered({"rbac": {"aggregate": False}}, "ClusterRole")) if "finetune-operator-" in name] == []


def test_an_account_of_ones_own() -> None:
    values = {"serviceAccount": {"create": False, "name": "mine"}}

    assert rendered(values, "ServiceAccount") == []
    assert {binding["subjects"][0]["name"] for binding in rendered(values, "ClusterRoleBinding")} == {"mine"}
    assert rendered(values, "Deployment")[0]["spec"]["template"]["spec"]["serviceAccountName"] == "mine"
