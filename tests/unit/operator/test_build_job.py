"""Pods of a job's steps."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.build.config import job_config
from finetune_operator.build.job import step_job
from finetune_operator.names import Step

from .makers import SETTINGS, owner, state


def pod(step: Step, **resources: Any) -> dict[str, Any]:
    job = step_job(owner(), state(spec={"resources": resources}).spec, SETTINGS, step, 1)
    found: dict[str, Any] = job["spec"]["template"]["spec"]
    return found


def scratch(step: Step, **resources: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    made = pod(step, **resources)
    [volume] = [volume for volume in made["volumes"] if volume["name"] == "scratch"]
    [mount] = [mount for mount in made["containers"][0]["volumeMounts"] if mount["name"] == "scratch"]
    return volume, mount


def test_the_scratch_volume_is_the_nodes_disk_with_a_limit() -> None:
    volume, mount = scratch(Step.TRAIN, scratch="30Gi")
    assert volume["emptyDir"] == {"sizeLimit": "30Gi"}
    assert "subPath" not in mount


def test_a_claim_gives_each_training_a_directory_of_its_own_that_outlives_its_pods() -> None:
    volume, mount = scratch(Step.TRAIN, scratchClaim="fast")
    assert volume["persistentVolumeClaim"] == {"claimName": "fast"}
    assert "emptyDir" not in volume
    assert mount["subPath"] == "finetune/uid-1"


def test_the_check_of_the_data_does_not_use_the_claim_which_may_be_bound_to_a_gpu_node() -> None:
    volume, mount = scratch(Step.PREPARE, scratchClaim="fast")
    assert "emptyDir" in volume
    assert "subPath" not in mount


@pytest.mark.parametrize(("gpus", "shared"), [(1, "2Gi"), (2, "3Gi"), (8, "9Gi")])
def test_a_training_pod_asks_for_all_gpus_of_the_job_and_its_processes_get_shared_memory(gpus: int, shared: str) -> None:
    made = pod(Step.TRAIN, gpus=gpus)
    resources = made["containers"][0]["resources"]
    assert [resources[kind]["nvidia.com/gpu"] for kind in ("requests", "limits")] == [str(gpus)] * 2
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared}} in made["volumes"]
    assert job_config(owner(), state(spec={"resources": {"gpus": gpus}}).spec, SETTINGS).gpus == gpus


def test_the_check_of_the_data_takes_no_gpu() -> None:
    made = pod(Step.PREPARE, gpus=8)
    assert "nvidia.com/gpu" not in str(made["containers"][0]["resources"])
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}} in made["volumes"]


@pytest.mark.parametrize(("storage", "seconds"), [({}, 600), ({"timeoutSeconds": 30}, 30)])
def test_how_long_storage_may_be_down_reaches_the_pod(storage: dict[str, Any], seconds: int) -> None:
    spec = state().spec
    spec = spec.model_copy(update={"storage": type(spec.storage).model_validate({**spec.storage.dump(), **storage})})
    assert job_config(owner(), spec, SETTINGS).storage_timeout_seconds == seconds


@pytest.mark.parametrize("step", Step)
def test_pods_know_what_the_administrator_says_about_sources(step: Step) -> None:
    def environment(**changes: Any) -> dict[str, str]:
        job = step_job(owner(), state().spec, replace(SETTINGS, **changes), step, 1)
        return {entry["name"]: entry.get("value", "") for entry in job["spec"]["template"]["spec"]["containers"][0]["env"]}

    assert not {"HF_ENDPOINT", "FINETUNE_ALLOWED_CIDRS"} & set(environment())
    found = environment(hub_endpoint="https://hub.example.com", allowed_cidrs=("10.1.0.0/16", "fd00::/8"))
    assert (found["HF_ENDPOINT"], found["FINETUNE_ALLOWED_CIDRS"]) == ("https://hub.example.com", "10.1.0.0/16,fd00::/8")
