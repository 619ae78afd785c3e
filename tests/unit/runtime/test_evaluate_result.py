"""The result of an evaluation fits into a termination message, and what the operator decides by is never lost on the way."""

from hypothesis import given
from hypothesis import strategies as st

from finetune_runtime.contract.evaluation import EvaluationResult, Scores
from finetune_runtime.contract.result import MAX_MESSAGE_BYTES, Reason, StepResult

FIGURE = st.text("0123456789.", min_size=1, max_size=32)
SCORES = st.builds(
    Scores,
    pass_rate=FIGURE,
    consistency=FIGURE,
    latency_p50_seconds=FIGURE,
    latency_p95_seconds=FIGURE,
    time_to_first_token_seconds=FIGURE,
    tokens_per_second=FIGURE,
    judge_score=st.none() | FIGURE,
)
RESULTS = st.builds(
    EvaluationResult,
    passed=st.booleans(),
    reasons=st.lists(st.text(max_size=512), max_size=8),
    prompts=st.integers(0, 2000),
    repeats=st.integers(0, 20),
    candidate=SCORES,
    base=st.none() | SCORES,
    current=st.none() | SCORES,
    failed_prompts=st.lists(st.text(max_size=63), max_size=10),
    report=st.text("abcdefghijklmnopqrstuvwxyz/-", max_size=1187).map("s3://models/{}".format),
)


@given(result=RESULTS, message=st.text(max_size=5000))
def test_the_decision_and_its_figures_always_fit(result: EvaluationResult, message: str) -> None:
    text = StepResult(step="evaluate", reason=Reason.GATE_CLOSED, message=message, evaluation=result).encode()
    assert len(text.encode()) <= MAX_MESSAGE_BYTES
    decoded = StepResult.model_validate_json(text)
    assert decoded.reason is Reason.GATE_CLOSED
    told = decoded.evaluation
    assert told is not None
    whole = {"passed", "candidate", "base", "current", "prompts", "repeats", "report"}
    assert told.model_dump(include=whole) == result.model_dump(include=whole)
    assert bool(told.reasons) == bool(result.reasons)


def largest(character: str) -> StepResult:
    """Everything as long as its type allows, and of characters that JSON makes longer."""
    figures = Scores(**dict.fromkeys(Scores.model_fields, "9" * 32))
    result = EvaluationResult(
        passed=False,
        reasons=[character * 512] * 8,
        prompts=2000,
        repeats=20,
        candidate=figures,
        base=figures,
        current=figures,
        failed_prompts=[character * 63] * 10,
        report="s3://" + "r" * 1195,
    )
    return StepResult(step="evaluate", reason=Reason.GATE_CLOSED, message=character * 5000, evaluation=result)


def test_the_largest_result_of_all_fits() -> None:
    for character in ("x", "\x01", "\U0001f600"):
        text = largest(character).encode()
        assert len(text.encode()) <= MAX_MESSAGE_BYTES
        told = StepResult.model_validate_json(text).evaluation
        assert told is not None
        assert told.candidate is not None
        assert told.report.startswith("s3://r")
        assert told.reasons[0].startswith(character)
        assert told.failed_prompts[0].startswith(character)


def test_what_fits_is_not_touched() -> None:
    result = StepResult(step="evaluate", reason=Reason.COMPLETED, message="fine", evaluation=EvaluationResult(passed=True, reasons=["x" * 512]))
    assert StepResult.model_validate_json(result.encode()) == result


def test_reasons_that_are_cut_still_fit_their_type() -> None:
    told = StepResult.model_validate_json(largest("x").encode()).evaluation
    assert told is not None
    assert all(reason.endswith(" [...]") and len(reason) <= 512 for reason in told.reasons)
