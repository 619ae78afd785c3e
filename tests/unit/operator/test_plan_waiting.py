"""What a job waits for, and that it says so: pods that nobody makes or that do not start, a queue that nobody asked for, an endpoint that cannot be read."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.api.jobstatus import Progress
from finetune_operator.handlers import awaited
from finetune_operator.observe import WorkloadView, job_view, pod_view
from finetune_operator.plan.job import decide
from finetune_operator.plan.types import JobState

from .makers import NOW, PREP, PREPARED, PREPARED_STEP, SETTINGS, START, TRAIN, TRAINED_STEP, condition, ended, job, pod, settle, state

GONE = pod(TRAIN, phase="Failed", gone=True, ended=ended(143))
STARTED: dict[str, Any] = {"started_at": START}


@pytest.mark.parametrize(
    ("children", "later", "reason", "says"),
    [
        pytest.param((job(TRAIN),), 9999, "Pending", "waiting for the pod to be created", id="its controller has not looked at the Job"),
        pytest.param((job(TRAIN, **STARTED),), 29, "Pending", "waiting for the pod to be created", id="a moment ago"),
        pytest.param((job(TRAIN, **STARTED),), 30, "PodNotCreated", "kubectl describe job support-train-1", id="for half a minute"),
        pytest.param((job(TRAIN, suspended=True, **STARTED),), 9999, "Pending", "waiting for the pod to be created", id="suspended again"),
        pytest.param((job(TRAIN, **STARTED), GONE), 29, "Pending", "waiting for the pod to be created", id="the one before has just gone"),
        pytest.param((job(TRAIN, **STARTED), GONE), 30, "PodNotCreated", "ResourceQuota", id="none came after the one before"),
        pytest.param((job(TRAIN), pod(TRAIN, node="n1")), 179, "Starting", "pod support-train-1-x1 is starting", id="a pod on its node"),
        pytest.param((job(TRAIN), pod(TRAIN, node="n1")), 180, "Starting", "kubectl describe pod support-train-1-x1", id="a pod that starts for minutes"),
    ],
)
def test_what_holds_a_pod_up_is_named(children: tuple[Any, ...], later: float, reason: str, says: str) -> None:
    status = settle(state(PREPARED_STEP, *children), NOW + later).status
    assert (status["phase"], status["reason"]) == ("Training", reason)
    assert says in status["message"]


def test_how_long_no_pod_has_been_there_is_not_guessed() -> None:
    seen = state(PREPARED_STEP, job(TRAIN, **STARTED), pod(TRAIN, running=True, phase="Running"), spec={"schedulingTimeoutSeconds": 600})
    ran = decide(seen, SETTINGS, NOW + 5000)
    evicted = decide(replace(seen, pods=seen.pods[:1], status=type(seen.status).model_validate(ran.status)), SETTINGS, NOW + 5001)
    assert (evicted.status["phase"], evicted.status["reason"]) == ("Training", "Pending"), "an operator that starts anew sees no pod between two"


@pytest.mark.parametrize(
    ("children", "reason"),
    [pytest.param((job(TRAIN, **STARTED),), "PodNotCreated", id="no pod"), pytest.param((job(TRAIN), pod(TRAIN, node="n1")), "Starting", id="one that starts")],
)
def test_it_waits_for_as_long_as_the_spec_says(children: tuple[Any, ...], reason: str) -> None:
    seen = state(PREPARED_STEP, *children, spec={"schedulingTimeoutSeconds": 600})
    waits = decide(seen, SETTINGS, NOW + 590)
    assert (waits.status["phase"], waits.requeue_after) == ("Training", 10)
    status = decide(seen, SETTINGS, NOW + 600).status
    assert (status["phase"], status["reason"]) == ("Failed", reason)
    assert "waited 600 s, as spec.schedulingTimeoutSeconds says" in status["message"]


def test_the_check_of_the_data_may_wait_in_a_queue_that_kueue_put_it_into() -> None:
    load = WorkloadView("job-support-prep-1", "prepare-1", True, False, False, "WaitingForQuota", "insufficient unused quota for cpu", "", False)
    seen = state(job(PREP, queue="default", suspended=True), spec={"activeDeadlineSeconds": 1000}, workloads=(load,))
    plan = settle(seen)
    assert (plan.status["phase"], plan.status["reason"], plan.status["message"]) == ("Queued", "WaitingForQuota", "insufficient unused quota for cpu")
    late = decide(replace(seen, status=type(seen.status).model_validate(plan.status)), SETTINGS, NOW + 5000)
    assert late.status["phase"] == "Queued", "time without quota does not count"
    runs = state(job(PREP, queue="default"), pod(PREP, running=True, phase="Running"), status=late.status, workloads=(replace(load, reserved=True),))
    assert decide(runs, SETTINGS, NOW + 5001).status["phase"] == "Preparing"
    trains = state(PREPARED_STEP, job(TRAIN), pod(TRAIN, running=True, phase="Running"), status=late.status)
    assert condition(decide(trains, SETTINGS, NOW + 5002), "QuotaReserved") == {}


@pytest.mark.parametrize("why", ["suspended", "queued"])
def test_nobody_says_when_a_job_that_does_not_run_will_be_done(why: str) -> None:
    progress = Progress(step=12, total_steps=40, eta_seconds=840, updated_at=START)
    running = decide(state(PREPARED_STEP, job(TRAIN), pod(TRAIN, running=True, phase="Running"), progress=progress), SETTINGS, NOW)
    assert running.status["display"] == {"step": "12/40", "eta": "14m"}
    rest: JobState
    if why == "suspended":
        rest = state(PREPARED_STEP, job(TRAIN, suspended=True), spec={"suspend": True}, status=running.status, live=True)
    else:
        rest = state(PREPARED_STEP, job(TRAIN, suspended=True, queue="team-a"), spec={"queue": {"name": "team-a"}}, status=running.status)
    status = decide(rest, SETTINGS, NOW + 100).status
    assert (status["display"], "etaSeconds" in status["progress"]) == ({"step": "12/40"}, False)


def test_an_endpoint_that_cannot_be_read_holds_up_only_what_needs_it() -> None:
    told: dict[str, Any] = {"spec": {"inference": {"endpoint": "ep"}}, "endpoint_fault": "ModelEndpoint ep cannot be read (spec.engine: no such engine)"}
    assert decide(state(PREPARED_STEP, job(TRAIN), pod(TRAIN, running=True), **told), SETTINGS, NOW).status["phase"] == "Training"
    plan = settle(state(PREPARED_STEP, TRAINED_STEP, **told))
    assert (plan.status["phase"], plan.status["reason"], plan.create, plan.propose) == ("Deploying", "WaitingForEndpoint", (), ())
    assert "ep cannot be read (spec.engine: no such engine): correct it" in plan.status["message"]


@pytest.mark.parametrize(
    ("spec", "status", "endpoint"),
    [
        pytest.param({"inference": {"endpoint": "ep"}}, {}, "ep", id="it names one"),
        pytest.param({"inference": {}}, {}, "support", id="one of its own name"),
        pytest.param({}, {}, "", id="it serves nothing"),
        pytest.param({"inference": {}}, {"completionTime": START}, "", id="it has ended"),
    ],
)
def test_a_job_hears_of_a_change_of_the_endpoint_that_could_not_take_its_adapter(spec: dict[str, Any], status: dict[str, Any], endpoint: str) -> None:
    assert awaited("support", spec, status) == endpoint


def terminated(name: str, code: int, message: str = "", restarts: int = 0) -> dict[str, Any]:
    return {"name": name, "restartCount": restarts, "state": {"terminated": {"exitCode": code, "message": message, "finishedAt": START}}}


@pytest.mark.parametrize("code", [0, 20], ids=["done", "failed for good"])
def test_how_an_injected_sidecar_ends_says_nothing_of_the_step(code: int) -> None:
    raw = {
        "metadata": {"name": "p", "uid": "u", "labels": {}},
        "spec": {},
        "status": {"initContainerStatuses": [terminated("mesh-proxy", 143, restarts=3)], "containerStatuses": [terminated("main", code, PREPARED)]},
    }
    view = pod_view(raw)
    assert view.ended is not None
    assert (view.ended.container, view.ended.exit_code, view.ended.message, view.restarts) == ("main", code, PREPARED, 0)


def test_since_when_a_job_makes_pods_is_read_from_its_status() -> None:
    raw: dict[str, Any] = {
        "metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {"containers": [{"image": "i"}]}}}, "status": {"startTime": START},
    }  # fmt: skip
    assert job_view(raw).started_at == START
    raw["status"] = {"startTime": None}  # suspended
    assert job_view(raw).started_at == ""
