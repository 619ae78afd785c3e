"""Prometheus metrics of every FineTuneJob, made from the caches at each scrape: a deleted job leaves no series behind."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from . import clock
from .api.jobstatus import Progress

Raw = Mapping[str, Any]
Latest = Callable[[tuple[str, str], str, float], Progress | None]

TRAINING = "Training"  # phase
LABELS = ("namespace", "name")  # none that a pod, a user or time could multiply

# Names of families with their help. Each is absent for a job while its value is not known.
_RECORDED = {  # by field of status.progress
    "step": ("step", "Optimizer steps done"),
    "totalSteps": ("total_steps", "Optimizer steps of the whole run"),
    "checkpointStep": ("checkpoint_step", "Step of the newest checkpoint committed to storage"),
    "loss": ("loss", "Last training loss"),
    "evalLoss": ("eval_loss", "Last evaluation loss"),
    "gpuMemory": ("gpu_memory_gib", "Peak GPU memory in GiB"),
}
_COUNTED = {  # by field of status
    "attempt": ("attempts", "Tries of the training so far"),
    "interruptions": ("interruptions", "Pods that ended early and were replaced in the same try"),
}
_RUNNING = {  # while a job trains
    "eta_seconds": "Estimated seconds until training ends",
    "tokens_per_second": "Training tokens per second",
    "progress_age_seconds": "Seconds since the training pod last reported",
}


class JobCollector(Collector):
    """Reads statuses, and the newest reports, which are ahead of them."""

    def __init__(self, jobs: Callable[[], Iterable[Raw]], latest: Latest, now: Callable[[], float] = time.time) -> None:
        """`jobs` gives all FineTuneJobs as plain objects; `latest` is ProgressStore.latest."""
        self._jobs, self._latest, self._now = jobs, latest, now

    def collect(self) -> Iterable[Metric]:
        """One family for each metric, one series a job in it."""
        helps = dict([*_RECORDED.values(), *_COUNTED.values()]) | _RUNNING
        families = {name: GaugeMetricFamily(f"finetune_job_{name}", text, labels=LABELS) for name, text in helps.items()}
        families["info"] = GaugeMetricFamily("finetune_job_info", "What a job trains; always 1", labels=(*LABELS, "model", "method"))
        families["phase"] = GaugeMetricFamily("finetune_job_phase", "1 for the phase that a job is in", labels=(*LABELS, "phase"))
        now = self._now()
        for job in self._jobs():
            key = (job["metadata"]["namespace"], job["metadata"]["name"])
            families["info"].add_metric((*key, *_inputs(job.get("spec") or {})), 1)
            families["phase"].add_metric((*key, _phase(job)), 1)
            for name, value in self._values(key, job, now):
                if (number := _number(value)) is not None:
                    families[name].add_metric(key, number)
        return families.values()

    def _values(self, key: tuple[str, str], job: Raw, now: float) -> Iterable[tuple[str, object]]:
        status = job.get("status") or {}
        yield from ((name, status.get(field, 0)) for field, (name, _) in _COUNTED.items())
        progress = dict(status.get("progress") or {})
        report = self._latest(key, job["metadata"]["uid"], now) if _phase(job) == TRAINING else None
        if report and report.total_steps:  # before that the pod is still loading, and the status knows more
            progress |= report.dump()
        yield from ((name, progress.get(field)) for field, (name, _) in _RECORDED.items())
        if report and not report.stale:
            yield from (("eta_seconds", report.eta_seconds), ("tokens_per_second", report.tokens_per_second))
        if _phase(job) == TRAINING and (updated := report.updated_at if report else progress.get("updatedAt")):
            yield "progress_age_seconds", max(0.0, now - clock.seconds(updated))


def _phase(job: Raw) -> str:
    return str((job.get("status") or {}).get("phase") or "Pending")


def _inputs(spec: Raw) -> tuple[str, str]:
    return str((spec.get("model") or {}).get("source", "")), str((spec.get("tuning") or {}).get("method", ""))


def _number(value: object) -> float | None:
    """A number, which may be text in the API; None for what is none."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def watch(jobs: Callable[[], Iterable[Raw]], latest: Latest, registry: CollectorRegistry = REGISTRY, now: Callable[[], float] = time.time) -> JobCollector:
    """Expose the jobs' metrics. Undone by `registry.unregister`."""
    collector = JobCollector(jobs, latest, now)
    registry.register(collector)
    return collector
