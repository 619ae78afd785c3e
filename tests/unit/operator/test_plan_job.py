"""Decisions about a FineTuneJob, one table per question."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.api.jobstatus import Progress
from finetune_operator.plan.job import decide
from finetune_operator.plan.types import Plan, Ref

from .makers import (
    ADAPTER,
    NOW,
    PREP,
    PREPARED_STEP,
    RAN,
    SETTINGS,
    START,
    TRAIN,
    TRAINED_STEP,
    condition,
    done,
    ended,
    failed,
    job,
    names,
    pod,
    result,
    settle,
    state,
)  # fmt: skip

CASES: list[tuple[str, Any, str, str, list[str]]] = [
    ("a new job gets its configuration and a prepare pod", state(), "Preparing", "Starting", ["Job/support-prep-1"]),
    ("a prepare Job without a pod yet waits", state(job(PREP)), "Preparing", "Pending", []),
    ("a prepare pod that runs is shown as running", state(job(PREP), pod(PREP, running=True, phase="Running", node="n1")), "Preparing", "Running", []),
    (
        "a missing Secret is named while the pod waits for it",
        state(job(PREP), pod(PREP, waiting_reason="CreateContainerConfigError", waiting_message='secret "s3" not found')),
        "Preparing",
        "SecretNotFound",
        [],
    ),
    (
        "a missing claim is told apart from a full cluster",
        state(job(PREP), pod(PREP, unschedulable='persistentvolumeclaim "models" not found. not found')),
        "Preparing",
        "VolumeNotFound",
        [],
    ),
    (
        "a full cluster is shown with the scheduler's words",
        state(PREPARED_STEP, job(TRAIN), pod(TRAIN, unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")),
        "Training",
        "Unschedulable",
        [],
    ),
    (
        "an image that cannot be pulled is named",
        state(job(PREP), pod(PREP, waiting_reason="ImagePullBackOff", waiting_message="not found")),
        "Preparing",
        "ImagePullFailed",
        [],
    ),
    ("checked data start the training", state(PREPARED_STEP), "Training", "Starting", ["Job/support-train-1"]),
    ("bad data fail the job for good", state(failed(PREP, 21, result("prepare", "DataInvalid", "row 7: empty answer"))), "Failed", "DataInvalid", []),
    ("a bad model fails the job for good", state(failed(PREP, 22, result("prepare", "ModelInvalid", "no config.json"))), "Failed", "ModelInvalid", []),
    ("unreachable storage waits for its next try", state(failed(PREP, 40, result("prepare", "StorageUnavailable", "no route"))), "Preparing", "StorageUnavailable", []),
    ("a wrong bucket waits for its next try", state(failed(PREP, 40, result("prepare", "BucketNotFound", "bucket x"))), "Preparing", "BucketNotFound", []),
    ("out of GPU memory at the smallest setting is final", state(PREPARED_STEP, failed(TRAIN, 30, result("train", "OutOfMemory", "needs 12 GiB"))), "Failed", "OutOfMemory", []),
    ("a crash of the trainer waits for its next try", state(PREPARED_STEP, failed(TRAIN, 1, result("train", "TrainingCrashed", "boom"))), "Training", "TrainingCrashed", []),
    ("a pod killed for memory says what to raise", state(PREPARED_STEP, failed(TRAIN, 137, "", reason="OOMKilled")), "Training", "HostOutOfMemory", []),
    ("a committed adapter without an endpoint ends the job", state(PREPARED_STEP, TRAINED_STEP), "Succeeded", "Completed", []),
    (
        "a committed adapter asks for its endpoint",
        state(PREPARED_STEP, TRAINED_STEP, spec={"inference": {}}),
        "Deploying",
        "WaitingForEndpoint",
        ["ModelEndpoint/support"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("seen", "phase", "reason", "created"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_where_a_job_stands(seen: Any, phase: str, reason: str, created: list[str]) -> None:
    plan = settle(seen)
    assert (plan.status["phase"], plan.status["reason"]) == (phase, reason)
    assert names(plan.create) == created


def test_deciding_twice_on_the_same_state_gives_the_same_plan() -> None:
    for _, seen, *_rest in CASES:
        assert decide(seen, SETTINGS, NOW) == decide(seen, SETTINGS, NOW)


def test_a_settled_status_is_stable_so_that_it_is_written_once() -> None:
    for name, seen, *_rest in CASES:
        plan = settle(seen)
        again = decide(replace(seen, status=type(seen.status).model_validate(plan.status)), SETTINGS, NOW)
        assert again.status == plan.status, name


def test_what_decided_the_result_is_recorded() -> None:
    status = settle(state(PREPARED_STEP, TRAINED_STEP)).status
    assert len(status["run"].pop("configHash")) == 64
    assert status["run"].pop("report") == "s3://models/ft/team/support/uid-1/report/report.html"
    assert status["run"] == {
        "datasetSha256": "b" * 64, "modelRevision": "", "modelType": "qwen3", "template": "qwen3", "microBatchSize": 4,
        "command": RAN["command"], "versions": RAN["versions"],
    }  # fmt: skip


def test_what_a_failed_training_ran_is_recorded_too() -> None:
    words = result("train", "OutOfMemory", "needs 12 GiB", train={"step": 3, "totalSteps": 40, **RAN, "microBatch": 1})
    status = settle(state(PREPARED_STEP, failed(TRAIN, 30, words))).status
    assert (status["run"]["microBatchSize"], status["run"]["command"]) == (1, RAN["command"])


def test_what_became_of_the_fast_path_is_recorded() -> None:
    fast = {"used": True, "microBatchSize": 16, "accumulation": 1, "layers": "36 keep all", "predicted": "60440Mi", "measured": "59400Mi"}
    words = result("train", train={"step": 40, "totalSteps": 40, "adapter": ADAPTER, **RAN, "fastPath": fast})
    status = settle(state(PREPARED_STEP, done(TRAIN, words))).status
    assert status["run"]["fastPath"].items() >= fast.items()


def test_the_best_checkpoint_is_recorded_by_its_own_step() -> None:
    early = result("train", train={"step": 60, "totalSteps": 100, "stoppedEarly": True, "adapterStep": 40, "loss": 1.0, "adapter": ADAPTER, **RAN})
    status = settle(state(PREPARED_STEP, done(TRAIN, early))).status
    assert status["artifact"]["step"] == 40
    assert status["display"]["step"] == "60/100"
    assert status["run"]["stoppedEarly"] is True


def test_an_argument_that_may_not_be_set_ends_the_job_before_anything_is_made() -> None:
    plan = settle(state(spec={"training": {"extraArgs": {"deepspeed": "zero3"}}}))
    assert (plan.status["phase"], plan.status["reason"]) == ("Failed", "InvalidConfig")
    assert plan.status["message"].startswith("spec.training.extraArgs.deepspeed cannot be set: ")
    assert condition(plan, "Accepted")["status"] == "False"
    assert not (plan.create or plan.apply)


def test_the_data_check_is_recorded_with_its_numbers() -> None:
    status = settle(state(PREPARED_STEP)).status
    assert status["dataset"] == {"trainRows": 120, "validationRows": 6, "invalidRows": 0, "tokens": 9000, "longest": 80, "sha256": "b" * 64, "warnings": []}
    assert condition(settle(state(PREPARED_STEP)), "DataReady")["status"] == "True"


def test_the_adapter_and_the_last_numbers_are_recorded() -> None:
    status = settle(state(PREPARED_STEP, TRAINED_STEP)).status
    assert status["artifact"] == {"adapter": ADAPTER, "step": 40, "loss": "0.01235", "evalLoss": "0.5"}
    assert status["display"] == {"step": "40/40"}
    assert status["progress"]["loss"] == "0.01235"
    assert status["completionTime"] == START
    assert [(a["step"], a["number"], a["reason"], a.get("resumedFrom")) for a in status["attempts"]] == [
        ("Prepare", 1, "Completed", None),
        ("Train", 1, "Completed", 20),
    ]


class TestRetries:
    CRASH = result("train", "TrainingCrashed", "boom")

    def test_a_crash_is_retried_after_the_backoff_and_not_before(self) -> None:
        seen = state(PREPARED_STEP, failed(TRAIN, 1, self.CRASH))
        early, late = settle(seen, NOW + 29), settle(seen, NOW + 30)
        assert not early.create
        assert early.requeue_after == pytest.approx(1)
        assert names(late.create) == ["Job/support-train-2"]

    def test_a_crash_counts_once_however_often_it_is_looked_at(self) -> None:
        assert settle(state(PREPARED_STEP, failed(TRAIN, 1, self.CRASH)), rounds=9).status["failures"] == {"Train": 1}

    def test_the_budget_is_the_first_attempt_and_the_limit(self) -> None:
        seen = state(PREPARED_STEP, failed(TRAIN, 1, self.CRASH, attempt=3), spec={"retries": {"limit": 2}}, status={"failures": {"Train": 2}})
        plan = settle(seen)
        assert plan.status["phase"] == "Failed"
        assert "spec.retries.limit is 2" in plan.status["message"]

    def test_unreachable_storage_never_uses_the_budget(self) -> None:
        gone = result("prepare", "StorageUnavailable", "no route")
        seen = state(failed(PREP, 40, gone, attempt=9), spec={"retries": {"limit": 0}})
        plan = settle(seen)
        assert plan.status["phase"] == "Preparing"
        assert "failures" not in plan.status or not plan.status["failures"]
        assert names(settle(seen, NOW + 301).create) == ["Job/support-prep-10"]

    def test_the_wait_doubles_and_stops_at_five_minutes(self) -> None:
        waits = [settle(state(failed(PREP, 40, result("prepare", "StorageUnavailable"), attempt=n))).requeue_after for n in (1, 2, 3, 4, 5, 6)]
        assert waits == [30, 60, 120, 240, 300, 300]

    def test_old_kubernetes_jobs_are_dropped_but_the_last_ones_kept_for_logs(self) -> None:
        past = [job(PREP, n, failed=True, finished_at=START) for n in (1, 2, 3)]
        plan = settle(state(*past, failed(PREP, 40, result("prepare", "StorageUnavailable"), attempt=4)), NOW + 600)
        assert names(plan.create) == ["Job/support-prep-5"]
        assert plan.delete == (Ref("batch/v1", "Job", "support-prep-1"), Ref("batch/v1", "Job", "support-prep-2"))


class TestThingsThatVanish:
    def test_a_job_deleted_in_mid_run_is_made_again_under_the_same_number(self) -> None:
        running = settle(state(PREPARED_STEP, job(TRAIN), pod(TRAIN, running=True, phase="Running")))
        seen = state(status=running.status)
        assert names(settle(seen).create) == ["Job/support-train-1"]

    def test_recorded_data_are_never_prepared_again(self) -> None:
        status = settle(state(PREPARED_STEP)).status
        assert names(settle(state(status=status)).create) == ["Job/support-train-1"]

    def test_a_recorded_adapter_is_never_trained_again(self) -> None:
        status = settle(state(PREPARED_STEP, TRAINED_STEP, spec={"inference": {}})).status
        assert names(settle(state(status=status, spec={"inference": {}})).create) == ["ModelEndpoint/support"]

    def test_a_result_that_is_late_is_waited_for(self) -> None:
        complete = job(PREP, complete=True, finished_at=START)
        plan = settle(state(complete, pod(PREP, running=True, phase="Running")), NOW + 5)
        assert plan.status["phase"] == "Preparing"
        assert plan.requeue_after is not None

    def test_a_result_that_is_lost_makes_the_step_run_again(self) -> None:
        plan = settle(state(job(PREP, complete=True, finished_at=START)), NOW + 60)
        assert names(plan.create) == ["Job/support-prep-2"]

    def test_a_result_that_is_lost_is_not_counted_however_often_it_is_looked_at(self) -> None:
        lost = job(PREP, complete=True, finished_at=START)
        plan = settle(state(lost, spec={"retries": {"limit": 0}}), NOW + 20)
        assert (plan.status["phase"], plan.status["failures"], plan.status["attempts"][0]["reason"]) == ("Preparing", {}, "ResultLost")

    def test_success_without_an_adapter_is_not_believed(self) -> None:
        plan = settle(state(PREPARED_STEP, done(TRAIN, result("train"))))
        assert (plan.status["phase"], "without a committed adapter" in plan.status["message"]) == ("Failed", True)

    def test_a_finished_job_stays_finished_whatever_happens_to_its_children(self) -> None:
        status = settle(state(PREPARED_STEP, TRAINED_STEP)).status
        plan = decide(state(failed(TRAIN, 1, attempt=2), status=status), SETTINGS, NOW + 9999)
        assert plan == Plan(status=status)


def test_a_training_process_that_the_kernel_killed_alone_is_out_of_memory() -> None:
    crashed = failed(TRAIN, 1, result("train", "TrainingCrashed", "killed"), reason="OOMKilled")
    plan = settle(state(PREPARED_STEP, crashed, spec={"retries": {"limit": 0}}))
    assert (plan.status["phase"], plan.status["reason"]) == ("Failed", "HostOutOfMemory")


class TestImages:
    WAITING = pod(TRAIN, waiting_reason="ImagePullBackOff", waiting_message="not found")

    @pytest.mark.parametrize(("image", "deleted"), [("trainer:typo", ["support-train-1"]), ("trainer:1", [])], ids=["another one is named now", "the same"])
    def test_a_pod_that_waits_for_an_image_is_made_anew_when_the_installation_names_another(self, image: str, deleted: list[str]) -> None:
        plan = settle(state(PREPARED_STEP, job(TRAIN, image=image), self.WAITING))
        assert ([ref.name for ref in plan.delete], plan.status["reason"]) == (deleted, "ImagePullFailed")

    def test_a_pod_that_runs_keeps_its_image(self) -> None:
        plan = settle(state(PREPARED_STEP, job(TRAIN, image="trainer:old"), pod(TRAIN, running=True, phase="Running")))
        assert plan.delete == ()


class TestInterruptions:
    def test_a_new_pod_in_the_same_attempt_counts_as_one_interruption_and_no_failure(self) -> None:
        first = settle(state(PREPARED_STEP, job(TRAIN), pod(TRAIN, name="p1", running=True, phase="Running")))
        gone = pod(TRAIN, name="p1", phase="Failed", ended=ended(10, result("train", "Interrupted")))
        second = settle(state(PREPARED_STEP, job(TRAIN), gone, pod(TRAIN, name="p2", created_at="2027-01-15T08:01:00Z", running=True), status=first.status))
        assert second.status["interruptions"] == 1
        assert not second.status["failures"]
        assert second.status["attempt"] == 1

    @pytest.mark.parametrize(("code", "reason"), [(0, "Running"), (10, "Stopping"), (21, "Running")])
    def test_a_pod_that_ended_before_its_job_took_note_is_not_mistaken(self, code: int, reason: str) -> None:
        plan = settle(state(PREPARED_STEP, job(TRAIN), pod(TRAIN, phase="Failed", ended=ended(code))))
        assert plan.status["reason"] == reason

    def test_a_pod_that_is_being_deleted_is_shown_as_stopping(self) -> None:
        plan = settle(state(PREPARED_STEP, job(TRAIN), pod(TRAIN, running=True, deleting=True)))
        assert plan.status["reason"] == "Stopping"


class TestSuspend:
    def test_suspending_stops_the_kubernetes_job_and_is_true_only_when_nothing_runs(self) -> None:
        running = state(PREPARED_STEP, job(TRAIN), pod(TRAIN, running=True, phase="Running"), spec={"suspend": True})
        plan = settle(running)
        assert plan.patch == ((Ref("batch/v1", "Job", "support-train-1"), {"spec": {"suspend": True}}),)
        assert condition(plan, "Suspended")["status"] == "Unknown"
        assert plan.status["reason"] == "Suspending"
        idle = settle(state(PREPARED_STEP, job(TRAIN, suspended=True), spec={"suspend": True}, status=plan.status))
        assert idle.status["phase"] == "Suspended"

    def test_a_suspended_job_starts_nothing(self) -> None:
        plan = settle(state(spec={"suspend": True}))
        assert (plan.create, plan.status["phase"]) == ((), "Suspended")

    def test_resuming_lets_the_same_kubernetes_job_go_on(self) -> None:
        status = settle(state(PREPARED_STEP, job(TRAIN, suspended=True), spec={"suspend": True})).status
        plan = decide(state(PREPARED_STEP, job(TRAIN, suspended=True), status=status), SETTINGS, NOW)
        assert plan.patch == ((Ref("batch/v1", "Job", "support-train-1"), {"spec": {"suspend": False}}),)
        assert condition(plan, "Suspended")["status"] == "False"


def test_a_failure_is_on_record_before_the_next_attempt_is_made() -> None:
    seen = state(PREPARED_STEP, failed(TRAIN, 1, result("train", "TrainingCrashed", "boom")))
    first = decide(seen, SETTINGS, NOW + 1000)  # long due: the operator was away
    assert (names(first.create), first.status["failures"], first.status["attempts"][-1]["reason"]) == ([], {"Train": 1}, "TrainingCrashed")
    assert first.requeue_after is not None
    assert first.requeue_after < 1
    told = replace(seen, status=type(seen.status).model_validate(first.status))
    assert names(decide(told, SETTINGS, NOW + 1001).create) == ["Job/support-train-2"]


class TestConflicts:
    def test_a_taken_name_is_stated_and_nothing_is_started(self) -> None:
        plan = settle(state(conflicts=("Job support-prep-1",)))
        assert (plan.status["phase"], plan.status["reason"], plan.create) == ("Pending", "NameConflict", ())
        assert "Job support-prep-1" in plan.status["message"]

    def test_the_job_goes_on_once_the_name_is_free(self) -> None:
        status = settle(state(conflicts=("Job support-prep-1",))).status
        assert names(settle(state(status=status)).create) == ["Job/support-prep-1"]


class TestRefusals:
    def test_what_the_api_server_refuses_is_stated_in_its_words_and_is_no_attempt(self) -> None:
        plan = settle(state(refused={"support-prep-1": "Job support-prep-1: exceeded quota"}))
        assert (plan.status["phase"], plan.status["reason"], plan.status.get("attempts", [])) == ("Pending", "Refused", [])
        assert "Job support-prep-1: exceeded quota" in plan.status["message"]
        assert names(settle(state(status=plan.status)).create) == ["Job/support-prep-1"]


class TestProgress:
    def progress(self, **fields: Any) -> Progress:
        return Progress.model_validate({"step": 12, "totalSteps": 40, "percent": 30, "etaSeconds": 840, "updatedAt": "2027-01-15T08:00:05Z", **fields})

    def test_reports_of_a_running_pod_are_shown(self) -> None:
        plan = settle(state(PREPARED_STEP, job(TRAIN), pod(TRAIN, running=True), progress=self.progress(loss="1.08")))
        assert plan.status["display"] == {"step": "12/40", "eta": "14m"}
        assert plan.status["progress"]["loss"] == "1.08"

    def test_a_restarted_pod_keeps_the_last_known_loss_until_it_has_one(self) -> None:
        before = settle(state(PREPARED_STEP, job(TRAIN), pod(TRAIN, running=True), progress=self.progress(loss="1.08")))
        fresh = self.progress(updatedAt="2027-01-15T08:01:00Z", etaSeconds=None)
        plan = settle(state(PREPARED_STEP, job(TRAIN), pod(TRAIN, running=True), status=before.status, progress=fresh))
        assert plan.status["progress"]["loss"] == "1.08"
        assert plan.status["display"] == {"step": "12/40"}

    def test_a_pod_that_is_still_loading_takes_nothing_away(self) -> None:
        before = settle(state(PREPARED_STEP, job(TRAIN), pod(TRAIN, running=True), progress=self.progress(loss="1.08")))
        loading = Progress(updated_at="2027-01-15T08:01:00Z")
        plan = settle(state(PREPARED_STEP, job(TRAIN), pod(TRAIN, running=True), status=before.status, progress=loading))
        assert plan.status["display"]["step"] == "12/40"

    def test_a_late_report_never_overrides_the_result(self) -> None:
        late = Progress(step=40, updated_at="2027-01-15T09:00:00Z")
        trained = settle(state(PREPARED_STEP, TRAINED_STEP, spec={"inference": {}}))
        plan = settle(state(PREPARED_STEP, TRAINED_STEP, spec={"inference": {}}, status=trained.status, progress=late))
        assert plan.status["display"] == {"step": "40/40"}

    def test_columns_without_content_are_left_out_because_the_api_server_refuses_a_null(self) -> None:
        plan = settle(state(PREPARED_STEP, job(TRAIN), pod(TRAIN, running=True), progress=Progress(updated_at="2027-01-15T08:00:01Z")))
        assert "display" not in plan.status

    def test_a_report_older_than_the_status_is_ignored(self) -> None:
        before = settle(state(PREPARED_STEP, job(TRAIN), pod(TRAIN, running=True), progress=self.progress(step=20)))
        old = self.progress(step=3, updatedAt="2027-01-15T07:59:00Z")
        plan = settle(state(PREPARED_STEP, job(TRAIN), pod(TRAIN, running=True), status=before.status, progress=old))
        assert plan.status["progress"]["step"] == 20


def test_transition_times_change_only_when_a_status_flips() -> None:
    first = settle(state(job(PREP)))
    later = settle(state(job(PREP), pod(PREP, running=True), status=first.status), NOW + 100)
    assert condition(later, "DataReady")["lastTransitionTime"] == START
    assert condition(later, "DataReady")["reason"] == "Running"
    prepared = settle(state(PREPARED_STEP, status=later.status), NOW + 200)
    assert condition(prepared, "DataReady")["lastTransitionTime"] == "2027-01-15T08:03:20Z"
