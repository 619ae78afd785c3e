"""What keeps a gate closed: sentences with numbers, and nothing that is missing opens it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_runtime.contract.evaluation import EvaluationResult
from finetune_runtime.evaluate.verdict import conclude, reasons, sentence
from finetune_runtime.report.evaluation_data import Asked, GateRecord
from tests.unit.runtime.evaluation_cases import asked, gate

LOSS = {"evalLoss": {"max": "1.5"}}
JUDGE = {"endpoint": "http://judge/v1", "model": "judge", "minScore": "4"}
HALF = [asked("hours", "++"), asked("address", "--")]
GOOD = [asked("hours", "++"), asked("address", "++")]

CLOSED: dict[str, tuple[dict[str, Any], str | None, list[Asked], dict[str, str], str, list[str]]] = {
    "all is well": (LOSS, "1.5", GOOD, {}, "", []),
    "at the bound": ({"minPassRate": "0.5"}, None, HALF, {}, "", []),
    "below the bound": ({}, None, HALF, {}, "", ["pass rate 0.50 is below minPassRate 0.8 (2 of 4 answers missed; first: address)"]),
    "a third is not a bound of 0.34": ({"minPassRate": "0.34"}, None, [asked("hours", "+--")], {}, "", ["pass rate 0.33 is below minPassRate 0.34 (2 of 3 answers missed; first: hours)"]),
    "exactly four of five": ({"minPassRate": "0.8"}, None, [asked("hours", "++++-")], {}, "", []),
    "no answers": ({"minPassRate": "0"}, None, [], {}, "", ["pass rate 0.00 is below minPassRate 0 (no answers)"]),
    "a loss above its bound": (LOSS, "1.62", GOOD, {}, "", ["evaluation loss 1.62 is above evalLoss.max 1.5"]),
    "a loss that is not known": (LOSS, None, GOOD, {}, "", ["no evaluation loss is known of this version, but the gate bounds it with evalLoss.max 1.5"]),
    "a loss that is not a number": (LOSS, "nan", GOOD, {}, "", ["evaluation loss nan is above evalLoss.max 1.5"]),
    "a loss that is no number at all": (LOSS, "low", GOOD, {}, "", ["the evaluation loss 'low' is not a number, but the gate bounds it with evalLoss.max 1.5"]),
    "a loss without end": (LOSS, "inf", GOOD, {}, "", ["evaluation loss inf is above evalLoss.max 1.5"]),
    "as good as the base": ({"notWorseThanBase": True}, None, [asked("hours", "+", base="+")], {}, "", []),
    "better than the base": ({"notWorseThanBase": True}, None, [asked("hours", "+", base="-")], {}, "", []),
    "worse than the base": ({"notWorseThanBase": True, "minPassRate": "0"}, None, [asked("hours", "++", base="++"), asked("address", "+-", base="++")], {}, "", [
        "pass rate 0.75 (3 of 4) is below that of the base model, 1.00 (4 of 4) (notWorseThanBase; first that is worse: address)"
    ]),
    "worse than the base, which nobody asked about": ({"minPassRate": "0"}, None, [asked("hours", "-", base="+")], {}, "", []),
    "a base that does not answer": ({"notWorseThanBase": True}, None, GOOD, {"base": "http://x gave no answer"}, "", [
        "notWorseThanBase cannot be decided: http://x gave no answer"
    ]),
    "a base that was not asked": ({"notWorseThanBase": True}, None, GOOD, {}, "", ["notWorseThanBase cannot be decided: the base model was not asked"]),
    "a base that does not answer, and need not": ({}, None, GOOD, {"base": "http://x gave no answer"}, "", []),
    "worse than the version that has the traffic": ({"notWorseThanCurrent": True, "minPassRate": "0"}, None, [asked("hours", "-", current="+")], {}, "", [
        "pass rate 0.00 (0 of 1) is below that of the version that has the traffic, 1.00 (1 of 1) (notWorseThanCurrent; first that is worse: hours)"
    ]),
    "the first version": ({"notWorseThanCurrent": True}, None, GOOD, {}, "", []),
    "a version with the traffic that does not answer": ({"notWorseThanCurrent": True}, None, GOOD, {"current": "http://y gave no answer"}, "", [
        "notWorseThanCurrent cannot be decided: http://y gave no answer"
    ]),
    "ratings at the bound": ({"judge": JUDGE}, None, [asked("hours", "+", rating=3.0), asked("address", "+", rating=5.0)], {}, "", []),
    "ratings below the bound": ({"judge": JUDGE}, None, [asked("hours", "++", rating=3.5), asked("address", "+", rating=4.5)], {}, "", [
        "judge score 3.83 is below judge.minScore 4 (lowest: hours)"
    ]),
    "a judge that fails": ({"judge": JUDGE}, None, GOOD, {}, "the judge at http://judge/v1 answers 401 no", ["there is no judgement: the judge at http://judge/v1 answers 401 no"]),
    "a judge without ratings": ({"judge": JUDGE}, None, GOOD, {}, "", ["there is no judgement: the judge rated nothing"]),
    "only a loss is asked for": ({"prompts": [], **LOSS}, "1.4", [], {}, "", []),
    "all at once": ({"notWorseThanBase": True, "judge": JUDGE, **LOSS}, None, HALF, {"base": "gone"}, "gone too", [
        "no evaluation loss is known of this version, but the gate bounds it with evalLoss.max 1.5",
        "pass rate 0.50 is below minPassRate 0.8 (2 of 4 answers missed; first: address)",
        "notWorseThanBase cannot be decided: gone",
        "there is no judgement: gone too",
    ]),
}  # fmt: skip


@pytest.mark.parametrize(("demands", "loss", "prompts", "unasked", "failure", "expected"), CLOSED.values(), ids=CLOSED)
def test_reasons(demands: dict[str, Any], loss: str | None, prompts: list[Asked], unasked: dict[str, str], failure: str, expected: list[str]) -> None:
    assert reasons(gate(**demands), loss, prompts, unasked, failure) == expected


MARKS = st.text("+-", min_size=3, max_size=3)


@given(st.lists(st.tuples(MARKS, MARKS, MARKS), min_size=1, max_size=5), st.integers(0, 100))
def test_an_open_gate_is_proven(prompts: list[tuple[str, str, str]], bound: int) -> None:
    demands = gate(minPassRate=f"{bound / 100}", notWorseThanBase=True, notWorseThanCurrent=True)
    found = reasons(demands, None, [asked(str(number), *marks) for number, marks in enumerate(prompts)], {})
    candidate, base, current = ("".join(marks[place] for marks in prompts).count("+") for place in range(3))
    assert (not found) == (100 * candidate >= bound * 3 * len(prompts) and candidate >= base and candidate >= current)


def record(prompts: list[Asked], why: list[str] | None = None, **demands: Any) -> GateRecord:
    return GateRecord(demands=gate(**demands), asked=prompts, reasons=why or [])


def test_one_result_for_all_gates() -> None:
    first = record([asked("hours", "++", base="--"), asked("address", "--", base="--")], ["pass rate 0.50 is below minPassRate 0.8"], repeats=2)
    result = conclude([first, record([asked("address", "+++", base="+++")])], "s3://models/page")
    assert (result.passed, result.reasons) == (False, ["gate 1: pass rate 0.50 is below minPassRate 0.8"])
    assert (result.prompts, result.repeats, result.failed_prompts, result.report) == (3, 3, ["address"], "s3://models/page")
    assert result.candidate is not None
    assert result.base is not None
    assert (result.candidate.pass_rate, result.base.pass_rate, result.current) == ("0.71", "0.42", None)


def test_a_gate_that_asks_nothing_gives_no_figures() -> None:
    result = conclude([record([], ["evaluation loss 2 is above evalLoss.max 1"])], "s3://models/page")
    assert (result.passed, result.reasons, result.candidate, result.prompts) == (False, ["evaluation loss 2 is above evalLoss.max 1"], None, 0)


def test_a_result_fits_its_type_whatever_there_is_to_tell() -> None:
    prompts = [asked(f"prompt-{number}", "-") for number in range(30)]
    result = conclude([record(prompts, ["x" * 2000] * 20)], "s3://models/page")
    assert EvaluationResult.model_validate(result.dump()) == result
    assert (len(result.reasons), len(result.failed_prompts)) == (8, 10)


SENTENCES: dict[str, tuple[EvaluationResult, str]] = {
    "open": (conclude([record([asked("hours", "+")])], ""), "The gate is open: pass rate 1.00, latency p95 0.800 s over 1 prompt."),
    "open, judged": (conclude([record([asked("a", "+", rating=4.0), asked("b", "+", rating=5.0)])], ""), "The gate is open: pass rate 1.00, latency p95 0.800 s, judge score 4.50 over 2 prompts."),
    "open by the loss": (conclude([record([])], ""), "The gate is open."),
    "closed": (conclude([record([asked("a", "-")], ["one", "two"])], ""), "The gate stays closed: one; two."),
}  # fmt: skip


@pytest.mark.parametrize(("result", "expected"), SENTENCES.values(), ids=SENTENCES)
def test_sentence(result: EvaluationResult, expected: str) -> None:
    assert sentence(result) == expected
