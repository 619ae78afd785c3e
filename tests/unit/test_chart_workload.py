"""What the chart makes of its values: the operator's pod, its Service and the optional objects."""

from typing import Any

import pytest
import yaml

from finetune_operator import names, settings
from finetune_runtime.contract.config import ADAPTERS_PORT
from hack.generate import ROOT
from hack.helm import RELEASE, HelmError, objects

DIGEST = "sha256:" + "0" * 64


def render(values: dict[str, Any] | None = None, *options: str, release: str = RELEASE) -> list[dict[str, Any]]:
    return objects(ROOT, values, *options, release=release)


def only(found_in: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    found = [o for o in found_in if o["kind"] == kind and name in {None, o["metadata"]["name"]}]
    assert len(found) == 1, f"{kind} {name}: {[o['metadata']['name'] for o in found]}"
    return found[0]


def pod(values: dict[str, Any] | None = None) -> dict[str, Any]:
    spec: dict[str, Any] = only(render(values), "Deployment")["spec"]["template"]["spec"]
    return spec


def environment(values: dict[str, Any] | None = None) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "(field)") for entry in pod(values)["containers"][0]["env"]}


def test_two_operators_never_run_at_once() -> None:
    spec = only(render(), "Deployment")["spec"]

    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


@pytest.mark.parametrize(("kind", "name"), [("Deployment", "finetune-operator"), ("Pod", "finetune-operator-test")])
def test_pods_meet_the_restricted_pod_security_standard(kind: str, name: str) -> None:
    found = only(render(), kind, name)
    spec = found["spec"]["template"]["spec"] if kind == "Deployment" else found["spec"]

    assert spec["securityContext"] == {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    for container in spec["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["limits"]["memory"]
    assert [volume for volume in spec.get("volumes", []) if "emptyDir" not in volume] == []


def test_the_pod_is_probed_where_it_serves_metrics() -> None:
    container = pod()["containers"][0]

    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    assert {"name": "metrics", "containerPort": 8080} in container["ports"]
    assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"], "the root file system is read-only"


def test_the_environment_with_default_values() -> None:
    assert environment() == {
        "POD_NAMESPACE": "(field)",
        "POD_NAME": "(field)",
        "FINETUNE_TRAINER_IMAGE": "finetune-dev/trainer:0.1.0",
        "FINETUNE_INFERENCE_IMAGE": "finetune-dev/inference:0.1.0",
        "FINETUNE_IMAGE_PULL_POLICY": "IfNotPresent",
        "FINETUNE_IMAGE_PULL_SECRETS": "",
        "FINETUNE_ALLOW_CPU": "false",
        "FINETUNE_HUB_ENDPOINT": "",
        "FINETUNE_ALLOWED_CIDRS": "",
        "FINETUNE_WATCH_NAMESPACES": "",
        "FINETUNE_STATUS_URL": "https://finetune-operator-status.finetune-system.svc",
        "FINETUNE_STATUS_PORT": "8443",
        "FINETUNE_METRICS_PORT": "8080",
        "FINETUNE_LOG_FORMAT": "json",
    }


def test_the_operator_reads_what_the_chart_writes() -> None:
    values = {
        "allowCPU": True,
        "logFormat": "plain",
        "watchNamespaces": ["team-a", "team-b"],
        "imagePullPolicy": "Never",
        "imagePullSecrets": [{"name": "registry"}, {"name": "mirror"}],
        "image": {"trainer": {"repository": "t", "tag": "1"}, "inference": {"repository": "i", "tag": "2"}},
        "sources": {"hubEndpoint": "https://hub.example.com/", "allowedCIDRs": ["10.1.0.0/16", "fd00::/8"]},
        "extraEnv": [{"name": "FINETUNE_WORKERS", "value": "2"}],
    }

    assert settings.load(environment(values)) == settings.Settings(
        trainer_image="t:1",
        inference_image="i:2",
        pull_policy="Never",
        pull_secrets=("registry", "mirror"),
        allow_cpu=True,
        hub_endpoint="https://hub.example.com",
        allowed_cidrs=("10.1.0.0/16", "fd00::/8"),
        watch_namespaces=("team-a", "team-b"),
        status_url="https://finetune-operator-status.finetune-system.svc",
        status_port=8443,
        metrics_port=8080,
        log_format="plain",
        workers=2,
    )
    assert pod(values)["imagePullSecrets"] == [{"name": "registry"}, {"name": "mirror"}]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param({}, "finetune-dev/operator:0.1.0", id="the chart's own version by default"),
        pytest.param({"operator": {"tag": "main"}}, "finetune-dev/operator:main", id="a tag"),
        pytest.param({"operator": {"tag": "main", "digest": DIGEST}}, f"finetune-dev/operator@{DIGEST}", id="a digest wins over a tag"),
        pytest.param({"registry": "reg.example.com/ml"}, "reg.example.com/ml/finetune-dev/operator:0.1.0", id="a registry with a path"),
        pytest.param({"registry": "reg.example.com/"}, "reg.example.com/finetune-dev/operator:0.1.0", id="a registry with a slash too many"),
    ],
)
def test_image_references(image: dict[str, Any], expected: str) -> None:
    assert pod({"image": image})["containers"][0]["image"] == expected


