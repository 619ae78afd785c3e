"""report.html: what it says, that nothing in it can do harm, and that it stays small. UPDATE_GOLDEN=1 rewrites the golden page."""

import os
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.fast_path import FastPathStatus
from finetune_runtime.contract.result import TrainSummary
from finetune_runtime.report.data import Answer, Answers, ReportData, State, Turn
from finetune_runtime.report.page import duration, render
from tests.unit.runtime.report_cases import CONFIG, DATASET, TRAINED, WRITTEN, finished, records

GOLDEN = Path(__file__).parent / "golden/report.html"
HOSTILE = "</script></style><script>alert(1)</script>\"'><img src=x onerror=alert(1)> \u202eright to left\u202c {{ 7 * 7 }} " + "W" * 3000
LOADS = {"script", "link", "img", "iframe", "object", "embed", "base", "form", "use", "image", "a"}


class Page(HTMLParser):
    """Elements and texts of a page; checks that elements are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style" and data.strip():
            self.texts.append(data.strip())


FAST = FastPathStatus(
    used=True, micro_batch_size=16, accumulation=1, layers="36 keep all", lora_dtype="float32", optimizer="adamw_torch_fused", masters="none",
    predicted="60440Mi", measured="59400Mi",
)  # fmt: skip


def with_fast_path(status: FastPathStatus) -> TrainSummary:
    return TRAINED.model_copy(update={"fast_path": status})


def hostile() -> ReportData:
    invalid = [{"source": HOSTILE, "row": 1, "fault": "TooLong", "cause": HOSTILE}]
    return finished(
        message=HOSTILE,
        hardware=HOSTILE,
        dataset=DATASET | {"warnings": [HOSTILE], "invalid": invalid, "sha256": HOSTILE, "chatTemplate": {"origin": HOSTILE, "checked": 1}},
        train=TRAINED.model_copy(update={"command": HOSTILE, "versions": {HOSTILE: HOSTILE}}),
        answers=Answers(step=1, max_tokens=96, answers=[Answer(prompt=[Turn(role=HOSTILE, content=HOSTILE)], expected=HOSTILE, base=HOSTILE, tuned=HOSTILE)]),
        records=[*records(3), {"step": 4, "loss": 1.0, "resumes": [{"from": 2, "because": HOSTILE, "time": HOSTILE}]}],
    )


def test_the_page_of_a_finished_job_is_the_golden_one() -> None:
    # The hash belongs to the configuration's fields, not to the page.
    page = render(finished()).replace(CONFIG.config_hash(), "CONFIGURATION-HASH")
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(page, encoding="utf-8")
    assert page == GOLDEN.read_text(encoding="utf-8")


PAGES = {
    "prepared": ReportData(config=CONFIG, state=State.PREPARED, written=WRITTEN, dataset=DATASET),
    "nothing known": ReportData(config=CONFIG, state=State.TRAINING, written=WRITTEN, train=TrainSummary()),
    "one step": finished(records=records(1), answers=None),
    "finished": finished(),
    "failed": finished(state=State.FAILED, message="The loss became nan at step 7."),
    "hostile": hostile(),
}


@pytest.mark.parametrize("data", PAGES.values(), ids=PAGES)
def test_a_page_needs_nothing_else_and_runs_nothing(data: ReportData) -> None:
    text = render(data)
    page = Page(text)
    assert not LOADS & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in {"src", "href", "srcset", "action"}]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    [style] = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert not [word for word in ("url(", "@import", "expression(") if word in style]


def test_what_users_and_models_wrote_is_shown_as_they_wrote_it() -> None:
    page = Page(render(hostile()))
    assert page.texts.count(HOSTILE.strip()) >= 8, "message, hardware, warning, hash, command, package, role and answers"


SAID: dict[str, tuple[ReportData, list[str]]] = {
    "the headline": (finished(), ["support-qwen3", "Completed", "459", "of 459", "at step 450", "17 min 40 s", TRAINED.adapter.uri if TRAINED.adapter else ""]),
    "a run that stopped early": (finished(train=TRAINED.model_copy(update={"step": 300, "stopped_early": True})), ["300", "of 459, stopped early"]),
    "why a job failed": (
        finished(state=State.FAILED, message="Out of memory: lower training.maxLength."),
        ["Failed", "Out of memory: lower training.maxLength."],
    ),
    "what was resumed and why": (
        finished(),
        [
            "2026-11-25 09:14 UTC",
            "Went on from step 200: a new pod took over; 31 steps were trained again, with 4 rows at a time.",
            "Went on from step 200: out of memory, with 2 rows at a time.",
        ],
    ),
    "a start over": (finished(records=[{"step": 1, "loss": 1.0, "resumes": [{"from": 0, "because": "OutOfMemory"}]}]), ["Started over: out of memory."]),
    "batches": (finished(), ["16 rows a step, 2 at a time"]),
    "batches of several GPUs": (finished(config=CONFIG.model_copy(update={"gpus": 4})), ["16 rows a step, 2 at a time on each of 4 GPUs"]),
    "data": (
        finished(),
        [
            "2,445",
            "39.2 %",
            "20 (0.69 %)",
            "CSV, GB18030",
            "not sampled",
            "s3://datasets/support/clean_train.json:88: 1388 tokens, training.maxLength allows 1024",
            "129\u2013256",
        ],
    ),
    "answers": (finished(), ["Can I move my appointment to Friday?", "(nothing)", "We take all public insurances. Please bring your card."]),
    "the fast path": (finished(train=with_fast_path(FAST)), ["Fast path", str(FAST)]),
    "no fast path": (
        finished(train=with_fast_path(FastPathStatus(used=False, reason="unsupported: bias in o_proj"))),
        ["not used (unsupported: bias in o_proj)"],
    ),
    "where it comes from": (finished(), ["9c925d64d72725edaf899c6cb9c377fd0709d9c5", DATASET["sha256"], CONFIG.config_hash(), TRAINED.command, "4.6.0"]),
}


@pytest.mark.parametrize(("data", "words"), SAID.values(), ids=SAID)
def test_the_page_says(data: ReportData, words: list[str]) -> None:
    texts = Page(render(data)).texts
    assert [word for word in words if word not in texts] == []


def test_every_value_of_the_curves_can_be_read_under_the_pointer() -> None:
    texts = Page(render(finished(records=records(20, evaluated_every=10)))).texts
    for record in records(20, evaluated_every=10):
        expected = f"step {record['step']}\ntraining {record['loss']:.4g}" + (f"\nevaluation {record['evalLoss']:.4g}" if "evalLoss" in record else "")
        assert expected in texts


def test_no_evaluation_is_lost_among_many_steps() -> None:
    texts = [text for text in Page(render(finished(records=records(10_000, evaluated_every=200)))).texts if "evaluation " in text]
    assert len([text for text in texts if text.startswith("step ")]) == 50


def test_ten_thousand_steps_make_a_small_page_at_once() -> None:
    data = finished(records=records(10_000))
    started = time.process_time()
    page = render(data)
    assert time.process_time() - started < 1
    assert len(page.encode()) < 1_000_000


DURATIONS: dict[str, tuple[float, str]] = {
    "seconds": (41.6, "42 s"),
    "minutes": (60.0, "1 min 0 s"),
    "hours": (7384.0, "2 h 3 min"),
    "days": (100_000.0, "27 h 46 min"),
}


@pytest.mark.parametrize(("seconds", "expected"), DURATIONS.values(), ids=DURATIONS)
def test_duration(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


UNFINISHED: dict[str, dict[str, Any]] = {
    "without a histogram": {"tokens": {"total": 1, "percentiles": {}}},
    "without a single valid row": {"tokens": {"histogram": [{"upTo": 16, "rows": 0}]}},
    "of another version": {"somethingNew": [1, 2, 3]},
}


@pytest.mark.parametrize("dataset", UNFINISHED.values(), ids=UNFINISHED)
def test_a_data_report_may_lack_parts(dataset: dict[str, Any]) -> None:
    assert "How to get the same" in Page(render(finished(dataset=dataset))).texts
