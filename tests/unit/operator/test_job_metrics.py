"""Metrics of jobs, as Prometheus reads them."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from finetune_operator import clock, metrics
from finetune_operator.job_metrics import watch
from finetune_operator.progress import STALE_AFTER, ProgressStore
from finetune_runtime.contract.result import Metric, TrainerStatus

NOW = 1_800_000_000.0
PROGRESS = {"step": 10, "totalSteps": 40, "percent": 25, "loss": "1.5", "checkpointStep": 8, "gpuMemory": "7.5", "tokensPerSecond": "900", "etaSeconds": 5}


def job(name: str = "support", phase: str = "Training", **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "team", "name": name, "uid": "uid-1"},
        "spec": {"model": {"source": "hf://Qwen/Qwen3-8B"}, "tuning": {"method": "QLoRA"}},
        "status": {"phase": phase, **status},
    }


class Scrape:
    """Jobs that are there, reports that came, and what a scrape finds of them."""

    def __init__(self, *jobs: dict[str, Any]) -> None:
        self.jobs, self.progress, self.now, self.registry = list(jobs), ProgressStore(), NOW, CollectorRegistry()
        watch(lambda: self.jobs, self.progress.latest, self.registry, now=lambda: self.now)

    def report(self, age: float, **values: object) -> None:
        found = [Metric(name=name, value=str(value)) for name, value in values.items()]
        self.progress.record(("team", "support"), "uid-1", "u1", TrainerStatus(metrics=found, last_updated_time="x"), NOW - age)

    def __call__(self, name: str = "support") -> dict[str, float]:
        """Values of a job by metric; of those with a label more, by metric and that label."""
        found = [sample for family in self.registry.collect() for sample in family.samples if sample.labels["name"] == name]
        extra = {id(s): [v for k, v in s.labels.items() if k not in {"namespace", "name"}] for s in found}
        return {" ".join([s.name.removeprefix("finetune_job_"), *extra[id(s)]]): s.value for s in found}


ALWAYS = {"info hf://Qwen/Qwen3-8B QLoRA": 1}


def test_a_new_job() -> None:
    assert Scrape(job(phase=""))() == ALWAYS | {"phase Pending": 1, "attempts": 0, "interruptions": 0}


def test_a_job_that_trains() -> None:
    scrape = Scrape(job(attempt=2, interruptions=3, progress=PROGRESS))
    for age, step in ((30, 10), (10, 20)):
        scrape.report(age, step=step, totalSteps=40, loss=1.25, evalLoss=1.5, checkpointStep=16, tokensPerSecond=1000, gpuMemoryGiB=8)
    assert scrape() == ALWAYS | {
        "phase Training": 1, "attempts": 2, "interruptions": 3, "step": 20, "total_steps": 40, "checkpoint_step": 16, "loss": 1.25, "eval_loss": 1.5,
        "gpu_memory_gib": 8, "eta_seconds": 30, "tokens_per_second": 1000, "progress_age_seconds": 10,
    }  # fmt: skip


def test_right_after_a_restart_of_the_operator_the_status_is_what_is_known() -> None:
    found = Scrape(job(progress=PROGRESS | {"updatedAt": clock.text(NOW - 30)}))()
    assert (found["step"], found["loss"], found["progress_age_seconds"]) == (10, 1.5, 30)
    assert {"eta_seconds", "tokens_per_second"}.isdisjoint(found)  # those were true then


def test_a_pod_that_is_loading_takes_nothing_back() -> None:
    scrape = Scrape(job(progress=PROGRESS))
    scrape.report(5, step=0, totalSteps=0, phase="Loading")
    assert (scrape()["step"], scrape()["progress_age_seconds"]) == (10, 5)


def test_a_pod_that_is_not_heard_of() -> None:
    scrape = Scrape(job(progress=PROGRESS))
    for age, step in ((STALE_AFTER + 40, 10), (STALE_AFTER + 20, 20)):
        scrape.report(age, step=step, totalSteps=4000, tokensPerSecond=1000)
    found = scrape()
    assert (found["step"], found["progress_age_seconds"]) == (20, STALE_AFTER + 20)
    assert {"eta_seconds", "tokens_per_second"}.isdisjoint(found)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed", "Suspended", "Queued"])
def test_a_job_that_does_not_train_has_a_record_and_no_speed(phase: str) -> None:
    scrape = Scrape(job(phase=phase, attempt=1, progress=PROGRESS | {"step": 40, "updatedAt": clock.text(NOW - 999)}))
    scrape.report(20, step=10, totalSteps=40, tokensPerSecond=1000)
    scrape.report(10, step=20, totalSteps=40, tokensPerSecond=1000)
    found = scrape()
    assert (found["step"], found[f"phase {phase}"]) == (40, 1)
    assert {"eta_seconds", "tokens_per_second", "progress_age_seconds"}.isdisjoint(found)


def test_a_deleted_job_leaves_nothing_behind_and_another_phase_replaces_the_last() -> None:
    scrape = Scrape(job("a"), job("b"))
    assert "phase Training" in scrape("a")
    scrape.jobs = [job("b", "Failed")]
    assert scrape("a") == {}
    assert [name for name in scrape("b") if name.startswith("phase")] == ["phase Failed"]


def test_no_series_is_made_per_pod() -> None:
    scrape = Scrape(job(progress=PROGRESS))
    before = len(scrape())
    for pod in range(5):
        found = TrainerStatus(metrics=[Metric(name="step", value="1"), Metric(name="totalSteps", value="40")], last_updated_time="x")
        scrape.progress.record(("team", "support"), "uid-1", f"u{pod}", found, NOW)
    assert len(scrape()) <= before + 1  # the age of the last report


def test_a_number_that_is_none_is_left_out_and_the_scrape_goes_on() -> None:
    found = Scrape(job(progress=PROGRESS | {"loss": "lots", "evalLoss": "NaN"}))()
    assert {"loss", "eval_loss"}.isdisjoint(found)
    assert found["step"] == 10


def test_names_and_help_are_exposed() -> None:
    text = generate_latest(Scrape(job()).registry).decode()
    assert 'finetune_job_phase{name="support",namespace="team",phase="Training"} 1.0' in text
    assert "# HELP finetune_job_eta_seconds Estimated seconds until training ends" in text


@pytest.mark.parametrize(("error", "code"), [(None, "ok"), (409, "409"), (0, "unreachable")])
def test_requests_are_counted_by_outcome(error: int | None, code: str) -> None:
    counter = metrics.api_requests.labels(verb="create", kind="Job", code=code)
    before = counter._value.get()
    metrics.api_request("create", "Job", error)
    assert counter._value.get() == before + 1
