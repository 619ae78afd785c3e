"""What a ModelEndpoint says of itself, and what makes a version; rollouts and the gate have tables of their own."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.api.modelendpoint import ModelEndpointStatus
from finetune_operator.observe import DeploymentView
from finetune_operator.plan.endpoint import decide
from finetune_operator.plan.versions import version_of
from finetune_runtime.contract.config import AdapterRef

from .makers import ADAPTER, NOW, SETTINGS, condition, ended, endpoint_state, result
from .story import Story, candidate, serving_pod

NEW = {"job": "support", "jobUid": "uid-2", "adapter": ADAPTER}


def wanted(**spec: Any) -> str:
    seen = endpoint_state(spec={"candidate": NEW, **spec})
    return version_of("support", seen.spec, {"": AdapterRef.model_validate(ADAPTER)}, SETTINGS)


def deployment(name: str, ready: int = 0, **fields: Any) -> DeploymentView:
    return DeploymentView(**{"name": name, "owner_uid": "uid-1", "replicas": 1, "ready": ready, "current": True, "deleting": False, **fields})


def test_without_a_version_it_says_what_it_waits_for() -> None:
    plan = decide(endpoint_state(), SETTINGS, NOW)
    assert (plan.apply, plan.status["reason"]) == ((), "NoVersion")
    assert plan.status["url"] == "http://support.team.svc.cluster.local/v1"


def test_a_deployment_whose_status_is_of_an_older_spec_is_not_up() -> None:
    plan = decide(endpoint_state(deployment(wanted(), ready=1, current=False), spec={"candidate": NEW}), SETTINGS, NOW)
    assert [v["role"] for v in plan.status["versions"]] == ["Candidate"]


def test_a_current_version_stays_current_while_its_pods_restart() -> None:
    status = {"versions": [{"name": wanted(), "role": "Current", "job": "support", "jobUid": "uid-2", "adapter": ADAPTER}]}
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
    assert wanted() == wanted(replicas=5) == wanted(gate={"prompts": []}, keepPrevious=2, version="x", strategy={"type": "Recreate"}, autoRollback=False)
    assert len({wanted(), wanted(engine="Swift"), wanted(maxLength=64), wanted(quantization="None"), wanted(servedName="x")}) == 5
    other = AdapterRef.model_validate({**ADAPTER, "manifestSha256": "c" * 64})
    assert version_of("support", endpoint_state().spec, {"": other}, SETTINGS) != wanted()


def test_scaled_to_zero_is_said_plainly_and_takes_the_version_over() -> None:
    story = Story(replicas=0, candidate=candidate("a"))
    story.look()
    assert (story.status["reason"], story.roles(), story.replicas) == ("ScaledToZero", {"a": "Current"}, {story.name("a"): 0})


def test_somebody_elses_service_is_never_taken_over() -> None:
    plan = decide(endpoint_state(spec={"candidate": NEW}, conflicts=("Service support",)), SETTINGS, NOW)
    assert (plan.apply, plan.status["reason"]) == ((), "NameConflict")


def test_a_deployment_of_another_owner_is_neither_used_nor_deleted() -> None:
    foreign = deployment(wanted(), ready=1, owner_uid="someone")
    plan = decide(endpoint_state(foreign, spec={"candidate": NEW}), SETTINGS, NOW)
    assert ([v["role"] for v in plan.status["versions"]], plan.delete) == (["Candidate"], ())


UNREADABLE = [
    ({"regex": "("}, "prompts[room].expect.regex: missing )"),
    ({"regex": "a{99999999999}"}, "prompts[room].expect.regex: the repetition number is too large"),
    ({"jsonSchema": "{"}, "prompts[room].expect.jsonSchema is not JSON"),
    ({"jsonSchema": "[" * 8000}, "prompts[room].expect.jsonSchema is not JSON"),
]


@pytest.mark.parametrize(("expect", "words"), UNREADABLE, ids=["a regular expression", "one of absurd size", "no JSON", "JSON too deep to read"])
def test_a_gate_that_cannot_be_read_is_named(expect: dict[str, str], words: str) -> None:
    gate = {"prompts": [{"name": "room", "prompt": "?", "expect": expect}]}
    plan = decide(endpoint_state(spec={"candidate": NEW, "gate": gate}), SETTINGS, NOW)
    assert (plan.apply, plan.status["reason"]) == ((), "InvalidSpec")
    assert words in condition(plan, "Progressing")["message"]


def test_a_settled_status_is_stable() -> None:
    seen = endpoint_state(deployment(wanted(), ready=1), spec={"candidate": NEW})
    first = decide(seen, SETTINGS, NOW)
    again = replace(seen, status=ModelEndpointStatus.model_validate(first.status))
    assert decide(again, SETTINGS, NOW + 60).status == first.status
