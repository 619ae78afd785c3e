"""The step evaluate: gather what the gates ask, ask it, judge it, write it down. Needs a CPU only.

SIGTERM keeps its default action: all of it can be made again, so there is nothing to save.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from finetune_runtime.contract.config import SCRATCH_DIR, EvaluateConfig
from finetune_runtime.contract.evaluation import Evaluation
from finetune_runtime.contract.result import Reason, StepResult
from finetune_runtime.report.evaluation_data import Asked, EvaluationRecord, GateRecord
from finetune_runtime.s3.store import Store

from . import drift, prompts, results
from .interview import interview
from .judge import JudgeError, rate
from .verdict import conclude, reasons, sentence

log = logging.getLogger(__name__)

STEP = "evaluate"


def run(config: EvaluateConfig) -> StepResult:
    """Evaluates the version. A closed gate is a result; StepError is raised when there can be none."""
    for name in ("httpx2", "httpcore2", "openai"):
        logging.getLogger(name).setLevel(logging.WARNING)  # else a line for every request
    store = Store(config.storage)
    store.check_writable(config.uri)  # before minutes of questions
    wanted = prompts.load(config, store, Path(os.environ.get("FINETUNE_SCRATCH", SCRATCH_DIR)) / STEP)
    asked, unasked = interview(config, wanted) if any(wanted) else ([[] for _ in wanted], {})
    gates = [_decided(config, place, gate, asked[place], unasked) for place, gate in enumerate(config.gates)]
    changed, drifted = drift.measure(config, store) if any(wanted) else (None, [])
    result = conclude(gates, results.page_uri(config.uri)).model_copy(update={"quantization_drift": changed})
    record = EvaluationRecord(
        namespace=config.endpoint.namespace,
        endpoint=config.endpoint.name,
        version=config.version,
        job=config.job,
        eval_loss=config.eval_loss,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        candidate=config.candidate,
        base=config.base,
        current=config.current,
        unasked=unasked,
        result=result,
        gates=gates,
        drifted=drifted,
    )
    results.write(store, config.uri, record, config.storage_timeout_seconds)
    return StepResult(step=STEP, reason=Reason.COMPLETED if result.passed else Reason.GATE_CLOSED, message=sentence(result), evaluation=result)


def _decided(config: EvaluateConfig, place: int, gate: Evaluation, asked: Sequence[Asked], unasked: Mapping[str, str]) -> GateRecord:
    failure = ""
    if gate.judge and asked:
        try:
            asked = rate(place, gate.judge, asked)
        except JudgeError as error:
            failure = str(error)
            log.warning("no judgement: %s", failure)
    return GateRecord(
        demands=gate.model_copy(update={"prompts": []}),
        source=gate.prompts_from.source if gate.prompts_from else "",
        asked=list(asked),
        reasons=reasons(gate, config.eval_loss, asked, unasked, failure),
    )
