"""Serving pods as the API server gets them."""

from typing import Any

import pytest

from finetune_operator.build import config as build_config
from finetune_operator.build import serving
from finetune_runtime.contract.config import DRAINING, SCRATCH_DIR

from .makers import SETTINGS, endpoint_state, owner
from .story import candidate


def deployment(model_bytes: int | None = None, replicas: int = 2, **spec: Any) -> dict[str, Any]:
    seen = endpoint_state(spec={"candidate": candidate("a"), **spec})
    return serving.deployment(owner("ModelEndpoint"), seen.spec, SETTINGS, "support-1", replicas, model_bytes)


def pod(**spec: Any) -> dict[str, Any]:
    found: dict[str, Any] = deployment(**spec)["spec"]["template"]["spec"]
    return found


LOADS = [("nobody knows how large", None, 3600), ("a small model", 300_000_000, 630), ("8 billion parameters in 16 bits", 16_000_000_000, 2200)]


@pytest.mark.parametrize(("model_bytes", "seconds"), [c[1:] for c in LOADS], ids=[c[0] for c in LOADS])
def test_engines_get_time_to_load_by_the_bytes_of_the_model(model_bytes: int | None, seconds: int) -> None:
    probe = pod(model_bytes=model_bytes)["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == seconds


def test_a_pod_that_has_to_end_answers_until_every_proxy_has_heard_of_it() -> None:
    found = pod()
    shell, option, script = found["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, option) == ("sh", "-c")
    told, waits = script.split("; ")
    assert told == f"touch {SCRATCH_DIR}/{DRAINING}", "at the start, so that kept connections are closed while the pod still answers"
    assert {"name": "scratch", "mountPath": SCRATCH_DIR} in found["containers"][0]["volumeMounts"]
    assert found["terminationGracePeriodSeconds"] >= int(waits.removeprefix("sleep ")) + 60


def test_pods_of_a_version_spread_over_nodes_and_are_replaced_one_by_one_without_a_gap() -> None:
    body = deployment()
    spread = body["spec"]["template"]["spec"]["topologySpreadConstraints"][0]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert body["spec"]["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    assert deployment(strategy={"type": "Recreate"})["spec"]["strategy"] == {"type": "Recreate"}


def test_the_init_container_fills_the_cache_and_the_engine_only_reads_it() -> None:
    found = pod(resources={"cacheClaim": "models"}, model={"source": "pvc://base/qwen"})
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}} in found["volumes"]
    mounts = {c["name"]: {m["mountPath"]: m.get("readOnly", False) for m in c["volumeMounts"]} for c in [*found["initContainers"], *found["containers"]]}
    assert (mounts["fetch"]["/cache"], mounts["main"]["/cache"]) == (False, True)
    assert mounts["fetch"]["/sources/pvc/base"] is True
    seen = endpoint_state(spec={"candidate": candidate("a"), "resources": {"cacheClaim": "models"}})
    assert seen.spec.candidate
    assert build_config.serve_config("support", seen.spec, {"": seen.spec.candidate.adapter}, SETTINGS).cache is True


def test_a_drain_takes_one_pod_of_the_version_with_the_traffic_at_a_time() -> None:
    budget = serving.disruption_budget(owner("ModelEndpoint"), "support-1")
    assert budget["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": {"finetune.dev/endpoint": "support", "finetune.dev/version": "support-1"}}}
