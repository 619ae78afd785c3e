"""The step evaluate against a real engine: a version that has learned four answers by heart, on ms-swift's server beside its base model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.config import SERVED_BASE, EvaluateConfig
from finetune_runtime.contract.result import Exit, Reason, StepResult
from finetune_runtime.report.evaluation_data import EvaluationRecord
from finetune_runtime.s3.store import Store
from tests.runtime import test_serve
from tests.runtime.conftest import VERSITYGW
from tests.runtime.support import Server, Step, running_server

URL = f"http://127.0.0.1:{test_serve.PORT}/v1"
GENERATION = {"maxTokens": 64}

# The same version on the same engine as in the tests of serving.
trained = test_serve.trained
endpoint = test_serve.endpoint


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One of this module's own: the fixtures of serving make the same bucket again."""
    with running_server(VERSITYGW, tmp_path_factory.mktemp("s3")) as server:
        yield server


Evaluate = Callable[..., StepResult]


@pytest.fixture
def evaluate(endpoint: test_serve.Endpoint, trained: test_serve.Trained, tmp_path: Path) -> Evaluate:
    """evaluate(code, gate, config fields): the step's result."""

    def run(code: Exit, gate: dict[str, Any], **fields: Any) -> StepResult:
        document = {
            "endpoint": {"namespace": "team-a", "name": "support", "uid": "u"},
            "version": "support-1a2b3c4d",
            "job": trained.config.job.name,
            "gates": [{"generation": GENERATION, **gate}],
            "candidate": {"url": URL, "model": "support"},
            "base": {"url": URL, "model": SERVED_BASE},
            "storage": trained.config.storage.dump(),
            "uri": "s3://by-heart/evaluations/support-1a2b3c4d",
        }
        return Step("evaluate", EvaluateConfig.model_validate(document | fields), tmp_path / "pod", trained.environment).end(code)

    return run


@pytest.fixture
def learned(trained: test_serve.Trained) -> list[dict[str, Any]]:
    """A prompt for each answer that was learned, word for word."""
    return [{"name": f"row-{n}", "prompt": row[0]["content"], "expect": {"contains": [row[1]["content"]]}} for n, row in enumerate(trained.rows)]


def test_a_version_that_learned_its_lesson_opens_the_gate(
    evaluate: Evaluate, learned: list[dict[str, Any]], trained: test_serve.Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = {"prompts": learned, "repeats": 2, "minPassRate": "1", "notWorseThanBase": True, "notWorseThanCurrent": True}
    result = evaluate(Exit.DONE, gate, current={"url": URL, "model": "support"})
    assert (result.reason, result.evaluation and result.evaluation.reasons) == (Reason.COMPLETED, [])
    assert result.evaluation is not None
    candidate, base, current = result.evaluation.candidate, result.evaluation.base, result.evaluation.current
    assert candidate is not None
    assert base is not None
    assert current is not None
    assert (candidate.pass_rate, candidate.consistency, base.pass_rate, current.pass_rate) == ("1.00", "1.00", "0.00", "1.00")
    assert 0 < float(candidate.time_to_first_token_seconds) < float(candidate.latency_p50_seconds) <= float(candidate.latency_p95_seconds)
    assert float(candidate.tokens_per_second) > 1

    for name, value in trained.environment.items():
        monkeypatch.setenv(name, value)
    store = Store(trained.config.storage)
    record = EvaluationRecord.model_validate_json(store.read("s3://by-heart/evaluations/support-1a2b3c4d/evaluation.json"))
    answers = [answer for prompt in record.gates[0].asked for answer in prompt.candidate]
    assert [answer.text for answer in answers[::2]] == [row[1]["content"] for row in trained.rows], "nothing is added to an answer, not even a think block"
    assert {answer.finish for answer in answers} == {"stop"}
    assert all(answer.tokens > 1 for answer in answers)
    page = store.read(result.evaluation.report).decode()
    assert "Gate open" in page
    assert all(f"row-{number}" in page for number in range(4))


def test_a_version_that_knows_half_of_it_does_not(evaluate: Evaluate, learned: list[dict[str, Any]]) -> None:
    nonsense = [{**prompt, "name": f"other-{prompt['name']}", "expect": {"regex": "^[0-9]{400}$"}} for prompt in learned]
    slow = [{**learned[0], "name": "slow", "expect": {"maxLatencySeconds": "0.000001"}}]
    result = evaluate(Exit.DONE, {"prompts": [*learned, *nonsense[:3], *slow], "repeats": 1})
    assert result.reason is Reason.GATE_CLOSED
    assert result.evaluation is not None
    assert result.evaluation.reasons == ["pass rate 0.50 is below minPassRate 0.8 (4 of 8 answers missed; first: other-row-0)"]
    assert result.evaluation.failed_prompts == ["other-row-0", "other-row-1", "other-row-2", "slow"]


def test_a_version_that_lost_what_the_base_could_does_not(evaluate: Evaluate, learned: list[dict[str, Any]], trained: test_serve.Trained) -> None:
    unlearned = [{**prompt, "expect": {"notContains": [row[1]["content"]]}} for prompt, row in zip(learned, trained.rows, strict=True)]
    result = evaluate(Exit.DONE, {"prompts": unlearned, "repeats": 1, "minPassRate": "0", "notWorseThanBase": True})
    assert result.evaluation is not None
    assert result.evaluation.reasons == [
        "pass rate 0.00 (0 of 4) is below that of the base model, 1.00 (4 of 4) (notWorseThanBase; first that is worse: row-0)"
    ]


def test_a_name_that_is_not_served_is_a_fault_and_no_verdict(evaluate: Evaluate, learned: list[dict[str, Any]]) -> None:
    result = evaluate(Exit.INVALID_CONFIG, {"prompts": learned}, candidate={"url": URL, "model": "another"})
    assert result.reason is Reason.INVALID_CONFIG
    assert result.message.startswith(f"Version support-1a2b3c4d cannot be evaluated: {URL} serves base, support, but not another.")
    assert result.evaluation is None


def test_a_judge_that_talks_nonsense_keeps_the_gate_closed(evaluate: Evaluate, learned: list[dict[str, Any]]) -> None:
    judge = {"endpoint": URL, "model": "support", "minScore": "1"}  # which knows four answers, and when to stop
    result = evaluate(Exit.DONE, {"prompts": learned[:1], "repeats": 1, "judge": judge})
    assert result.reason is Reason.GATE_CLOSED
    assert result.evaluation is not None
    [reason] = result.evaluation.reasons
    assert reason.startswith("there is no judgement: ")
    assert result.evaluation.candidate is not None
    assert (result.evaluation.candidate.pass_rate, result.evaluation.candidate.judge_score) == ("1.00", None)
