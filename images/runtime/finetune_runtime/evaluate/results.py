"""evaluation.json and report.html in storage. No committed artefacts: a second run replaces them."""

import logging
import time

from finetune_runtime.contract.artefact import REPORT_PAGE
from finetune_runtime.contract.result import StepError
from finetune_runtime.report.evaluation_data import EvaluationRecord
from finetune_runtime.report.evaluation_page import render
from finetune_runtime.s3.store import Store

log = logging.getLogger(__name__)

RESULTS_FILE = "evaluation.json"
_PAUSE = 5.0  # seconds


def page_uri(uri: str) -> str:
    """Where the page of results below `uri` is."""
    return f"{uri.rstrip('/')}/{REPORT_PAGE}"


def write(store: Store, uri: str, record: EvaluationRecord, patience: float) -> None:
    """Waits up to `patience` seconds for storage that is down: to ask everything again takes longer. Raises StepError."""
    document = record.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode()
    page = render(record).encode()
    end = time.monotonic() + patience
    while True:
        try:
            store.put(f"{uri.rstrip('/')}/{RESULTS_FILE}", document, "application/json")
            store.put(page_uri(uri), page, "text/html; charset=utf-8")
        except StepError as error:
            if time.monotonic() + _PAUSE > end:
                raise
            log.warning("the results wait for storage: %s", error.message)
            time.sleep(_PAUSE)
        else:
            return
