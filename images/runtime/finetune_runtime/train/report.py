"""report/ in storage: metrics, TensorBoard's event files, answers and the page, overwritten as the training goes on."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_runtime.contract.artefact import REPORT_DIR, REPORT_PAGE
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import TrainSummary
from finetune_runtime.report.data import Answers, ReportData, State
from finetune_runtime.report.page import render
from finetune_runtime.s3.store import ObjectNotFound, Store

from .answers import ANSWERS

log = logging.getLogger(__name__)

METRICS_FILE = f"{REPORT_DIR}/metrics.jsonl"
ANSWERS_FILE = f"{REPORT_DIR}/{ANSWERS}"


def upload(store: Store, prefix: str, metrics: Path, tensorboard: Path) -> None:
    """Uploads what there is. Event files have names of their own per attempt, so those of earlier attempts stay."""
    if metrics.exists():
        store.upload(metrics, f"{prefix}/{METRICS_FILE}")
    for path in sorted(tensorboard.rglob("events.out.tfevents.*")):
        store.upload(path, f"{prefix}/{REPORT_DIR}/tensorboard/{path.relative_to(tensorboard).as_posix()}")


class Page:
    """report.html, made of the files that the training leaves on disk."""

    def __init__(self, config: JobConfig, store: Store, dataset: Path, metrics: Path, answers: Path, hardware: str) -> None:
        """`dataset`: report.json of the prepare step. `answers`: where the training process leaves them."""
        self._config, self._store, self._hardware = config, store, hardware
        self._dataset, self._metrics, self._answers = dataset, metrics, answers
        self._earlier: Answers | None = None  # of an earlier pod
        self._looked = False

    def upload(self, summary: TrainSummary, state: State, message: str = "") -> None:
        """Makes and uploads the page, and the answers once they are there. Raises StepError when storage is down, and nothing else."""
        if self._answers.is_file():
            self._store.upload(self._answers, f"{self._config.prefix}/{ANSWERS_FILE}")
        earlier = self._earlier_answers()
        try:
            page = render(
                ReportData(
                    config=self._config,
                    state=state,
                    message=message,
                    written=datetime.now(UTC),
                    dataset=json.loads(self._dataset.read_bytes()) if self._dataset.exists() else {},
                    records=_records(self._metrics),
                    train=summary,
                    hardware=self._hardware,
                    answers=Answers.model_validate_json(self._answers.read_bytes()) if self._answers.is_file() else earlier,
                )
            )
        except Exception:  # a page is no reason to lose a training
            log.exception("the report page cannot be made")
            return
        self._store.put(f"{self._config.prefix}/{REPORT_DIR}/{REPORT_PAGE}", page.encode(), "text/html; charset=utf-8")

    def _earlier_answers(self) -> Answers | None:
        """A pod that only commits what an earlier one trained asks the model nothing."""
        if not self._looked:
            try:
                self._earlier = Answers.model_validate_json(self._store.read(f"{self._config.prefix}/{ANSWERS_FILE}"))
            except (ObjectNotFound, ValidationError):
                self._earlier = None
            self._looked = True
        return self._earlier


def _records(metrics: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
