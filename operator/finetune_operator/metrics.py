"""Prometheus metrics of the operator."""

from prometheus_client import Counter, Gauge, Histogram

reconciles = Counter("finetune_reconciles", "Reconciliations by result", ["result"])
reconcile_seconds = Histogram("finetune_reconcile_seconds", "Duration of one reconciliation in seconds", buckets=(0.005, 0.02, 0.1, 0.5, 2, 10))
queue_depth = Gauge("finetune_queue_depth", "Objects that wait to be reconciled")
progress_reports = Counter("finetune_progress_reports", "Progress reports by HTTP status", ["status"])
