"""The report page's first version, with the data alone: there to be read before a GPU is asked for."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from finetune_runtime.contract.artefact import REPORT_DIR, REPORT_PAGE
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.report.data import ReportData, State
from finetune_runtime.report.page import render
from finetune_runtime.s3.store import Store

log = logging.getLogger(__name__)


def upload(store: Store, config: JobConfig, report: Mapping[str, Any]) -> None:
    """Best effort: the data is committed already, and the training step writes the page again. `report`: content of report.json."""
    try:
        page = render(ReportData(config=config, state=State.PREPARED, written=datetime.now(UTC), dataset=report))
        store.put(f"{config.prefix}/{REPORT_DIR}/{REPORT_PAGE}", page.encode(), "text/html; charset=utf-8")
    except Exception:
        log.exception("the report page cannot be written")
