"""Answers and evaluations to test with."""

from typing import Any

from finetune_runtime.contract.config import Target
from finetune_runtime.contract.evaluation import Evaluation, Expectation
from finetune_runtime.evaluate.verdict import conclude
from finetune_runtime.report.data import Turn
from finetune_runtime.report.evaluation_data import Answer, Asked, EvaluationRecord, GateRecord

JUDGE = {"endpoint": "https://judge.example/v1", "model": "judge-1", "minScore": "3"}
OPEN_PROMPT = {"name": "opening-hours", "prompt": "When are you open?"}


def answer(text: str = "We open at eight.", *, met: bool = True, **fields: Any) -> Answer:
    """0.8 s for 16 tokens, the first after 0.2 s."""
    made: dict[str, Any] = {
        "text": text,
        "seconds": 0.8,
        "first_token_seconds": 0.2,
        "tokens": 16,
        "finish": "stop",
        "misses": [] if met else ["does not match"],
    }
    return Answer(**made | fields)


def answers(marks: str, **fields: Any) -> list[Answer]:
    """One for each character: + met, - missed, and a letter of either case with a text of its own."""
    return [answer(f"text {mark.lower()}", met=mark == "+" or mark.isupper(), **fields) for mark in marks]


def asked(name: str, candidate: str, base: str = "", current: str = "", **fields: Any) -> Asked:
    """A prompt with answers by their marks."""
    return Asked(
        name=name,
        conversation=[Turn(role="user", content=f"Tell me about {name}.")],
        candidate=answers(candidate, **fields),
        base=answers(base),
        current=answers(current),
    )


def gate(**fields: Any) -> Evaluation:
    """A gate with a prompt, as the API server would give it."""
    return Evaluation.model_validate({"prompts": [OPEN_PROMPT], **fields})


def evaluation(**changes: Any) -> EvaluationRecord:
    """A version that is better than the base model, and not good enough."""
    hours = Asked(
        name="opening-hours",
        conversation=[Turn(role="system", content="You are the clinic's assistant."), Turn(role="user", content="When are you open?\nAlso on Saturday?")],
        expect=Expectation(contains=["eight"], not_contains=["As an AI"], max_latency_seconds="2"),
        candidate=[answer("We open at eight, Monday to Friday.", rating=4.0, rating_reason="correct, but says nothing of Saturday")] * 3,
        base=[answer("As an AI language model, I do not know.", met=False, misses=['does not contain "eight"', 'contains "As an AI"'])] * 3,
        current=[answer("At eight."), answer("At eight!"), answer("At nine.", met=False, misses=['does not contain "eight"'])],
    )
    order = Asked(
        name="order-as-json",
        conversation=[Turn(role="user", content="Order 7 as JSON, please.")],
        expect=Expectation(json_schema='{"type": "object", "required": ["id"]}', regex="7"),
        candidate=[
            answer('Sure! {"id": 7}', met=False, misses=["is not JSON: Expecting value: line 1 column 1 (char 0)"], rating=2.0),
            answer('{"id": 7', met=False, misses=["is not JSON: Expecting ',' delimiter: line 1 column 9 (char 8)"], finish="length", rating=2.0),
            answer('{"id": 7}', rating=5.0),
        ],
        base=[answer("", met=False, misses=["does not match 7", "is not JSON: Expecting value: line 1 column 1 (char 0)"])] * 3,
        current=[Answer(refused="400 the prompt is too long")] * 3,
    )
    demands = gate(prompts=[], promptsFrom={"source": "s3://datasets/support/prompts.jsonl"}, minPassRate="0.9", notWorseThanCurrent=True, judge=JUDGE)
    asking = GateRecord(
        demands=demands, source="s3://datasets/support/prompts.jsonl", asked=[hours, order], reasons=["pass rate 0.66 is below minPassRate 0.9"]
    )
    loss = GateRecord(demands=Evaluation.model_validate({"evalLoss": {"max": "1.5"}}))
    fields: dict[str, Any] = {
        "namespace": "team-a",
        "endpoint": "support",
        "version": "support-1a2b3c4d",
        "job": "support-qwen3",
        "eval_loss": "1.0402",
        "written": "2026-11-25T12:00:00+00:00",
        "candidate": Target(url="http://support-1a2b3c4d.team-a.svc:8000/v1", model="support"),
        "base": Target(url="http://support-1a2b3c4d.team-a.svc:8000/v1", model="base"),
        "current": Target(url="http://support-99887766.team-a.svc:8000/v1", model="support"),
        "gates": [loss, asking],
    }
    fields |= changes
    return EvaluationRecord(**{"result": conclude(fields["gates"], "s3://models/evaluations/support-1a2b3c4d/report.html"), **fields})
