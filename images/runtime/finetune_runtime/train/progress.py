"""Progress reports to the operator: best effort, in a thread of its own. A lost report never changes an outcome."""

import http.client
import logging
import ssl
import threading
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from finetune_runtime.contract.config import STATUS_CA_PATH, STATUS_TOKEN_PATH, Reporting
from finetune_runtime.contract.result import MAX_VALUE, Metric, ProgressReport, TrainerStatus

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 5
_COMPLAIN_SECONDS = 60
# A pod that loads its model or evaluates for long has nothing new to tell, but the operator takes one that it does not hear for a lost one.
_HEARTBEAT_SECONDS = 60.0


class Phase(StrEnum):
    """What the pod is doing."""

    LOADING = "Loading"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    SAVING = "Saving"
    UPLOADING = "Uploading"


@dataclass(frozen=True)
class Progress:
    """How far training is; None: not known."""

    phase: Phase = Phase.LOADING
    step: int = 0
    total_steps: int = 0
    epoch: float | None = None
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    gpu_memory_gib: float | None = None
    checkpoint_step: int | None = None  # the newest one that is committed to storage; 0: there is none
    resumed_from: int | None = None  # 0: the pod started from the beginning
    fast_path: str | None = None  # used, or why not

    def report(self, now: datetime) -> ProgressReport:
        """The report's body. The remaining time is left to the operator, which sees all attempts."""
        numbers = {
            "epoch": self.epoch,
            "loss": self.loss,
            "evalLoss": self.eval_loss,
            "learningRate": self.learning_rate,
            "tokensPerSecond": self.tokens_per_second,
            "gpuMemoryGiB": self.gpu_memory_gib,
        }
        metrics = {"step": str(self.step), "totalSteps": str(self.total_steps)}
        metrics |= {name: f"{value:.6g}" for name, value in numbers.items() if value is not None}
        checkpoints = {"checkpointStep": self.checkpoint_step, "resumedFrom": self.resumed_from}
        metrics |= {name: str(step) for name, step in checkpoints.items() if step is not None}
        metrics["phase"] = self.phase
        if self.fast_path:
            metrics["fastPath"] = self.fast_path[:MAX_VALUE]
        return ProgressReport(
            trainer_status=TrainerStatus(
                progress_percentage=min(100, 100 * self.step // self.total_steps) if self.total_steps else None,
                metrics=[Metric(name=name, value=value) for name, value in metrics.items()],
                last_updated_time=now.isoformat(timespec="seconds").replace("+00:00", "Z"),
            )
        )


class Reporter:
    """Sends the newest progress at most every `interval_seconds`: when it has changed, and now and then when it has not."""

    def __init__(
        self, reporting: Reporting, ca_path: str = STATUS_CA_PATH, token_path: str = STATUS_TOKEN_PATH, heartbeat_seconds: float = _HEARTBEAT_SECONDS
    ) -> None:
        self._url, self._interval, self._heartbeat = urlsplit(reporting.url), reporting.interval_seconds, heartbeat_seconds
        self._ca_path, self._token_path = ca_path, Path(token_path)
        self._progress = Progress()
        self._lock = threading.Lock()  # so that of two updates at once neither is lost
        self._changed, self._closed = threading.Event(), threading.Event()
        self._complained = float("-inf")
        self._thread = threading.Thread(target=self._run, daemon=True)
        if reporting.url:
            self._changed.set()
            self._thread.start()

    def update(self, **fields: Any) -> None:
        """Changes fields of the progress. May be called by any thread."""
        with self._lock:
            self._progress = replace(self._progress, **fields)
        self._changed.set()

    def close(self) -> None:
        """Sends what is not sent yet, once, and stops."""
        self._closed.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(2 * _TIMEOUT_SECONDS)

    def _run(self) -> None:
        while not self._closed.is_set():
            self._changed.wait(self._heartbeat)
            if not self._closed.is_set():
                self._send()
                self._closed.wait(self._interval)
        self._send()

    def _send(self) -> None:
        self._changed.clear()
        body = self._progress.report(datetime.now(UTC)).model_dump_json(by_alias=True, exclude_none=True)
        try:
            self._post(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() - self._complained >= _COMPLAIN_SECONDS:
                self._complained = time.monotonic()
                log.warning("a progress report was lost (training goes on): %s: %s", type(error).__name__, error)

    def _post(self, body: str) -> None:
        if self._url.scheme != "https":
            raise ValueError(f"reporting.url must be https, because a token is sent: {self._url.geturl()}")
        # Both files are read for every report: they are rotated under us. Redirects are not followed: the token is for this address only.
        context = ssl.create_default_context(cafile=self._ca_path)
        token = self._token_path.read_text().strip()
        connection = http.client.HTTPSConnection(self._url.netloc, context=context, timeout=_TIMEOUT_SECONDS)
        try:
            connection.request("POST", self._url.path or "/", body, {"Content-Type": "application/json", "Authorization": f"Bearer {token}"})
            status = connection.getresponse().status
        finally:
            connection.close()
        if not 200 <= status < 300:
            raise http.client.HTTPException(f"the operator answered {status}")
