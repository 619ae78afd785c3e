"""Suspension, quota and the deadline: what holds a job, and which time counts."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.names import Step
from finetune_operator.observe import WorkloadView, workload_view
from finetune_operator.plan.job import decide
from finetune_operator.plan.types import EndpointView, JobState, Plan, Ref

from .makers import ADAPTER, NOW, PREPARED, SETTINGS, START, TRAINED, condition, done, endpoint_state, failed, job, names, owner, pod, state

TRAIN = Step.TRAIN
PREPARED_STEP = done(Step.PREPARE, PREPARED)
QUEUE: dict[str, Any] = {"queue": {"name": "team-a", "priorityClass": "high"}}
LATER = "2027-01-15T08:10:00Z"  # NOW + 600


def after(plan: Plan, seen: JobState) -> JobState:
    """The next look: what the status says now."""
    return replace(seen, status=type(seen.status).model_validate(plan.status))


def workload(**fields: Any) -> WorkloadView:
    values: dict[str, Any] = {
        "name": "job-support-train-1", "job_uid": "train-1", "active": True, "paused": False, "reserved": False, "reason": "WaitingForQuota",
        "message": "couldn't assign flavors: insufficient unused quota for nvidia.com/gpu", "evicted": "", "finished": False,
    }  # fmt: skip
    return WorkloadView(**{**values, **fields})


def queued(
    *children: Any, load: WorkloadView | None = None, spec: dict[str, Any] | None = None, status: dict[str, Any] | None = None, **of_job: Any
) -> JobState:
    mine = job(TRAIN, queue="team-a", **{"suspended": True, **of_job})
    return state(PREPARED_STEP, mine, *children, spec={**QUEUE, **(spec or {})}, status=status, workloads=(load,) if load else ())


class TestQueue:
    def test_training_enters_the_queue_suspended_and_the_check_of_the_data_does_not(self) -> None:
        prepare = decide(state(spec=QUEUE, live=True), SETTINGS, NOW).create[0]
        train = decide(state(PREPARED_STEP, spec=QUEUE, live=True), SETTINGS, NOW).create[0]
        assert (prepare["spec"]["suspend"], "kueue.x-k8s.io/queue-name" in prepare["metadata"]["labels"]) == (False, False)
        assert train["spec"]["suspend"] is True
        assert {k: v for k, v in train["metadata"]["labels"].items() if "kueue" in k} == {
            "kueue.x-k8s.io/queue-name": "team-a",
            "kueue.x-k8s.io/priority-class": "high",
        }

    @pytest.mark.parametrize(
        ("seen", "phase", "reason", "quota"),
        [
            (queued(), "Queued", "WaitingForQueue", "Unknown"),
            (queued(load=workload()), "Queued", "WaitingForQuota", "False"),
            (queued(load=workload(reason="")), "Queued", "WaitingForQueue", "False"),
            (queued(load=workload(reserved=True, reason="QuotaReserved"), suspended=False), "Training", "Pending", "True"),
            (queued(pod(TRAIN, running=True, phase="Running"), load=workload(reserved=True), suspended=False), "Training", "Running", "True"),
            (queued(pod(TRAIN, deleting=True, phase="Running"), load=workload(evicted="Preempted"), suspended_at=""), "Training", "Stopping", "False"),
            (queued(load=workload(evicted="Preempted", reason="Preempted", message="to make room")), "Queued", "Preempted", "False"),
            (queued(load=workload(active=False, reason="Suspended", message="inactive")), "Queued", "Suspended", "False"),
        ],
        ids=[
            "before Kueue has taken it up",
            "without quota, in Kueue's words",
            "without a word from Kueue",
            "admitted, before its pod is there",
            "running",
            "preempted, while its pod commits a checkpoint",
            "preempted, waiting again",
            "stopped by an administrator",
        ],
    )
    def test_kueues_word_is_shown(self, seen: JobState, phase: str, reason: str, quota: str) -> None:
        plan = decide(seen, SETTINGS, NOW)
        assert (plan.status["phase"], plan.status["reason"], condition(plan, "QuotaReserved")["status"]) == (phase, reason, quota)

    @pytest.mark.parametrize("suspended", [True, False])
    def test_the_jobs_own_suspension_is_kueues_alone(self, suspended: bool) -> None:
        for wanted in (True, False):
            plan = decide(queued(load=workload(), suspended=suspended, spec={"suspend": wanted}), SETTINGS, NOW)
            assert [ref for ref, _ in plan.patch if ref.kind == "Job"] == []

    @pytest.mark.parametrize(
        ("wanted", "load", "active"),
        [
            (True, workload(), False),
            (True, workload(active=False), None),
            (True, workload(active=False, paused=True), None),
            (False, workload(active=False, paused=True), True),
            (False, workload(active=False), None),
            (False, workload(), None),
        ],
        ids=[
            "suspending gives the quota back",
            "an administrator has stopped it already",
            "it is paused already",
            "resuming takes our own pause back",
            "an administrator's stop is never undone",
            "nothing to do",
        ],
    )
    def test_spec_suspend_is_carried_over_by_the_workload(self, wanted: bool, load: WorkloadView, active: bool | None) -> None:
        plan = decide(queued(load=load, spec={"suspend": wanted}), SETTINGS, NOW)
        expected = {"metadata": {"annotations": {"finetune.dev/paused": None if active else "true"}}, "spec": {"active": active}}
        assert plan.patch == (() if active is None else ((Ref("kueue.x-k8s.io/v1beta2", "Workload", "job-support-train-1"), expected),))

    def test_between_two_attempts_nothing_is_said_of_quota(self) -> None:
        running = decide(queued(load=workload(reserved=True), suspended=False), SETTINGS, NOW)
        crashed = state(PREPARED_STEP, failed(TRAIN, 1), spec=QUEUE, status=running.status)
        assert condition(decide(crashed, SETTINGS, NOW), "QuotaReserved") == {}

    def test_quota_is_given_back_when_training_is_done(self) -> None:
        seen = queued(load=workload(reserved=True), suspended=False)
        running = decide(seen, SETTINGS, NOW)
        finished = state(PREPARED_STEP, done(TRAIN, TRAINED), spec={**QUEUE, "inference": {}}, status=running.status)
        plan = decide(finished, SETTINGS, NOW)
        assert (plan.status["phase"], condition(plan, "QuotaReserved")["reason"]) == ("Deploying", "Completed")


class TestSuspended:
    RUNNING = pod(TRAIN, phase="Running", running=True)

    @pytest.mark.parametrize(
        ("children", "status"),
        [
            ((job(TRAIN), RUNNING), "Unknown"),
            ((job(TRAIN, suspended=True, suspended_at=""), pod(TRAIN, phase="Running", deleting=True)), "Unknown"),
            ((job(TRAIN, suspended=True, suspended_at=""),), "Unknown"),
            ((job(TRAIN, suspended=True, pods=1),), "Unknown"),
            ((job(TRAIN, suspended=True),), "True"),
            ((job(TRAIN, suspended=True), pod(TRAIN, phase="Failed", deleting=True)), "True"),
            ((pod(TRAIN, phase="Running", deleting=True),), "Unknown"),
            ((), "True"),
        ],
        ids=[
            "the pod runs",
            "the pod commits its checkpoint",
            "the Job controller has not taken note",
            "the Job controller counts a pod that we do not see",
            "nothing runs",
            "only a pod that has ended is left",
            "the Job is gone, its pod is not",
            "nothing was ever started",
        ],
    )
    def test_it_is_said_only_while_nothing_runs(self, children: tuple[Any, ...], status: str) -> None:
        plan = decide(state(PREPARED_STEP, *children, spec={"suspend": True}), SETTINGS, NOW)
        assert condition(plan, "Suspended")["status"] == status
        assert (plan.status["phase"] == "Suspended") == (status == "True")

    def test_before_it_is_said_the_api_server_is_asked(self) -> None:
        seen = state(PREPARED_STEP, job(TRAIN, suspended=True), spec={"suspend": True})
        plan = decide(seen, SETTINGS, NOW)
        assert plan.look
        asked = decide(replace(seen, live=True), SETTINGS, NOW)
        assert not asked.look
        said = after(asked, seen)
        assert not decide(said, SETTINGS, NOW).look, "once it is said, nobody asks again"
        edited = replace(said, owner=owner(generation=2))
        assert decide(edited, SETTINGS, NOW).look, "it may have been resumed in between, and a Job made"

    def test_the_pod_that_a_user_stopped_was_not_interrupted(self) -> None:
        running = decide(state(PREPARED_STEP, job(TRAIN), self.RUNNING), SETTINGS, NOW)
        held = decide(state(PREPARED_STEP, job(TRAIN, suspended=True), spec={"suspend": True}, status=running.status), SETTINGS, NOW)
        old = pod(TRAIN, uid="old", phase="Running", gone=True)
        before = decide(state(PREPARED_STEP, job(TRAIN), old, status=held.status), SETTINGS, NOW + 500)
        fresh = pod(TRAIN, name="p2", phase="Running", running=True, created_at=LATER)
        plan = decide(state(PREPARED_STEP, job(TRAIN), old, fresh, status=before.status), SETTINGS, NOW + 600)
        assert (plan.status["interruptions"], plan.status["attempts"][-1]["pod"]) == (0, "p2")

    def test_a_job_that_is_at_its_goal_is_not_reconciling(self) -> None:
        plan = decide(state(spec={"suspend": True}), SETTINGS, NOW)
        assert (condition(plan, "Reconciling"), condition(plan, "Stalled")) == ({}, {})


class TestDeadline:
    SPEC: dict[str, Any] = {"activeDeadlineSeconds": 1000}
    RUNNING = (PREPARED_STEP, job(TRAIN), pod(TRAIN, phase="Running", running=True))

    def test_a_job_whose_time_is_over_fails_and_its_pods_end(self) -> None:
        first = decide(state(*self.RUNNING, spec=self.SPEC), SETTINGS, NOW)
        assert first.requeue_after == 1000
        late = decide(state(*self.RUNNING, spec=self.SPEC, status=first.status), SETTINGS, NOW + 1000)
        assert (late.status["phase"], late.status["reason"], late.status["activeSeconds"]) == ("Failed", "DeadlineExceeded", 1000)
        assert "activeDeadlineSeconds is 1000" in late.status["message"]
        assert late.delete == (Ref("batch/v1", "Job", "support-train-1"),)
        assert "activeSince" not in late.status
        assert (condition(late, "Trained")["status"], condition(late, "Trained")["reason"]) == ("False", "DeadlineExceeded")
        assert [(a["step"], a.get("reason"), "endedAt" in a) for a in late.status["attempts"]] == [
            ("Prepare", "Completed", True),
            ("Train", "DeadlineExceeded", True),
        ]

    def test_nothing_is_started_in_the_round_that_ends_a_job(self) -> None:
        first = decide(state(spec=self.SPEC, live=True), SETTINGS, NOW)
        late = decide(state(PREPARED_STEP, spec=self.SPEC, status=first.status, live=True), SETTINGS, NOW + 1000)
        assert (late.status["reason"], late.create) == ("DeadlineExceeded", ())

    def test_a_result_that_is_there_in_time_counts(self) -> None:
        first = decide(state(*self.RUNNING, spec=self.SPEC), SETTINGS, NOW)
        late = decide(state(PREPARED_STEP, done(TRAIN, TRAINED), spec=self.SPEC, status=first.status), SETTINGS, NOW + 1001)
        assert late.status["phase"] == "Succeeded"

    @pytest.mark.parametrize("why", ["suspended by the user", "waiting for quota"])
    def test_time_at_rest_does_not_count(self, why: str) -> None:
        spec = self.SPEC if why.startswith("suspended") else {**self.SPEC, **QUEUE}
        first = decide(state(*self.RUNNING, spec=spec), SETTINGS, NOW)
        if why.startswith("suspended"):
            rest = state(PREPARED_STEP, job(TRAIN, suspended=True, suspended_at=LATER), spec={**spec, "suspend": True})
        else:
            rest = queued(load=workload(), suspended_at=LATER, spec=spec)
        # The operator was away when the pod ended: the Job controller knows the time.
        held = decide(replace(rest, status=type(rest.status).model_validate(first.status)), SETTINGS, NOW + 5000)
        assert (held.status["activeSeconds"], "activeSince" in held.status) == (600, False)
        again = decide(state(*self.RUNNING, spec=spec, status=held.status), SETTINGS, NOW + 90_000)
        assert (again.status["phase"], again.requeue_after) == ("Training", 400)

    def test_a_clock_that_jumps_back_never_makes_time_negative(self) -> None:
        first = decide(state(*self.RUNNING, spec=self.SPEC), SETTINGS, NOW)
        held = decide(state(PREPARED_STEP, job(TRAIN, suspended=True), spec={**self.SPEC, "suspend": True}, status=first.status), SETTINGS, NOW - 500)
        assert held.status["activeSeconds"] == 0


class TestKueueBeyondQuota:
    CHECKS = "prov: Pending (waiting for nodes of the ProvisioningRequest)"

    def test_quota_that_waits_for_admission_checks_names_them_and_stops_the_clock(self) -> None:
        seen = queued(load=workload(reserved=True, reason="QuotaReserved", message="Quota reserved", checks=self.CHECKS), spec={"activeDeadlineSeconds": 60})
        plan = decide(after(decide(seen, SETTINGS, NOW), seen), SETTINGS, NOW + 3600)
        assert (plan.status["phase"], plan.status["reason"], condition(plan, "QuotaReserved")["status"]) == ("Queued", "AdmissionChecks", "Unknown")
        assert (self.CHECKS in plan.status["message"], "activeSince" in plan.status) == (True, False)

    def test_checks_are_read_until_the_workload_is_admitted(self) -> None:
        checks = [{"name": "prov", "state": "Pending", "message": "waiting"}, {"name": "other", "state": "Ready"}]
        raw: dict[str, Any] = {"metadata": {"name": "w"}, "spec": {}, "status": {"admissionChecks": checks, "conditions": []}}
        assert workload_view(raw).checks == "prov: Pending (waiting)"
        raw["status"]["conditions"] = [{"type": "Admitted", "status": "True"}]
        assert workload_view(raw).checks == ""

    def test_a_job_that_kueue_took_up_without_a_queue_is_not_fought_over(self) -> None:
        load = workload(job_uid="prepare-1", reason="Inadmissible", message="")
        plan = decide(state(job(Step.PREPARE, suspended=True), workloads=(load,), live=True), SETTINGS, NOW)
        assert (plan.patch, plan.status["phase"], plan.status["reason"]) == ((), "Queued", "Inadmissible")
        assert "name one in spec.queue" in plan.status["message"]


class TestDeadlineWhileDeploying:
    def test_the_adapter_is_named_and_what_becomes_of_it(self) -> None:
        spec = {"inference": {"endpoint": "chat"}, "activeDeadlineSeconds": 60}
        chat = endpoint_state(spec={"candidate": {"job": "support", "jobUid": "uid-1", "adapter": ADAPTER}})
        seen = state(PREPARED_STEP, done(TRAIN, TRAINED), spec=spec, live=True, endpoint=EndpointView("", chat.spec, chat.status))
        plan = decide(seen, SETTINGS, NOW)
        plan = decide(after(plan, seen), SETTINGS, NOW)
        plan = decide(after(plan, seen), SETTINGS, NOW + 60)
        assert (plan.status["phase"], plan.status["reason"]) == ("Failed", "DeadlineExceeded")
        assert "committed at s3://models/ft/team/support/uid-1/adapter: ModelEndpoint chat goes on with it by itself" in plan.status["message"]
        assert (condition(plan, "Trained")["status"], condition(plan, "Deployed")["reason"]) == ("True", "DeadlineExceeded")


class TestAfterTheEnd:
    def finished(self, *children: Any, **spec: Any) -> JobState:
        status = decide(state(PREPARED_STEP, done(TRAIN, TRAINED)), SETTINGS, NOW).status
        return state(*children, status=status, spec=spec)

    def test_whatever_still_runs_is_stopped_and_the_status_stands(self) -> None:
        seen = self.finished(job(TRAIN, 2), job(TRAIN, 1, complete=True))
        plan = decide(seen, SETTINGS, NOW + 10)
        assert (plan.delete, plan.create, plan.status) == ((Ref("batch/v1", "Job", "support-train-2"),), (), seen.status.dump())

    def test_a_change_of_what_may_be_changed_is_taken_note_of(self) -> None:
        seen = replace(self.finished(), owner=owner(generation=2))
        plan = decide(seen, SETTINGS, NOW + 10)
        before = seen.status.dump()
        assert plan.status == {**before, "observedGeneration": 2, "conditions": [{**c, "observedGeneration": 2} for c in before["conditions"]]}

    @pytest.mark.parametrize(("later", "expire", "requeue"), [(0, False, 60), (59, False, 1), (60, True, None), (9999, True, None)])
    def test_it_is_deleted_when_its_time_is_over(self, later: int, expire: bool, requeue: float | None) -> None:
        plan = decide(self.finished(ttlSecondsAfterFinished=60), SETTINGS, NOW + later)
        assert (plan.expire, plan.requeue_after) == (expire, requeue)

    def test_without_a_ttl_it_stays(self) -> None:
        assert decide(self.finished(), SETTINGS, NOW + 10**9) == Plan(status=self.finished().status.dump())

    def test_a_failed_job_is_stalled_and_a_succeeded_one_is_neither(self) -> None:
        assert [c["type"] for c in self.finished().status.dump()["conditions"]] == ["Accepted", "DataReady", "Fits", "Trained", "Succeeded"]
        failed = decide(state(spec={"training": {"extraArgs": {"output_dir": "/x"}}}), SETTINGS, NOW)
        assert (condition(failed, "Stalled")["reason"], condition(failed, "Reconciling")) == ("InvalidConfig", {})

    def test_what_is_under_way_is_reconciling(self) -> None:
        plan = decide(state(job(Step.PREPARE)), SETTINGS, NOW)
        assert (condition(plan, "Reconciling")["reason"], condition(plan, "Stalled")) == ("Pending", {})
        later = decide(state(job(Step.PREPARE), status=plan.status), SETTINGS, NOW + 100)
        assert condition(later, "Reconciling")["lastTransitionTime"] == START
        assert names(later.create) == []
