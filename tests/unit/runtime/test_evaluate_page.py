"""The page of an evaluation: what it says, that nothing in it can do harm, and that it stays small. UPDATE_GOLDEN=1 rewrites the golden page."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.config import Target
from finetune_runtime.contract.evaluation import Evaluation, Expectation, QuantizationDrift
from finetune_runtime.report.data import Turn
from finetune_runtime.report.evaluation_data import Answer, Asked, DriftedAnswer, EvaluationRecord, GateRecord
from finetune_runtime.report.evaluation_page import MAX_SHOWN, render
from tests.unit.runtime.evaluation_cases import answer, asked, evaluation, gate
from tests.unit.runtime.test_report_page import HOSTILE, LOADS, Page

GOLDEN = Path(__file__).parent / "golden/evaluation.html"


def hostile() -> EvaluationRecord:
    said = Answer(text=HOSTILE, finish="stop", misses=[HOSTILE], rating=1.0, rating_reason=HOSTILE, tokens=1, seconds=1)
    prompt = Asked(
        name=HOSTILE[:63],
        conversation=[Turn(role="user", content=HOSTILE)],
        expect=Expectation(contains=[HOSTILE[:1024]]),
        candidate=[said, Answer(refused=HOSTILE)],
        base=[said],
        current=[said],
    )
    return evaluation(
        gates=[GateRecord(demands=gate(), source=HOSTILE, asked=[prompt], reasons=[HOSTILE[:512]])],
        unasked={"base": HOSTILE},
        version=HOSTILE,
        candidate=Target(url=HOSTILE, model=HOSTILE),
    )


def merged(**fields: Any) -> EvaluationRecord:
    """A version that is served merged, of an adapter that was trained on four bits."""
    record = evaluation()
    drift = QuantizationDrift(trained="nf4", served="Merged", **fields)
    answers = [
        DriftedAnswer(prompt=[Turn(role="user", content=HOSTILE)], trained=HOSTILE, served=HOSTILE, same=False),
        DriftedAnswer(prompt=[], trained="the same", served="the same", same=True, trained_logprobs=[-1.0, -2.0], served_logprobs=[-1.0, -2.5]),
    ]
    return record.model_copy(update={"result": record.result.model_copy(update={"quantization_drift": drift}), "drifted": answers})


PAGES: dict[str, EvaluationRecord] = {
    "closed": evaluation(),
    "open": evaluation(gates=[GateRecord(demands=gate(), asked=[asked("hours", "+++", "---", "+++")])]),
    "candidate alone": evaluation(gates=[GateRecord(demands=gate(), asked=[asked("hours", "+")])], base=None, current=None),
    "candidate and base": evaluation(gates=[GateRecord(demands=gate(), asked=[asked("hours", "+", "-")])], current=None),
    "nothing asked": evaluation(gates=[GateRecord(demands=Evaluation(), reasons=["evaluation loss 2 is above evalLoss.max 1"])], eval_loss=None),
    "hostile": hostile(),
    "merged": merged(prompts=2, sameAnswers="0.50", firstDifference="7", logprobDifference="0.2500"),
}


def test_the_page_of_a_closed_gate_is_the_golden_one() -> None:
    page = render(evaluation())
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(page, encoding="utf-8")
    assert page == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("record", PAGES.values(), ids=PAGES)
def test_a_page_needs_nothing_else_and_runs_nothing(record: EvaluationRecord) -> None:
    text = render(record)
    page = Page(text)
    assert not LOADS & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in {"src", "href", "srcset", "action"}]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    [style] = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert not [word for word in ("url(", "@import", "expression(") if word in style]


def test_what_users_and_models_wrote_is_shown_as_they_wrote_it() -> None:
    texts = Page(render(hostile())).texts
    assert texts.count(HOSTILE.strip()) >= 10, "version, reason, source, prompt, its name, and three answers with why they missed"


SAID: dict[str, tuple[EvaluationRecord, list[str]]] = {
    "the verdict": (evaluation(), ["support-1a2b3c4d", "Gate closed", "pass rate 0.66 is below minPassRate 0.9"]),
    "an open gate": (PAGES["open"], ["Gate open"]),
    "the headline": (evaluation(), ["0.66", "4 of 6 answers", "0.800 s", "p50 0.800 s", "Evaluation loss", "1.0402", "Judge score"]),
    "all three side by side": (evaluation(), ["Base model", "Current version", "Candidate", "✗ 0 of 3", "✗ 2 of 3", "✗ 1 of 3", "✓ 3 of 3"]),
    "why an answer missed": (evaluation(), ['contains "As an AI"', "is not JSON: Expecting value: line 1 column 1 (char 0)", "refused: 400 the prompt is too long"]),
    "equal answers together": (evaluation(), ["✓ met, 3 of 3", "✗ missed, 1 of 3", "(nothing)"]),
    "where an answer was cut": (evaluation(), ["cut at the longest answer that is allowed"]),
    "what the judge says": (evaluation(), ["judge: 4, correct, but says nothing of Saturday", "judge: 2", "judge-1 at https://judge.example/v1, mean rating at least 3"]),
    "what was expected": (evaluation(), ["Expected: contains “eight”; does not contain “As an AI”; within 2 s"]),
    "what the gate demands": (
        evaluation(),
        [
            "at most 1.5",
            "at least 0.9, and not below that of the current version",
            "3 times each, temperature 0, top-p 1, at most 256 tokens",
            "s3://datasets/support/prompts.jsonl",
        ],
    ),
    "who was not asked": (
        evaluation(unasked={"current": "http://y gave no answer in 6 tries"}),
        ["Current version: not in the comparison, because http://y gave no answer in 6 tries."],
    ),
    "by how much answers change": (
        PAGES["merged"],
        [
            "nf4 base",
            "quantization Merged",
            "0.50 of 2 prompts of the validation data, greedily",
            "after 7 characters, on average",
            "differs by 0.2500 on average, over 2 tokens of the training's answers",
            "As trained",
        ],
    ),
    "why that is not known": (merged(unmeasured="the training left no answers"), ["By how much answers change is not known: the training left no answers."]),
    "a loss alone": (PAGES["nothing asked"], ["Gate closed", "evaluation loss 2 is above evalLoss.max 1"]),
}  # fmt: skip


@pytest.mark.parametrize(("record", "words"), SAID.values(), ids=SAID)
def test_the_page_says(record: EvaluationRecord, words: list[str]) -> None:
    texts = Page(render(record)).texts
    assert [word for word in words if word not in texts] == []


def test_what_the_candidate_missed_comes_first() -> None:
    record = evaluation(gates=[GateRecord(demands=gate(), asked=[asked("good", "+"), asked("bad", "-"), asked("fine", "+")])])
    texts = Page(render(record)).texts
    assert [text for text in texts if text in {"good", "bad", "fine"}] == ["bad", "good", "fine"] * 2


def test_thousands_of_prompts_make_a_page_that_a_browser_can_show() -> None:
    prompts = [asked(f"prompt-{number}", "abcde", "abcde", "abcde") for number in range(2000)]
    page = render(evaluation(gates=[GateRecord(demands=gate(), asked=prompts)]))
    assert len(page.encode()) < 2_000_000
    texts = Page(page).texts
    assert f"{2000 - MAX_SHOWN:,} more prompts are in evaluation.json." in texts
    assert "2 more, different answers are in evaluation.json." in texts


def test_the_record_is_read_back_as_it_was_written() -> None:
    record = evaluation()
    assert EvaluationRecord.model_validate_json(record.model_dump_json(by_alias=True, exclude_none=True)) == record


def test_an_answer_in_another_direction_keeps_its_own() -> None:
    text = render(evaluation(gates=[GateRecord(demands=gate(), asked=[asked("a", "").model_copy(update={"candidate": [answer("نحن نفتح في الثامنة")]})])]))
    assert '<p dir="auto">نحن نفتح في الثامنة</p>' in text
