"""Last steps of a FineTuneJob: its gate, and what its endpoint says of its version."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.api.modelendpoint import ModelEndpointSpec, ModelEndpointStatus
from finetune_operator.build.endpoint import proposal, proposed_name
from finetune_operator.names import candidate_manager
from finetune_operator.plan.job import decide
from finetune_operator.plan.types import EndpointView

from .makers import ADAPTER, NOW, PREPARED_STEP, SETTINGS, SPEC, START, TRAINED_STEP, condition, names, settle, state


def view(candidate_uid: str = "", base: str = "s3://models/base", *, progressing: str = "", version: str | None = None, **record: Any) -> EndpointView:
    """The endpoint as the job sees it. `record`: the version of the job itself."""
    spec: dict[str, Any] = {"model": {"source": base}, "storage": SPEC["storage"], "version": version}
    if candidate_uid:
        spec["candidate"] = {"job": candidate_uid.removeprefix("uid-"), "jobUid": candidate_uid, "adapter": ADAPTER}
    versions = [{"name": "v", "job": "support", "jobUid": "uid-1", "adapter": ADAPTER, **record}] if record else []
    conditions = [{"type": "Progressing", "status": "True", "reason": progressing, "message": "m", "lastTransitionTime": START}] if progressing else []
    status = ModelEndpointStatus.model_validate({"url": "http://support/v1", "versions": versions, "conditions": conditions})
    return EndpointView(owner_uid="uid-1", spec=ModelEndpointSpec.model_validate(spec), status=status)


class TestDeploy:
    def seen(self, existing: EndpointView | None, status: dict[str, Any] | None = None, **inference: Any) -> Any:
        return state(PREPARED_STEP, TRAINED_STEP, spec={"inference": inference}, endpoint=existing, status=status)

    def test_an_endpoint_without_a_name_is_owned_by_the_job(self) -> None:
        body = settle(self.seen(None)).create[0]
        assert body["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
        assert body["spec"]["candidate"]["adapter"] == ADAPTER

    def test_an_endpoint_with_a_name_outlives_the_job(self) -> None:
        body = settle(self.seen(None, endpoint="desk")).create[0]
        assert body["metadata"]["name"] == "desk"
        assert "ownerReferences" not in body["metadata"]

    def test_an_existing_endpoint_gets_a_proposal_of_the_candidate_only(self) -> None:
        plan = decide(self.seen(view("uid-another"), endpoint="desk"), SETTINGS, NOW)
        assert [list(b["spec"]) for b in plan.propose] == [["candidate"]]
        assert plan.status["endpoint"]["proposed"] is True

    def test_an_endpoint_of_another_base_model_is_never_touched(self) -> None:
        plan = settle(self.seen(view("uid-another", base="s3://models/other"), endpoint="desk"))
        assert (plan.propose, condition(plan, "Deployed")["status"]) == ((), "False")

    def test_the_job_succeeds_only_when_its_own_version_has_the_traffic(self) -> None:
        assert settle(self.seen(view("uid-1", role="Candidate"))).status["phase"] == "Deploying"
        plan = settle(self.seen(view("uid-1", role="Current")))
        assert (plan.status["phase"], plan.status["endpoint"]["url"], plan.status["endpoint"]["version"]) == ("Succeeded", "http://support/v1", "v")

    ENDS = (
        ("given up", {"role": "Rejected", "reason": "CrashLoop", "message": "it crashes"}, "CrashLoop", "it crashes"),
        ("given up after it had the traffic", {"role": "Rejected", "served": True, "reason": "CrashLoop", "message": "it crashes"}, "CrashLoop", "it crashes"),
        ("never merged", {"role": "Rejected", "reason": "MergeFailed", "message": "it has DoRA"}, "MergeFailed", "it has DoRA"),
        ("overtaken", {"role": "Retired", "reason": "Superseded"}, "Superseded", "was given another version by job another"),
    )

    @pytest.mark.parametrize(("record", "reason", "words"), [c[1:] for c in ENDS], ids=[c[0] for c in ENDS])
    def test_the_job_fails_with_its_version(self, record: dict[str, Any], reason: str, words: str) -> None:
        plan = settle(self.seen(view("uid-another", **record), endpoint="desk"))
        assert (plan.status["phase"], plan.status["reason"], plan.propose) == ("Failed", reason, ())
        assert words in plan.status["message"]

    def test_a_job_proposes_once_and_gives_way_to_the_next(self) -> None:
        first = settle(self.seen(view("uid-another"), endpoint="desk"))
        told = settle(self.seen(view("uid-1"), first.status, endpoint="desk"))
        assert (told.status["endpoint"]["proposed"], told.propose) == (True, ())
        plan = settle(self.seen(view("uid-another"), told.status, endpoint="desk"))
        assert (plan.propose, plan.status["phase"], plan.status["reason"]) == ((), "Failed", "Superseded")

    def test_one_that_had_the_traffic_before_the_next_came_has_succeeded(self) -> None:
        assert settle(self.seen(view("uid-another", role="Previous"), endpoint="desk")).status["phase"] == "Succeeded"

    def test_a_pinned_endpoint_is_named_as_what_the_job_waits_for(self) -> None:
        plan = settle(self.seen(view("uid-1", version="old"), endpoint="desk"))
        assert (plan.status["phase"], plan.status["reason"]) == ("Deploying", "Pinned")

    def test_what_holds_the_endpoint_up_is_shown(self) -> None:
        assert settle(self.seen(view("uid-1", progressing="Unschedulable", role="Candidate"))).status["reason"] == "Unschedulable"
        assert settle(self.seen(view("uid-1", progressing="RollingOut", role="Candidate"))).status["reason"] == "WaitingForEndpoint"


class TestGate:
    def seen(self, evaluation: dict[str, Any], existing: EndpointView | None = None, *, serve: bool = True) -> Any:
        spec = {"evaluation": evaluation, **({"inference": {}} if serve else {})}
        return state(PREPARED_STEP, TRAINED_STEP, spec=spec, endpoint=existing)

    def test_a_loss_above_its_bound_ends_the_job_before_an_endpoint_hears_of_it(self) -> None:
        plan = settle(self.seen({"evalLoss": {"max": "0.4"}}, view("uid-another")))
        assert (plan.status["phase"], plan.status["reason"], plan.create, plan.propose) == ("Failed", "GateClosed", (), ())
        assert plan.status["evaluation"] == {
            "passed": False, "reasons": ["evaluation loss 0.5 is above evalLoss.max 0.4"], "prompts": 0, "repeats": 0, "failedPrompts": [], "report": "",
        }  # fmt: skip
        assert plan.status["artifact"]["adapter"] == ADAPTER

    def test_a_loss_within_its_bound_is_all_that_a_job_without_endpoint_needs(self) -> None:
        plan = settle(self.seen({"evalLoss": {"max": "0.6"}}, serve=False))
        assert (plan.status["phase"], condition(plan, "Evaluated")["status"]) == ("Succeeded", "True")

    def test_the_gate_travels_with_the_candidate(self) -> None:
        body = settle(self.seen({"prompts": [{"name": "n", "prompt": "?"}]})).create[0]
        assert body["spec"]["candidate"]["evaluation"]["prompts"][0]["name"] == "n"
        assert body["spec"]["candidate"]["evalLoss"] == "0.5"

    def test_the_endpoints_verdict_is_the_jobs(self) -> None:
        prompts = {"prompts": [{"name": "n", "prompt": "?"}]}
        closed = {"passed": False, "reasons": ["pass rate 0.00 is below minPassRate 0.80"], "prompts": 1, "repeats": 3}
        waiting = settle(self.seen(prompts, view("uid-1", progressing="Evaluating", role="Candidate")))
        assert (waiting.status["phase"], condition(waiting, "Evaluated")["status"]) == ("Deploying", "Unknown")
        plan = settle(self.seen(prompts, view("uid-1", role="Rejected", reason="GateClosed", message="no traffic", evaluation=closed)))
        assert (plan.status["phase"], plan.status["reason"], plan.status["message"]) == ("Failed", "GateClosed", "pass rate 0.00 is below minPassRate 0.80")
        passed = settle(self.seen(prompts, view("uid-1", role="Current", evaluation={**closed, "passed": True, "reasons": []})))
        assert (passed.status["phase"], passed.status["evaluation"]["passed"], condition(passed, "Evaluated")["status"]) == ("Succeeded", True, "True")

    def test_an_expectation_that_cannot_be_read_is_refused_before_anything_runs(self) -> None:
        plan = settle(state(spec={"evaluation": {"prompts": [{"name": "n", "prompt": "?", "expect": {"jsonSchema": "{"}}]}, "inference": {}}))
        assert (plan.status["phase"], plan.status["reason"], plan.create) == ("Failed", "InvalidConfig", ())
        assert "spec.evaluation.prompts[n].expect.jsonSchema is not JSON" in plan.status["message"]


MINE = {"name": "rooms", "job": "support", "jobUid": "uid-1", "adapter": ADAPTER}
OTHERS = [{**MINE, "name": f"name-{number}", "jobUid": f"{number}"} for number in range(15)]


class TestNames:
    """Jobs whose adapters are served beside others, under names of their own."""

    def seen(self, existing: EndpointView, status: dict[str, Any] | None = None, served_name: str = "rooms") -> Any:
        inference = {"endpoint": "desk", "servedName": served_name}
        return state(PREPARED_STEP, TRAINED_STEP, spec={"inference": inference}, endpoint=existing, status=status)

    def view(self, *entries: dict[str, Any], versions: tuple[dict[str, Any], ...] = (), **spec: Any) -> EndpointView:
        base = {"model": {"source": "s3://models/base"}, "storage": SPEC["storage"], "candidate": {"job": "first", "jobUid": "uid-first", "adapter": ADAPTER}}
        status = ModelEndpointStatus.model_validate({"url": "http://desk/v1", "versions": versions})
        return EndpointView(owner_uid="uid-1", spec=ModelEndpointSpec.model_validate({**base, "adapters": entries, **spec}), status=status)

    def test_another_name_is_proposed_beside_the_endpoints_own(self) -> None:
        plan = decide(self.seen(self.view()), SETTINGS, NOW)
        assert [(list(b["spec"]), b["spec"]["adapters"][0]["name"], b["spec"]["adapters"][0]["job"]) for b in plan.propose] == [
            (["adapters"], "rooms", "support")
        ]
        assert plan.status["endpoint"]["servedName"] == "rooms"

    @pytest.mark.parametrize(("served_name", "spec"), [("", {}), ("desk", {}), ("help", {"servedName": "help"})], ids=["none", "its name", "what it is called"])
    def test_the_endpoints_own_name_is_the_candidate(self, served_name: str, spec: dict[str, Any]) -> None:
        plan = decide(self.seen(self.view(**spec), served_name=served_name), SETTINGS, NOW)
        assert [list(b["spec"]) for b in plan.propose] == [["candidate"]]
        assert "servedName" not in plan.status["endpoint"]

    def test_each_name_has_a_field_manager_of_its_own(self) -> None:
        managers = [candidate_manager(proposed_name(proposal("team", "desk", {}, name))) for name in ("", "rooms", "bills")]
        assert (managers[0], len(set(managers))) == ("finetune-operator-candidate", 3)

    REFUSED: tuple[tuple[str, tuple[dict[str, Any], ...], dict[str, Any], str], ...] = (
        ("Swift", (), {"engine": "Swift"}, "engine Swift serves one adapter only, so not rooms beside it: set its spec.engine to vLLM"),
        ("Merged", (), {"quantization": "Merged"}, "serves merged weights, which are one model, so not rooms beside it: set its spec.quantization"),
        ("full", tuple(OTHERS), {}, "has 15 names beside its own already, so rooms has no room: remove one from its spec.adapters"),
        ("another base", (), {"model": {"source": "s3://models/other"}}, "serves base model s3://models/other"),
    )

    @pytest.mark.parametrize(("entries", "spec", "words"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
    def test_no_gpu_is_taken_for_what_the_endpoint_could_not_serve(self, entries: tuple[dict[str, Any], ...], spec: dict[str, Any], words: str) -> None:
        seen = self.seen(self.view(*entries, **spec))
        seen = replace(seen, jobs=seen.jobs[:1], pods=seen.pods[:1])  # the data are checked
        plan = settle(seen)
        assert (plan.create, plan.status["phase"], plan.status["reason"]) == ((), "Pending", "WaitingForEndpoint")
        assert (words in plan.status["message"], condition(plan, "Stalled")["reason"]) == (True, "WaitingForEndpoint")
        told = type(seen.status).model_validate(plan.status)
        rests = settle(replace(seen, status=told, spec=seen.spec.model_copy(update={"suspend": True}), live=True))
        assert (rests.status["phase"], condition(rests, "Stalled"), condition(rests, "Deployed")) == ("Suspended", {}, {})
        again = decide(replace(seen, status=told, endpoint=None, live=True), SETTINGS, NOW)
        assert (names(again.create), condition(again, "Deployed"), condition(again, "Stalled")) == (["Job/support-train-1"], {}, {})

    @pytest.mark.parametrize(("entries", "spec", "words"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
    def test_an_endpoint_that_cannot_serve_it_is_not_touched(self, entries: tuple[dict[str, Any], ...], spec: dict[str, Any], words: str) -> None:
        plan = settle(self.seen(self.view(*entries, **spec)))
        assert (plan.propose, plan.status["phase"], condition(plan, "Deployed")["status"]) == ((), "Deploying", "False")
        assert words in plan.status["message"]

    def test_a_full_endpoint_takes_another_adapter_under_a_name_that_it_has(self) -> None:
        entries = [*OTHERS[1:], {**MINE, "jobUid": "uid-older"}]
        assert len(decide(self.seen(self.view(*entries)), SETTINGS, NOW).propose) == 1

    def test_the_job_succeeds_when_a_version_with_the_traffic_was_made_for_it(self) -> None:
        record = {"name": "v", "servedName": "rooms", "job": "support", "jobUid": "uid-1", "adapter": ADAPTER, "role": "Current"}
        plan = settle(self.seen(self.view(MINE, versions=(record,))))
        assert (plan.status["phase"], condition(plan, "Deployed")["message"]) == (
            "Succeeded", "ModelEndpoint desk serves this adapter at http://desk/v1 as rooms"
        )  # fmt: skip

    def test_or_when_one_that_was_made_for_another_name_has_it_on_board(self) -> None:
        beside = {"name": "rooms", "job": "support", "jobUid": "uid-1", "adapter": ADAPTER}
        newer = {"name": "w", "job": "next", "jobUid": "uid-next", "adapter": ADAPTER, "role": "Current", "others": [beside]}
        assert settle(self.seen(self.view(MINE, versions=(newer,)))).status["phase"] == "Succeeded"
        failed = {**newer, "role": "Rejected", "reason": "CrashLoop", "message": "it crashes"}
        assert settle(self.seen(self.view(MINE, versions=(failed,)))).status["phase"] == "Deploying"

    def test_it_waits_while_another_name_has_its_turn(self) -> None:
        record = {"name": "v", "servedName": "rooms", "job": "support", "jobUid": "uid-1", "adapter": ADAPTER, "role": "Retired", "reason": "Superseded"}
        told = settle(self.seen(self.view(MINE, versions=(record,))))
        assert (told.status["phase"], told.status["reason"]) == ("Deploying", "WaitingForEndpoint")
        assert settle(self.seen(self.view(MINE, versions=(record,), version="first"))).status["reason"] == "Pinned"

    def test_it_is_overtaken_by_the_next_one_under_its_name_only(self) -> None:
        proposed = settle(self.seen(self.view(MINE))).status
        newer = {**MINE, "job": "next", "jobUid": "uid-next"}
        plan = settle(self.seen(self.view(newer), proposed))
        assert (plan.status["phase"], plan.status["reason"]) == ("Failed", "Superseded")
        assert "by job next" in plan.status["message"]
