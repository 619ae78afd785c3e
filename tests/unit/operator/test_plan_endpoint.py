"""Decisions about a ModelEndpoint: traffic moves only to pods that have answered."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.api.modelendpoint import Candidate, ModelEndpointStatus
from finetune_operator.observe import DeploymentView, PodView
from finetune_operator.plan.endpoint import decide, version_name
from finetune_operator.plan.types import Plan

from .makers import ADAPTER, NOW, SETTINGS, START, condition, ended, endpoint_state, names, result

NEW = {"job": "support", "jobUid": "uid-2", "adapter": ADAPTER}
OLD_NAME = "support-00000000"
OLD = {"name": OLD_NAME, "role": "Current", "job": "older", "jobUid": "uid-0", "adapter": ADAPTER}


def wanted(**spec: Any) -> str:
    seen = endpoint_state(spec={"candidate": NEW, **spec})
    assert seen.spec.candidate
    return version_name("support", seen.spec, seen.spec.candidate, SETTINGS)


def deployment(name: str, ready: int = 0, **fields: Any) -> DeploymentView:
    return DeploymentView(**{"name": name, "owner_uid": "uid-1", "replicas": 1, "ready": ready, "current": True, "deleting": False, **fields})


def serving_pod(version: str, **fields: Any) -> PodView:
    values: dict[str, Any] = {
        "name": f"{version}-p", "uid": "p", "parent": version, "owner_name": "support", "phase": "Pending", "node": "n1", "created_at": START, "deleting": False,
        "running": False, "ready": False, "waiting_reason": "", "waiting_message": "", "unschedulable": "", "restarts": 0, "ended": None,
    }  # fmt: skip
    return PodView(**{**values, **fields})


def selector(plan: Plan) -> str:
    services = [b for b in plan.apply if b["kind"] == "Service"]
    return str(services[0]["spec"]["selector"]["finetune.dev/version"])


def after(seen: Any, plan: Plan) -> Any:
    return replace(seen, status=ModelEndpointStatus.model_validate(plan.status))


def test_without_a_version_it_says_what_it_waits_for() -> None:
    plan = decide(endpoint_state(), SETTINGS, NOW)
    assert (plan.apply, plan.status["reason"]) == ((), "NoVersion")


def test_the_first_candidate_gets_its_pods_and_the_stable_name() -> None:
    plan = decide(endpoint_state(spec={"candidate": NEW}), SETTINGS, NOW)
    assert names(plan.apply) == [f"ConfigMap/{wanted()}", f"Deployment/{wanted()}", "Service/support"]
    assert [(v["name"], v["role"]) for v in plan.status["versions"]] == [(wanted(), "Candidate")]
    assert plan.status["url"] == "http://support.team.svc.cluster.local/v1"


def test_a_candidate_that_answers_becomes_current() -> None:
    plan = decide(endpoint_state(deployment(wanted(), ready=1), spec={"candidate": NEW}), SETTINGS, NOW)
    assert [(v["name"], v["role"]) for v in plan.status["versions"]] == [(wanted(), "Current")]
    assert (condition(plan, "Ready")["status"], condition(plan, "Progressing")["reason"], plan.status["readyReplicas"]) == ("True", "UpToDate", 1)


class TestRollout:
    def seen(self, ready: int, **fields: Any) -> Any:
        return endpoint_state(deployment(OLD_NAME, ready=1), deployment(wanted(), ready=ready), spec={"candidate": NEW}, status={"versions": [OLD]}, **fields)

    def test_the_old_version_keeps_the_traffic_while_the_new_one_starts(self) -> None:
        plan = decide(self.seen(0), SETTINGS, NOW)
        assert (selector(plan), plan.delete) == (OLD_NAME, ())
        assert (condition(plan, "Ready")["status"], condition(plan, "Progressing")["status"]) == ("True", "True")

    def test_traffic_moves_when_the_new_one_answers_and_the_old_pods_go_a_round_later(self) -> None:
        seen = self.seen(1)
        moved = decide(seen, SETTINGS, NOW)
        assert (selector(moved), moved.delete, moved.requeue_after) == (wanted(), (), 5)
        later = decide(after(seen, moved), SETTINGS, NOW + 5)
        assert [(r.kind, r.name) for r in later.delete] == [("Deployment", OLD_NAME), ("ConfigMap", OLD_NAME)]

    def test_a_deployment_whose_status_is_of_an_older_spec_is_not_up(self) -> None:
        seen = endpoint_state(
            deployment(OLD_NAME, ready=1), deployment(wanted(), ready=1, current=False), spec={"candidate": NEW}, status={"versions": [OLD]}
        )  # fmt: skip
        assert selector(decide(seen, SETTINGS, NOW)) == OLD_NAME

    def test_a_version_that_lost_the_race_is_dropped(self) -> None:
        seen = endpoint_state(deployment(OLD_NAME, ready=1), deployment("support-lost"), spec={"candidate": NEW}, status={"versions": [OLD]})
        assert [r.name for r in decide(seen, SETTINGS, NOW).delete] == ["support-lost", "support-lost"]

    def test_a_current_version_stays_current_while_its_pods_restart(self) -> None:
        status = {"versions": [{**OLD, "name": wanted()}]}
        plan = decide(endpoint_state(deployment(wanted(), ready=0), spec={"candidate": NEW}, status=status), SETTINGS, NOW)
        assert [v["role"] for v in plan.status["versions"]] == ["Current"]
        assert condition(plan, "Ready")["status"] == "False"


FETCH_BROKEN = ended(40, result("fetch", "AccessDenied", "the storage refused the credentials"), container="fetch")
WHY = [
    ("fetching is shown as rolling out", {}, "RollingOut", "fetches the model"),
    ("loading is shown as rolling out", {"running": True, "phase": "Running"}, "RollingOut", "loads the model"),
    ("no GPU free is the scheduler's word", {"unschedulable": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."}, "Unschedulable", "Insufficient"),
    ("a failing download tells why", {"waiting_reason": "CrashLoopBackOff", "ended": FETCH_BROKEN}, "FetchFailed", "refused the credentials"),
    ("a crashing engine tells how it ended", {"waiting_reason": "CrashLoopBackOff", "ended": ended(1, "no GPU")}, "CrashLoop", "exit code 1"),
    ("a missing Secret is named", {"waiting_reason": "CreateContainerConfigError", "waiting_message": 'secret "s3" not found'}, "SecretNotFound", '"s3"'),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "reason", "words"), [c[1:] for c in WHY], ids=[c[0] for c in WHY])
def test_why_a_version_is_not_up(fields: dict[str, Any], reason: str, words: str) -> None:
    plan = decide(endpoint_state(deployment(wanted()), serving_pod(wanted(), **fields), spec={"candidate": NEW}), SETTINGS, NOW)
    assert condition(plan, "Ready")["reason"] == reason
    assert words in condition(plan, "Progressing")["message"]


def test_only_replicas_change_without_a_new_version() -> None:
    assert wanted() == wanted(replicas=5)
    assert len({wanted(), wanted(engine="Swift"), wanted(maxLength=64), wanted(quantization="None"), wanted(servedName="x")}) == 5
    other = Candidate.model_validate({**NEW, "adapter": {**ADAPTER, "manifestSha256": "c" * 64}})
    assert version_name("support", endpoint_state().spec, other, SETTINGS) != wanted()


def test_scaled_to_zero_is_said_plainly() -> None:
    plan = decide(endpoint_state(deployment(wanted()), spec={"candidate": NEW, "replicas": 0}), SETTINGS, NOW)
    assert condition(plan, "Ready")["reason"] == "ScaledToZero"


def test_somebody_elses_service_is_never_taken_over() -> None:
    plan = decide(endpoint_state(spec={"candidate": NEW}, conflicts=("Service support",)), SETTINGS, NOW)
    assert (plan.apply, plan.status["reason"]) == ((), "NameConflict")


def test_a_deployment_of_another_owner_is_neither_used_nor_deleted() -> None:
    foreign = deployment(wanted(), ready=1, owner_uid="someone")
    plan = decide(endpoint_state(foreign, spec={"candidate": NEW}), SETTINGS, NOW)
    assert ([v["role"] for v in plan.status["versions"]], plan.delete) == (["Candidate"], ())


def test_a_settled_status_is_stable() -> None:
    seen = endpoint_state(deployment(wanted(), ready=1), spec={"candidate": NEW})
    first = decide(seen, SETTINGS, NOW)
    again = after(seen, first)
    assert decide(again, SETTINGS, NOW + 60).status == decide(after(again, decide(again, SETTINGS, NOW + 60)), SETTINGS, NOW + 120).status
