"""Who is asked what, in which order, and what a model that does not answer means for the others."""

from typing import Any

import pytest

from finetune_runtime.contract.config import EvaluateConfig
from finetune_runtime.contract.evaluation import EvaluationPrompt
from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.evaluate.client import Limits
from finetune_runtime.evaluate.interview import interview
from finetune_runtime.report.evaluation_data import Asked
from tests.unit.runtime.openai_endpoint import Body, Handler, endpoint, hangs, refuses, says

QUICK = Limits(tries=2, patience=5, silence=0.5, first_pause=0.01)
HOURS = {"name": "hours", "prompt": "When are you open?", "system": "Be brief.", "expect": {"contains": ["eight"]}}
ADDRESS = {"name": "address", "prompt": "Where are you?", "expect": {"notContains": ["eight"], "maxLatencySeconds": "5"}}
GENERATION = {"maxTokens": 32, "temperature": "0.7", "topP": "0.9", "seed": 41}


def knows(**answers: str) -> Any:
    """Answers with what the model of this name says."""
    return says(lambda body: answers[body["model"]])


def ask(url: str, *gates: dict[str, Any], base: str = "", current: str = "") -> tuple[list[list[Asked]], dict[str, str]]:
    config = EvaluateConfig.model_validate(
        {
            "endpoint": {"namespace": "team-a", "name": "support", "uid": "u"},
            "version": "support-1a2b3c4d",
            "gates": list(gates),
            "candidate": {"url": url, "model": "support"},
            "base": {"url": base, "model": "base"} if base else None,
            "current": {"url": current, "model": "support"} if current else None,
            "storage": {"uri": "s3://models/x"},
            "uri": "s3://models/x/evaluations/support-1a2b3c4d",
        }
    )
    prompts = [[EvaluationPrompt.model_validate(prompt) for prompt in gate.get("prompts", [])] for gate in gates]
    return interview(config, prompts, QUICK)


def test_every_prompt_is_asked_as_often_as_the_gate_wants_with_a_seed_of_its_own() -> None:
    with endpoint(knows(support="At eight.")) as server:
        [[hours, address]], unasked = ask(server.url, {"prompts": [HOURS, ADDRESS], "repeats": 3, "generation": GENERATION})
    assert unasked == {"base": "the engine does not serve the base model beside this version"}
    assert [answer.misses for answer in hours.candidate] == [[], [], []]
    assert [answer.misses for answer in address.candidate] == [['contains "eight"']] * 3
    assert [turn.role for turn in hours.conversation] == ["system", "user"]
    warm_up, *asked = server.requests
    assert warm_up["messages"] == [{"role": "user", "content": "Hello"}]
    assert [(body["seed"], body["temperature"], body["top_p"], body["max_tokens"]) for body in asked] == [(seed, 0.7, 0.9, 32) for seed in (41, 42, 43)] * 2
    assert asked[0]["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "When are you open?"}]


def test_the_first_request_of_all_is_not_measured() -> None:
    with endpoint(says("Hello", before=3), says("eight")) as server:
        [[hours]], _ = ask(server.url, {"prompts": [HOURS], "repeats": 1})
    assert hours.candidate[0].seconds < 3


def test_all_three_get_the_same_questions_the_candidate_first() -> None:
    with endpoint(knows(support="At eight.", base="No idea.")) as server, endpoint(knows(support="At nine.")) as other:
        [[hours], [address]], unasked = ask(
            server.url, {"prompts": [HOURS], "repeats": 1}, {"prompts": [ADDRESS], "repeats": 2}, base=server.url, current=other.url
        )
    assert unasked == {}
    assert [body["model"] for body in server.requests] == ["support"] * 4 + ["base"] * 4
    assert [body["messages"] for body in server.requests[:4]] == [body["messages"] for body in other.requests]
    assert [[answer.text for answer in said] for said in (hours.candidate, hours.base, hours.current)] == [["At eight."], ["No idea."], ["At nine."]]
    assert [len(address.candidate), len(address.base), len(address.current)] == [2, 2, 2]


def test_a_request_that_the_engine_refuses_is_missed_and_the_rest_is_asked() -> None:
    def refuses_hours(handler: Handler, body: Body) -> None:
        behaviour = refuses(400, {"error": {"message": "the prompt is too long"}}) if "open" in body["messages"][-1]["content"] else says("Here.")
        behaviour(handler, body)

    with endpoint(refuses_hours) as server:
        [[hours, address]], _ = ask(server.url, {"prompts": [HOURS, ADDRESS], "repeats": 2})
    assert [(answer.refused, answer.met) for answer in hours.candidate] == [("400 the prompt is too long", False)] * 2
    assert [answer.met for answer in address.candidate] == [True, True]


BACKTRACKING = {
    "regex": {"regex": "(a+)+$"},
    "a pattern of jsonSchema": {"jsonSchema": '{"pattern": "^(a+)+$"}'},
}


@pytest.mark.parametrize("expect", BACKTRACKING.values(), ids=BACKTRACKING)
def test_an_expression_that_never_ends_is_a_miss(expect: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_runtime.evaluate.interview.CHECK_SECONDS", 0.2)
    with endpoint(says(f'"{"a" * 60}!"')) as server:
        [[hours]], _ = ask(server.url, {"prompts": [HOURS | {"expect": expect}], "repeats": 1})
    assert hours.candidate[0].misses == ["cannot be checked within 0.2 s: simplify regex, or the patterns of jsonSchema"]


@pytest.mark.parametrize("name", ["base", "current"])
def test_a_model_to_compare_with_that_fails_is_left_out_with_the_reason(name: str) -> None:
    with endpoint(says("At eight.")) as server, endpoint(says("Hello"), says("At nine."), refuses(500, {"message": "engine died"})) as other:
        [[hours, address]], unasked = ask(server.url, {"prompts": [HOURS, ADDRESS], "repeats": 1}, **{name: other.url})
    assert unasked[name] == f"{other.url} gave no answer in 2 tries: 500 engine died"
    assert (getattr(hours, name), getattr(address, name)) == ([], [])
    assert hours.candidate[0].met


FAILURES: dict[str, tuple[Any, list[str], Exit, Reason, str]] = {
    "an engine that fails": (refuses(500), ["support"], Exit.CRASH, Reason.ENDPOINT_UNAVAILABLE, "gave no answer in 2 tries: 500 status 500. Look at the log"),
    "an engine that hangs": (hangs, ["support"], Exit.CRASH, Reason.ENDPOINT_UNAVAILABLE, "gave no answer in 2 tries: it is silent for too long. Look at"),
    "a name that is not served": (says("Yes"), ["base", "other"], Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, "serves base, other, but not support. Look at"),
    "nothing is served": (says("Yes"), [], Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, "serves nothing, but not support. Look at"),
    "another server": (refuses(404), ["support"], Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, "answers 404 status 404. Look at"),
}


@pytest.mark.parametrize(("behaviour", "models", "code", "reason", "words"), FAILURES.values(), ids=FAILURES)
def test_without_the_candidate_there_is_no_evaluation(behaviour: Any, models: list[str], code: Exit, reason: Reason, words: str) -> None:
    with endpoint(behaviour, models=models) as server, endpoint(says("At nine.")) as other, pytest.raises(StepError) as caught:
        ask(server.url, {"prompts": [HOURS]}, base=other.url)
    assert (caught.value.code, caught.value.reason) == (code, reason)
    assert caught.value.message.startswith(f"Version support-1a2b3c4d cannot be evaluated: {server.url} {words}")
    assert not other.requests
