"""Makers of observed state: each test says only what matters to it."""

import json
from dataclasses import replace
from typing import Any

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.meta import Owner
from finetune_operator.api.modelendpoint import ModelEndpoint
from finetune_operator.names import Step, step_job
from finetune_operator.observe import DeploymentView, Ended, JobView, PodView
from finetune_operator.plan.job import decide
from finetune_operator.plan.types import EndpointState, JobState, Plan
from finetune_operator.settings import Settings

NOW = 1_800_000_000.0
START = "2027-01-15T08:00:00Z"  # NOW
SETTINGS = Settings(trainer_image="trainer:1", inference_image="inference:1", status_url="https://status.system.svc")
ADAPTER = {"uri": "s3://models/ft/team/support/uid-1/adapter", "manifestSha256": "a" * 64}
SPEC: dict[str, Any] = {
    "model": {"source": "s3://models/base", "type": "qwen3", "template": "qwen3"},
    "dataset": {"train": [{"source": "s3://data/train.jsonl"}]},
    "storage": {"s3": {"uri": "s3://models/ft", "endpoint": "http://s3:7070", "secretRef": {"name": "s3"}}},
}


def owner(kind: str = "FineTuneJob", name: str = "support", generation: int = 1) -> Owner:
    return Owner(kind=kind, namespace="team", name=name, uid="uid-1", generation=generation)


def result(step: str, reason: str = "Completed", message: str = "done", **fields: Any) -> str:
    return json.dumps({"step": step, "reason": reason, "message": message, **fields})


PREPARED = result(
    "prepare", data={"trainRows": 120, "validationRows": 6, "tokens": 9000, "longest": 80, "sha256": "b" * 64, "modelType": "qwen3", "template": "qwen3"}
)
RAN = {"microBatch": 4, "command": "python3 -m swift.cli.sft --model /scratch/model", "versions": {"ms-swift": "4.6.0"}}
TRAINED = result("train", train={"step": 40, "totalSteps": 40, "resumedFrom": 20, "loss": 0.0123456, "evalLoss": 0.5, "adapter": ADAPTER, **RAN})


def job(step: Step, attempt: int = 1, **fields: Any) -> JobView:
    values: dict[str, Any] = {
        "name": step_job("support", step, attempt), "owner_uid": "uid-1", "step": step, "attempt": attempt, "suspended": False, "complete": False,
        "failed": False, "failure": "", "finished_at": "", "deleting": False, "uid": f"{step}-{attempt}".lower(),
        "image": "trainer:1", "suspended_at": START if fields.get("suspended") else "",
    }  # fmt: skip
    return JobView(**{**values, **fields})


def pod(step: Step, attempt: int = 1, name: str = "", **fields: Any) -> PodView:
    values: dict[str, Any] = {
        "name": name or f"{step_job('support', step, attempt)}-x1", "uid": "pod-uid", "parent": step_job("support", step, attempt), "owner_name": "support",
        "phase": "Pending", "node": "", "created_at": START, "deleting": False, "running": False, "ready": False, "waiting_reason": "", "waiting_message": "",
        "unschedulable": "", "restarts": 0, "ended": None, "job_uid": "uid-1",
    }  # fmt: skip
    return PodView(**{**values, **fields})


def ended(code: int, message: str = "", reason: str = "Error", container: str = "main") -> Ended:
    return Ended(container, code, reason if code else "Completed", message, START)


def done(step: Step, message: str, attempt: int = 1) -> tuple[JobView, PodView]:
    return (
        job(step, attempt, complete=True, finished_at=START),
        pod(step, attempt, phase="Succeeded", node="n1", ended=ended(0, message)),
    )


def failed(step: Step, code: int, message: str = "", attempt: int = 1, reason: str = "Error") -> tuple[JobView, PodView]:
    return (
        job(step, attempt, failed=True, failure="Job has reached the specified backoff limit", finished_at=START),
        pod(step, attempt, phase="Failed", node="n1", ended=ended(code, message, reason)),
    )


def state(
    *children: tuple[JobView, PodView] | JobView | PodView, spec: dict[str, Any] | None = None, status: dict[str, Any] | None = None, **fields: Any
) -> JobState:
    flat = [c for child in children for c in (child if isinstance(child, tuple) else (child,))]
    found = FineTuneJob.model_validate({"spec": {**SPEC, **(spec or {})}, "status": status or {}})
    return JobState(
        owner=owner(), spec=found.spec, status=found.status,
        jobs=tuple(c for c in flat if isinstance(c, JobView)), pods=tuple(c for c in flat if isinstance(c, PodView)), **fields,
    )  # fmt: skip


def endpoint_state(
    *views: DeploymentView | PodView | JobView, spec: dict[str, Any] | None = None, status: dict[str, Any] | None = None, **fields: Any
) -> EndpointState:
    found = ModelEndpoint.model_validate({"spec": {"model": SPEC["model"], "storage": SPEC["storage"], **(spec or {})}, "status": status or {}})
    return EndpointState(
        owner=owner("ModelEndpoint"), spec=found.spec, status=found.status,
        deployments=tuple(v for v in views if isinstance(v, DeploymentView)), pods=tuple(v for v in views if isinstance(v, PodView)),
        jobs=tuple(v for v in views if isinstance(v, JobView)), **{"live": True, **fields},
    )  # fmt: skip


def condition(plan: Plan, kind: str) -> dict[str, Any]:
    return next((c for c in plan.status["conditions"] if c["type"] == kind), {})


def names(bodies: tuple[dict[str, Any], ...]) -> list[str]:
    return [f"{b['kind']}/{b['metadata']['name']}" for b in bodies]


PREP, TRAIN = Step.PREPARE, Step.TRAIN
PREPARED_STEP = done(PREP, PREPARED)
TRAINED_STEP = done(TRAIN, TRAINED)


def settle(seen: Any, now: float = NOW, rounds: int = 5) -> Plan:
    """Decide until the status no longer changes: what users see at rest."""
    plan = decide(seen, SETTINGS, now)
    for _ in range(rounds):
        seen = replace(seen, status=type(seen.status).model_validate(plan.status))
        plan = decide(seen, SETTINGS, now)
    return plan
