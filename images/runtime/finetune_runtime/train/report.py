"""report/ in storage: metrics.jsonl and TensorBoard's event files, overwritten as the training goes on."""

from pathlib import Path

from finetune_runtime.contract.artefact import REPORT_DIR
from finetune_runtime.s3.store import Store

METRICS_FILE = f"{REPORT_DIR}/metrics.jsonl"


def upload(store: Store, prefix: str, metrics: Path, tensorboard: Path) -> None:
    """Uploads what there is. Event files have names of their own per attempt, so those of earlier attempts stay."""
    if metrics.exists():
        store.upload(metrics, f"{prefix}/{METRICS_FILE}")
    for path in sorted(tensorboard.rglob("events.out.tfevents.*")):
        store.upload(path, f"{prefix}/{REPORT_DIR}/tensorboard/{path.relative_to(tensorboard).as_posix()}")
