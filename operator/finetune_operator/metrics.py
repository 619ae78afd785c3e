"""Prometheus metrics of the operator itself. Those of the jobs are in job_metrics."""

from prometheus_client import Counter, Gauge, Histogram

reconciles = Counter("finetune_reconciles", "Reconciliations by result", ["result"])
reconcile_seconds = Histogram("finetune_reconcile_seconds", "Duration of one reconciliation in seconds", buckets=(0.005, 0.02, 0.1, 0.5, 2, 10))
queue_depth = Gauge("finetune_queue_depth", "Objects that wait to be reconciled")
progress_reports = Counter("finetune_progress_reports", "Progress reports by HTTP status", ["status"])
status_writes = Counter("finetune_status_writes", "Statuses written, by kind", ["kind"])
api_requests = Counter("finetune_api_requests", "Requests to the API server, watches aside, by verb, kind and outcome", ["verb", "kind", "code"])


def api_request(verb: str, kind: str, error: int | None = None) -> None:
    """Count a request. `error`: HTTP status of a request that failed, 0 when there was no answer; None: it did not fail."""
    code = "ok" if error is None else str(error) if error else "unreachable"
    api_requests.labels(verb=verb, kind=kind, code=code).inc()
