"""The step evaluate as a pod runs it, with a real S3 server and endpoints that fail as they are told to. Needs no engine."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import Kind, Manifest
from finetune_runtime.contract.config import EvaluateConfig
from finetune_runtime.contract.result import Exit, Reason, StepResult
from finetune_runtime.contract.spec import S3Storage
from finetune_runtime.report.evaluation_data import EvaluationRecord
from finetune_runtime.s3.store import Store
from tests.runtime.support import Proxy, Server, Step
from tests.unit.runtime.openai_endpoint import Endpoint, endpoint, hangs, refuses, says

HOURS = {"name": "hours", "prompt": "When are you open?", "expect": {"contains": ["eight"]}}
LINE = {"name": "address", "prompt": "Where are you?", "expect": {"contains": ["eight"]}}
Evaluate = Callable[..., Step]


@pytest.fixture
def evaluate(storage: S3Storage, s3_server: Server, bucket: str, tmp_path: Path) -> Evaluate:
    """Starts the step: evaluate(endpoint, gate, ..., config fields)."""

    def start(candidate: Endpoint, *gates: dict[str, Any], environment: dict[str, str] | None = None, **fields: Any) -> Step:
        document = {
            "endpoint": {"namespace": "team-a", "name": "support", "uid": "u"},
            "version": "support-1a2b3c4d",
            "gates": list(gates) or [{"prompts": [HOURS], "repeats": 2}],
            "candidate": {"url": candidate.url, "model": "support"},
            "storage": storage.dump(),
            "uri": f"s3://{bucket}/evaluations/support-1a2b3c4d",
            "storageTimeoutSeconds": 20,
        }
        config = EvaluateConfig.model_validate(document | fields)
        return Step("evaluate", config, tmp_path / "pod", s3_server.environment | (environment or {}))

    return start


def record(store: Store, result: StepResult) -> EvaluationRecord:
    assert result.evaluation is not None
    return EvaluationRecord.model_validate_json(store.read(result.evaluation.report.replace("report.html", "evaluation.json")))


def test_an_open_gate(evaluate: Evaluate, store: Store, bucket: str, s3_server: Server) -> None:
    store.put(f"s3://{bucket}/prompts.jsonl", json.dumps(LINE).encode())
    gate = {"prompts": [HOURS], "promptsFrom": {"source": f"s3://{bucket}/prompts.jsonl"}, "repeats": 2}
    with endpoint(says("We open at eight.")) as server:
        result = evaluate(server, gate, {"evalLoss": {"max": "1.5"}}, evalLoss="1.2").end(Exit.DONE)
    assert (result.reason, result.evaluation and result.evaluation.passed) == (Reason.COMPLETED, True)
    assert result.message.startswith("The gate is open: pass rate 1.00, latency p95 0.")
    found = record(store, result)
    assert found.result == result.evaluation
    assert [[(answer.text, answer.met) for answer in prompt.candidate] for prompt in found.gates[0].asked] == [[("We open at eight.", True)] * 2] * 2
    objects = {name: s3_server.client().get_object(Bucket=bucket, Key=f"evaluations/support-1a2b3c4d/{name}") for name in ("report.html", "evaluation.json")}
    assert objects["report.html"]["ContentType"] == "text/html; charset=utf-8"
    assert objects["evaluation.json"]["ContentType"] == "application/json"
    assert b"We open at eight." in objects["report.html"]["Body"].read()


def test_a_second_run_replaces_the_first(evaluate: Evaluate, store: Store, bucket: str) -> None:
    with endpoint(says("We open at nine.")) as server:
        closed = evaluate(server).end(Exit.DONE)
        assert (closed.reason, closed.evaluation and closed.evaluation.failed_prompts) == (Reason.GATE_CLOSED, ["hours"])
        assert closed.message == "The gate stays closed: pass rate 0.00 is below minPassRate 0.8 (2 of 2 answers missed; first: hours)."
        server.script[:] = [says("We open at eight.")]
        opened = evaluate(server).end(Exit.DONE)
    assert opened.reason is Reason.COMPLETED
    assert record(store, opened).result.passed
    assert [item.key for item in store.list(f"s3://{bucket}/evaluations/")] == [
        "evaluations/support-1a2b3c4d/evaluation.json",
        "evaluations/support-1a2b3c4d/report.html",
    ]


def test_a_loss_alone_asks_nobody(evaluate: Evaluate) -> None:
    with endpoint(refuses(500)) as server:
        result = evaluate(server, {"evalLoss": {"max": "1.5"}}, evalLoss="1.6").end(Exit.DONE)
    assert (result.reason, result.message) == (Reason.GATE_CLOSED, "The gate stays closed: evaluation loss 1.6 is above evalLoss.max 1.5.")
    assert not server.requests


@pytest.mark.parametrize("demanded", [True, False])
@pytest.mark.parametrize("name", ["base", "current"])
def test_a_model_to_compare_with_that_is_not_served_closes_the_gate_only_where_it_is_demanded(
    evaluate: Evaluate, store: Store, name: str, demanded: bool
) -> None:
    demand = f"notWorseThan{name.title()}"
    with endpoint(says("We open at eight."), models=["support"]) as server:
        result = evaluate(server, {"prompts": [HOURS], demand: demanded}, **{name: {"url": server.url, "model": "other"}}).end(Exit.DONE)
    why = f"{server.url} serves support, but not other"
    assert result.evaluation is not None
    assert result.evaluation.reasons == ([f"{demand} cannot be decided: {why}"] if demanded else [])
    assert result.evaluation.passed != demanded
    assert why.encode() in store.read(result.evaluation.report)


def test_a_judge_with_its_key(evaluate: Evaluate) -> None:
    judge = {"model": "judge-1", "secretRef": {"name": "judge"}}
    with endpoint(says("We open at eight.")) as server, endpoint(says('{"rating": 5, "reason": "right"}'), refuses(401)) as rater:
        gate = {"prompts": [HOURS], "judge": judge | {"endpoint": rater.url}}
        keys = {"FINETUNE_JUDGE_KEY_0": "sk-hunter2", "OPENAI_API_KEY": "sk-of-somebody-else"}
        first = evaluate(server, gate, environment=keys).end(Exit.DONE)
        step = evaluate(server, gate, environment=keys)
        second = step.end(Exit.DONE)
    assert first.evaluation is not None
    assert first.evaluation.candidate is not None
    assert first.evaluation.candidate.judge_score == "5.00"
    assert (first.reason, second.reason) == (Reason.COMPLETED, Reason.GATE_CLOSED)
    assert second.message == f"The gate stays closed: there is no judgement: the judge at {rater.url} answers 401 status 401."
    assert set(rater.keys) == {"Bearer sk-hunter2"}
    assert set(server.keys) == {"Bearer none"}
    assert "sk-" not in step.text()


def test_a_faulty_line_ends_it_before_anybody_is_asked(evaluate: Evaluate, store: Store, bucket: str) -> None:
    store.put(f"s3://{bucket}/prompts.jsonl", f"{json.dumps(LINE)}\n{{broken\n".encode())
    with endpoint(says("We open at eight.")) as server:
        result = evaluate(server, {"promptsFrom": {"source": f"s3://{bucket}/prompts.jsonl"}}).end(Exit.DATA_INVALID)
    assert result.message.startswith(f"s3://{bucket}/prompts.jsonl:2: not JSON: ")
    assert not server.requests


def test_storage_that_is_down_is_told_before_anybody_is_asked(evaluate: Evaluate, storage: S3Storage) -> None:
    with endpoint(says("We open at eight.")) as server:
        result = evaluate(server, storage=storage.dump() | {"endpoint": "http://127.0.0.1:9"}).end(Exit.STORAGE_UNAVAILABLE)
    assert result.reason is Reason.STORAGE_UNAVAILABLE
    assert not server.requests


@pytest.mark.parametrize("comes_back", [True, False])
def test_storage_that_goes_down_meanwhile_is_waited_for(evaluate: Evaluate, storage: S3Storage, s3_server: Server, comes_back: bool) -> None:
    proxy = Proxy(s3_server.endpoint)
    try:
        with endpoint(says("We open at eight.")) as server:

            def lose_storage(handler: Any, body: Any) -> None:
                proxy.down = True
                says("We open at eight.")(handler, body)

            server.script[:] = [lose_storage]
            step = evaluate(server, storage=storage.dump() | {"endpoint": proxy.endpoint}, storageTimeoutSeconds=60 if comes_back else 1)
            if comes_back:
                step.wait_for("the results wait for storage")
                proxy.down = False
            result = step.end(Exit.DONE if comes_back else Exit.STORAGE_UNAVAILABLE)
    finally:
        proxy.close()
    assert result.reason is (Reason.COMPLETED if comes_back else Reason.STORAGE_UNAVAILABLE)


NF4 = {"bits": 4, "type": "nf4"}
ANSWERED = {
    "prompt": [{"role": "user", "content": "When?"}],
    "expected": "At eight.",
    "base": "?",
    "tuned": "We open at eight.",
    "promptTokens": [1],
    "tokens": [2, 3],
    "logprobs": [-0.1, -0.2],
}
DRIFTS = [
    ("the same answers", NF4, {"step": 4, "maxTokens": 96, "answers": [ANSWERED]}, {"sameAnswers": "1.00", "prompts": 1}),
    ("another answer", NF4, {"step": 4, "maxTokens": 96, "answers": [{**ANSWERED, "tuned": "We are closed."}]}, {"sameAnswers": "0.00", "firstDifference": "3"}),
    ("no answers", NF4, None, {"unmeasured": "the training left no answers beside the adapter, for example because it had no validation data"}),
    ("another checkpoint's", NF4, {"step": 8, "maxTokens": 96, "answers": [ANSWERED]}, {"unmeasured": "the training's answers are those of step 8, and the adapter is that of step 4"}),
    ("of an older release", NF4, {"step": 4, "maxTokens": 96, "answers": [{**ANSWERED, "tokens": []}]}, {"unmeasured": "the training's answers have no token ids, as those of older releases"}),
]  # fmt: skip


def drift(store: Store, bucket: str, directory: Path, trained: dict[str, Any] | None, answers: dict[str, Any] | None) -> dict[str, Any]:
    """An adapter in storage, and what its training answered."""
    (directory / "adapter").mkdir()
    details = {"quantization": trained} if trained else {}
    manifest = Manifest(kind=Kind.ADAPTER, files=[], config_hash="c", base_model="s3://models/base", step=4, details=details)
    ref = artefacts.commit(store, directory / "adapter", f"s3://{bucket}/job/adapter", manifest)
    if answers:
        store.put(f"s3://{bucket}/job/report/answers.json", json.dumps(answers).encode())
    return {"adapter": ref.dump(), "quantization": "Merged", "engine": "Swift"}


@pytest.mark.parametrize(("trained", "answers", "found"), [c[1:] for c in DRIFTS], ids=[c[0] for c in DRIFTS])
def test_by_how_much_answers_change_is_stated_and_decides_nothing(
    evaluate: Evaluate, store: Store, bucket: str, tmp_path: Path, trained: dict[str, Any], answers: dict[str, Any] | None, found: dict[str, Any]
) -> None:
    wanted = drift(store, bucket, tmp_path, trained, answers)
    with endpoint(says("We open at eight.")) as server:
        result = evaluate(server, drift=wanted).end(Exit.DONE)
    assert result.evaluation is not None
    assert result.evaluation.passed
    assert result.evaluation.quantization_drift is not None
    told = result.evaluation.quantization_drift.dump()
    assert {key: told.get(key) for key in found} == found
    assert (told["trained"], told["served"]) == ("nf4", "Merged")
    assert record(store, result).result == result.evaluation


def test_nothing_is_stated_of_an_adapter_that_was_trained_in_16_bits(evaluate: Evaluate, store: Store, bucket: str, tmp_path: Path) -> None:
    with endpoint(says("We open at eight.")) as server:
        result = evaluate(server, drift=drift(store, bucket, tmp_path, None, None)).end(Exit.DONE)
    assert result.evaluation is not None
    assert result.evaluation.quantization_drift is None


def test_it_ends_at_once_when_it_is_told_to(evaluate: Evaluate) -> None:
    with endpoint(says("Hello"), hangs) as server:
        step = evaluate(server)
        while len(server.requests) < 2:  # the second one hangs
            assert step.process.poll() is None, step.text()
            time.sleep(0.05)
        started = time.monotonic()
        step.process.terminate()
        assert step.process.wait(20) == -signal.SIGTERM
    assert time.monotonic() - started < 20