def test_where_the_pod_runs_and_what_it_carries() -> None:
    values = {
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "system-cluster-critical",
        "podAnnotations": {"note": "1"},
        "podLabels": {"team": "ml"},
        "resources": {"limits": {"memory": "1Gi"}},
    }
    deployment = only(render(values), "Deployment")
    template_, spec = deployment["spec"]["template"], deployment["spec"]["template"]["spec"]

    assert {key: spec[key] for key in ("nodeSelector", "tolerations", "affinity", "priorityClassName")} == {
        key: values[key] for key in ("nodeSelector", "tolerations", "affinity", "priorityClassName")
    }
    assert template_["metadata"]["annotations"]["note"] == "1"
    assert template_["metadata"]["labels"]["team"] == "ml"
    assert spec["containers"][0]["resources"]["limits"] == {"memory": "1Gi"}


def test_the_service_selects_the_operator_and_never_a_pod_that_the_operator_made() -> None:
    rendered = render(release="support")
    service, deployment = only(rendered, "Service"), only(rendered, "Deployment")
    of_a_job_with_the_release_name = names.labels("support", "job")

    assert service["metadata"]["name"] == "support-finetune-operator-status"
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert not service["spec"]["selector"].items() <= of_a_job_with_the_release_name.items()
    assert {port["port"]: port["targetPort"] for port in service["spec"]["ports"]} == {443: "status", 8080: "metrics"}


def test_the_longest_names_still_fit_a_service() -> None:
    assert len(only(render(release="r" * 53), "Service")["metadata"]["name"]) <= 63


@pytest.mark.parametrize(("install", "keep"), [(True, True), (True, False), (False, True)])
def test_crds_can_be_left_out_or_given_up(install: bool, keep: bool) -> None:
    crds = [o for o in render({"crds": {"install": install, "keep": keep}}) if o["kind"] == "CustomResourceDefinition"]

    assert sorted(crd["metadata"]["name"] for crd in crds) == (["finetunejobs.finetune.dev", "modelendpoints.finetune.dev"] if install else [])
    assert {(crd["metadata"].get("annotations") or {}).get("helm.sh/resource-policy") for crd in crds} == ({"keep" if keep else None} if install else set())


def test_the_charts_crds_are_the_manifests() -> None:
    for crd in (o for o in render() if o["kind"] == "CustomResourceDefinition"):
        manifest = yaml.safe_load((ROOT / f"manifests/crds/{crd['spec']['names']['plural']}.yaml").read_text())
        assert crd["spec"] == manifest["spec"]


def test_a_service_monitor_needs_its_kind_in_the_cluster() -> None:
    wanted = {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}}
    has_kind = ("--api-versions", "monitoring.coreos.com/v1")

    assert [o for o in render(wanted) + render(None, *has_kind) if o["kind"] == "ServiceMonitor"] == []
    rendered = render(wanted, *has_kind)
    monitor = only(rendered, "ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= only(rendered, "Service")["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"] == [{"port": "metrics", "interval": "30s", "honorLabels": True}]


def test_a_network_policy_on_demand() -> None:
    assert [o for o in render() if o["kind"] == "NetworkPolicy"] == []
    rendered = render({"networkPolicy": {"enabled": True, "apiServerPorts": [6443], "metricsFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}]}})
    spec = only(rendered, "NetworkPolicy")["spec"]

    assert spec["podSelector"]["matchLabels"] == only(rendered, "Deployment")["spec"]["selector"]["matchLabels"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"][0] == {"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP", "port": "status"}]}
    assert spec["ingress"][1]["from"] == [{"podSelector": {"matchLabels": {"app": "prometheus"}}}]
    serving = {"namespaceSelector": {}, "podSelector": {"matchLabels": {names.LABEL_MANAGED_BY: names.FIELD_MANAGER}}}
    assert spec["egress"][1] == {"to": [serving], "ports": [{"protocol": "TCP", "port": ADAPTERS_PORT}]}
    assert spec["egress"][2] == {"ports": [{"protocol": "TCP", "port": 6443}]}


REFUSED = [
    pytest.param({"replicas": 2}, "replicas", id="an unknown value"),
    pytest.param({"image": {"operater": {}}}, "operater", id="a misspelt section"),
    pytest.param({"image": {"operator": {"repository": ""}}}, "/image/operator/repository", id="no repository"),
    pytest.param({"image": {"trainer": {"digest": "abc"}}}, "/image/trainer/digest", id="a digest that is none"),
    pytest.param({"imagePullPolicy": "Sometimes"}, "/imagePullPolicy", id="an unknown pull policy"),
    pytest.param({"imagePullSecrets": ["registry"]}, "/imagePullSecrets/0", id="a secret without the key name"),
    pytest.param({"allowCPU": "yes"}, "/allowCPU", id="a text for a switch"),
    pytest.param({"logFormat": "xml"}, "/logFormat", id="an unknown log format"),
    pytest.param({"sources": {"hubEndpoint": "hub.example.com"}}, "/sources/hubEndpoint", id="a hub without its scheme"),
    pytest.param({"sources": {"allowedCIDRs": ["mirror.example.com"]}}, "/sources/allowedCIDRs/0", id="a host for a network"),
    pytest.param({"watchNamespaces": ["Team A"]}, "/watchNamespaces/0", id="a name that no namespace can have"),
    pytest.param({"rbac": {"scope": "global"}}, "/rbac/scope", id="an unknown scope"),
    pytest.param({"networkPolicy": {"apiServerPorts": []}}, "/networkPolicy/apiServerPorts", id="no port for the API server"),
    pytest.param({"rbac": {"scope": "namespaced"}}, "name the namespaces", id="namespaced rights without namespaces"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_wrong_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(HelmError, match=message):
        render(values)


def test_every_default_value_is_described_in_the_schema() -> None:
    """hack/generate.py refuses a value without a description; this finds one that the schema does not know at all."""
    values = yaml.safe_load((ROOT / "charts/finetune-operator/values.yaml").read_text())

    assert render(values) == render()
