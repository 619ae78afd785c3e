"""Pods that are taken away: counted, explained, never a failure, and not for ever."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.api.jobstatus import Progress
from finetune_operator.names import Step
from finetune_operator.observe import PodView, WorkloadView
from finetune_operator.plan.job import decide
from finetune_operator.plan.types import JobState, Plan, Ref

from .makers import NOW, PREPARED, SETTINGS, START, condition, done, ended, job, names, pod, result, state

TRAIN = Step.TRAIN
PREPARED_STEP = done(Step.PREPARE, PREPARED)
PREEMPTED = WorkloadView("w", "train-1", active=True, paused=False, reserved=False, reason="Preempted", message="", evicted="Preempted", finished=False)


def running(number: int, **fields: Any) -> PodView:
    return pod(TRAIN, name=f"p{number}", uid=f"p{number}", created_at=f"2027-01-15T08:{number:02}:00Z", **{"phase": "Running", "running": True, **fields})


def interrupted(number: int, committed: int = 0, **fields: Any) -> PodView:
    said = result("train", "Interrupted", train={"step": committed, "committedStep": committed})
    return running(number, **{"phase": "Failed", "running": False, "ended": ended(10, said), **fields})


def next_pod(plan: Plan, *pods: PodView, **fields: Any) -> Plan:
    return decide(state(PREPARED_STEP, job(TRAIN), *pods, status=plan.status, **fields), SETTINGS, NOW + 100)


FIRST = decide(state(PREPARED_STEP, job(TRAIN), running(1)), SETTINGS, NOW)


@pytest.mark.parametrize(
    ("gone", "cause"),
    [
        (interrupted(1), "Interrupted"),
        (running(1, phase="Failed", disruption="EvictionByEvictionAPI", gone=True), "EvictionByEvictionAPI"),
        (running(1, phase="Failed", disruption="PreemptionByScheduler", ended=ended(137)), "PreemptionByScheduler"),
        (running(1, phase="Failed", disruption="DeletionByTaintManager"), "DeletionByTaintManager"),
        (running(1, phase="Failed", disruption="TerminationByKubelet", ended=ended(137)), "TerminationByKubelet"),
        (running(1, gone=True), None),
    ],
    ids=["exit 10", "evicted and deleted", "preempted by the scheduler", "its node was lost", "its node was full", "deleted by force"],
)
def test_the_cause_of_an_interruption_is_kept_in_kubernetes_words(gone: PodView, cause: str | None) -> None:
    plan = next_pod(FIRST, gone, running(2))
    attempt = plan.status["attempts"][-1]
    assert (attempt.get("interruptedBy"), attempt["interruptions"], attempt["pod"], plan.status["interruptions"]) == (cause, 1, "p2", 1)
    assert (plan.status["failures"], plan.status["attempt"]) == ({}, 1)


def test_the_cause_is_there_while_the_pod_still_commits_its_checkpoint() -> None:
    plan = next_pod(FIRST, running(1, deleting=True, disruption="EvictionByEvictionAPI"))
    assert (plan.status["reason"], plan.status["attempts"][-1]["interruptedBy"]) == ("Stopping", "EvictionByEvictionAPI")
    assert "EvictionByEvictionAPI" in plan.status["message"]
    assert plan.status["interruptions"] == 0, "counted once another pod stands in"


def test_preemption_in_a_queue_is_named_as_kueue_names_it() -> None:
    plan = next_pod(FIRST, running(1, deleting=True), workloads=(PREEMPTED,))
    assert plan.status["attempts"][-1]["interruptedBy"] == "Preempted"


def test_preemption_that_nobody_saw_is_read_from_the_workload() -> None:
    plan = next_pod(FIRST, workloads=(PREEMPTED,))
    assert plan.status["attempts"][-1]["interruptedBy"] == "Preempted"


def rounds(count: int, step: int, *, cause: dict[str, Any] | None = None) -> Plan:
    """`count` pods go one after the other, each `step` optimizer steps further."""
    plan = FIRST
    for number in range(1, count + 1):
        plan = next_pod(plan, interrupted(number, step * number, **(cause or {})), running(number + 1))
    return plan


@pytest.mark.parametrize("count", [5, 30])
def test_interruptions_with_progress_never_end_a_job(count: int) -> None:
    plan = rounds(count, 10)
    assert (plan.status["phase"], plan.status["interruptions"], plan.status["idleInterruptions"]) == ("Training", count, 0)


def test_three_interruptions_in_a_row_without_a_new_checkpoint_do() -> None:
    assert rounds(2, 0).status["phase"] == "Training"
    plan = rounds(3, 0, cause={"disruption": "TerminationByKubelet"})
    assert (plan.status["phase"], plan.status["reason"], condition(plan, "Trained")["reason"]) == ("Failed", "NoProgress", "NoProgress")
    assert "TerminationByKubelet" in plan.status["message"]
    assert plan.delete == (Ref("batch/v1", "Job", "support-train-1"),), "the fourth pod must not run on"
    assert plan.delete[0].uid == "train-1", "nor must anything end that has taken the name since"


def test_a_pod_that_went_while_nobody_looked_proves_nothing() -> None:
    plan = next_pod(rounds(2, 0), running(4))
    assert (plan.status["phase"], plan.status["interruptions"], plan.status["idleInterruptions"]) == ("Training", 3, 0)


def test_one_new_checkpoint_starts_the_count_anew() -> None:
    twice = rounds(2, 0)
    third = next_pod(twice, interrupted(3, 20), running(4))
    fourth = next_pod(third, interrupted(4, 20), running(5))
    assert (third.status["idleInterruptions"], fourth.status["idleInterruptions"], fourth.status["phase"]) == (0, 1, "Training")


def test_a_checkpoint_that_only_a_progress_report_told_of_counts() -> None:
    plan = FIRST
    for number in range(1, 5):
        report = Progress(step=10 * number + 5, total_steps=400, checkpoint_step=10 * number, updated_at=f"2027-01-15T08:{number:02}:30Z")
        plan = next_pod(plan, running(number), progress=report)
        plan = next_pod(plan, running(number, gone=True), running(number + 1))
    assert (plan.status["phase"], plan.status["idleInterruptions"], plan.status["attempts"][-1]["resumedFrom"]) == ("Training", 0, 40)


def test_preemption_in_a_queue_is_nobodys_fault() -> None:
    plan = FIRST
    for number in range(1, 6):
        plan = next_pod(plan, running(number, deleting=True), workloads=(PREEMPTED,))
        plan = next_pod(plan, running(number, gone=True), running(number + 1))
    assert (plan.status["phase"], plan.status["interruptions"], plan.status["idleInterruptions"]) == ("Training", 5, 0)


OVER: dict[str, Any] = {"failed": True, "failure": "Job has reached the specified backoff limit", "finished_at": "2027-01-15T08:02:00Z"}
LOST = running(2, phase="Failed", running=False, ended=ended(40, result("train", "StorageUnavailable")))


@pytest.mark.parametrize(
    ("over", "seen", "reason", "look"),
    [
        ({}, (interrupted(1),), "Pending", False),
        ({}, (interrupted(1), replace(LOST, gone=True)), "Pending", False),
        ({"complete": True, "finished_at": START}, (interrupted(1),), "Running", False),
        (OVER, (interrupted(1),), "PodFailed", True),
        (OVER, (interrupted(1), replace(LOST, gone=True)), "StorageUnavailable", False),
    ],
    ids=["under way", "under way, and the recorded one is gone", "complete", "failed", "failed, and the recorded one is gone"],
)
def test_a_pod_that_was_replaced_is_no_news_when_caches_fall_behind(over: dict[str, Any], seen: tuple[PodView, ...], reason: str, look: bool) -> None:
    known = next_pod(FIRST, interrupted(1), running(2))
    plan = decide(state(PREPARED_STEP, job(TRAIN, **over), *seen, status=known.status), SETTINGS, NOW)
    attempt = plan.status["attempts"][-1]
    assert (attempt["pod"], plan.status["interruptions"]) == ("p2", 1)
    assert (condition(plan, "Trained")["reason"], plan.look) == (reason, look)


def test_a_pod_that_came_and_went_unseen_has_the_last_word_of_a_job_that_failed() -> None:
    plan = decide(state(PREPARED_STEP, job(TRAIN, **OVER), interrupted(1), replace(LOST, gone=True), status=FIRST.status), SETTINGS, NOW)
    attempt = plan.status["attempts"][-1]
    assert (attempt["pod"], attempt["reason"], attempt["exitCode"]) == ("p2", "StorageUnavailable", 40)


def waiting_for(*pods: PodView) -> JobState:
    return state(PREPARED_STEP, *pods, status=FIRST.status, live=True)


def test_a_job_that_is_gone_is_not_made_again_before_its_pod_has_ended() -> None:
    plan = decide(waiting_for(running(1, deleting=True)), SETTINGS, NOW)
    assert (plan.create, plan.status["reason"]) == ((), "Terminating")
    assert "p1" in plan.status["message"]
    assert names(decide(waiting_for(running(1, phase="Failed")), SETTINGS, NOW).create) == ["Job/support-train-1"]
    assert names(decide(waiting_for(running(1, gone=True)), SETTINGS, NOW).create) == ["Job/support-train-1"]


@pytest.mark.parametrize(
    "seen",
    [
        state(),
        state(PREPARED_STEP),
        state(PREPARED_STEP, status=FIRST.status),
        state(PREPARED_STEP, job(TRAIN, complete=True, finished_at="2027-01-15T07:00:00Z")),
        state(PREPARED_STEP, job(TRAIN, failed=True, failure="x", finished_at="2027-01-15T07:00:00Z")),
    ],
    ids=["a first Job", "a training", "a Job that vanished", "a result that is lost", "a failure without a pod"],
)
def test_what_follows_from_absence_is_asked_of_the_api_server_first(seen: JobState) -> None:
    assert decide(seen, SETTINGS, NOW).look


class TestWaitingForTooLong:
    SPEC: dict[str, Any] = {"schedulingTimeoutSeconds": 600}
    PULL = pod(TRAIN, waiting_reason="ImagePullBackOff", waiting_message="not found")

    @pytest.mark.parametrize(
        ("held", "reason"),
        [
            (PULL, "ImagePullFailed"),
            (pod(TRAIN, unschedulable="0/3 nodes are available"), "Unschedulable"),
            (pod(TRAIN, waiting_reason="CreateContainerConfigError", waiting_message='secret "s3" not found'), "SecretNotFound"),
            (pod(TRAIN, unschedulable='persistentvolumeclaim "models" not found'), "VolumeNotFound"),
        ],
        ids=["image", "node", "Secret", "volume"],
    )
    def test_what_was_missing_ends_the_job_and_stops_its_pod(self, held: PodView, reason: str) -> None:
        seen = state(PREPARED_STEP, job(TRAIN), held, spec=self.SPEC)
        before, plan = decide(seen, SETTINGS, NOW + 599), decide(seen, SETTINGS, NOW + 600)
        assert (before.status["phase"], before.requeue_after) == ("Training", 1)
        assert (plan.status["phase"], plan.status["reason"]) == ("Failed", reason)
        assert "waited 600 s, as spec.schedulingTimeoutSeconds says" in plan.status["message"]
        assert plan.delete == (Ref("batch/v1", "Job", "support-train-1"),)

    def test_without_a_limit_it_waits_and_says_what_for(self) -> None:
        plan = decide(state(PREPARED_STEP, job(TRAIN), self.PULL), SETTINGS, NOW + 10**6)
        assert (plan.status["phase"], plan.status["reason"], plan.requeue_after) == ("Training", "ImagePullFailed", None)
