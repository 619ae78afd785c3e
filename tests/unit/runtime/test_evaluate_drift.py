"""By how much answers change on another quantisation: what is compared with what, and what the figures say."""

from typing import Any

import pytest

from finetune_runtime.contract.config import DriftConfig
from finetune_runtime.evaluate.client import Client, Limits, UnansweredError
from finetune_runtime.evaluate.drift import _compare, summary
from finetune_runtime.report.data import Answer, Turn
from finetune_runtime.report.evaluation_data import DriftedAnswer
from tests.unit.runtime.openai_endpoint import Behaviour, Body, Handler, endpoint, refuses, says

QUICK = Limits(tries=2, patience=5, silence=2, first_pause=0.01)
TRAINED = Answer(
    prompt=[Turn(role="user", content="When are you open?")],
    expected="At eight.",
    base="I do not know.",
    tuned="We open at eight.",
    prompt_tokens=[1, 2, 3],
    tokens=[7, 8],
    logprobs=[-0.1, -0.5],
)


def wanted(engine: str = "vLLM") -> DriftConfig:
    return DriftConfig.model_validate({"adapter": {"uri": "s3://m/j/adapter", "manifestSha256": "a" * 64}, "quantization": "Merged", "engine": engine})


def drifted(trained: str, served: str, before: tuple[float, ...] = (), now: tuple[float, ...] = ()) -> DriftedAnswer:
    return DriftedAnswer(prompt=[], trained=trained, served=served, same=trained == served, trained_logprobs=list(before), served_logprobs=list(now))


FIGURES = [
    ("nothing changes", [drifted("a", "a", (-1.0,), (-1.0,))], ("1.00", None, "0.0000")),
    ("half of them, after three characters", [drifted("a", "a"), drifted("abcd", "abce")], ("0.50", "3", None)),
    ("one goes on where the other ends", [drifted("ab", "abcd")], ("0.00", "2", None)),
    ("less likely and more likely add up", [drifted("a", "a", (-1.0, -0.5), (-1.5, -0.25))], ("1.00", None, "0.3750")),
]  # fmt: skip


@pytest.mark.parametrize(("compared", "figures"), [c[1:] for c in FIGURES], ids=[c[0] for c in FIGURES])
def test_the_figures(compared: list[DriftedAnswer], figures: tuple[str | None, ...]) -> None:
    found = summary("nf4", "Merged", compared)
    assert (found.same_answers, found.first_difference, found.logprob_difference, found.prompts) == (*figures, len(compared))
    assert (found.trained, found.served, found.unmeasured) == ("nf4", "Merged", None)


def completes(text: str, logprobs: list[float | None]) -> Behaviour:
    """An engine with the API for completions of token ids."""

    def behave(handler: Handler, body: Body) -> None:
        found: dict[str, Any] = {"index": 0, "text": text, "finish_reason": "length"}
        if body.get("echo"):
            found["logprobs"] = {"token_logprobs": logprobs, "tokens": [], "top_logprobs": [], "text_offset": []}
        handler.answer(200, {"id": "x", "object": "text_completion", "created": 1, "model": "support", "choices": [found]})

    return behave


def test_vllm_is_asked_for_the_tokens_of_the_training_and_how_likely_it_finds_its_answer() -> None:
    with endpoint(completes("We open at nine.", [None, -3.0, -3.0, -0.2, -0.9, -1.0])) as server:
        found = _compare(Client(server.url, "support", limits=QUICK), wanted(), TRAINED)
    assert found == DriftedAnswer(
        prompt=TRAINED.prompt, trained="We open at eight.", served="We open at nine.", same=False, trained_logprobs=[-0.1, -0.5], served_logprobs=[-0.2, -0.9]
    )
    assert server.requests == [
        {"model": "support", "prompt": [1, 2, 3], "max_tokens": 2, "temperature": 0, "repetition_penalty": 1.0},
        {"model": "support", "prompt": [1, 2, 3, 7, 8], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True},
    ]


def test_an_engine_that_does_not_tell_all_log_probabilities_tells_none() -> None:
    with endpoint(completes("We open at eight.", [None, -3.0])) as server:
        found = _compare(Client(server.url, "support", limits=QUICK), wanted(), TRAINED)
    assert found is not None
    assert (found.same, found.trained_logprobs, found.served_logprobs) == (True, [], [])


@pytest.mark.parametrize(
    ("tuned", "said", "same"),
    [
        ("We open at eight.", "We open at eight.", True),
        ("We open at [...]", "We open at", True),
        ("We open \ufffd [...]", "We open", True),
        ("We open at eight.", "We open at eight", False),
    ],
    ids=["word for word", "as far as the training's was cut", "cut through a character", "less"],
)
def test_swift_is_asked_as_users_ask(tuned: str, said: str, same: bool) -> None:
    with endpoint(says(said)) as server:
        found = _compare(Client(server.url, "support", limits=QUICK), wanted("Swift"), TRAINED.model_copy(update={"tuned": tuned}))
    assert found is not None
    assert (found.same, found.served_logprobs) == (same, [])
    assert [(r["messages"], r["max_tokens"], r["temperature"]) for r in server.requests] == [([{"role": "user", "content": "When are you open?"}], 2, 0)]


@pytest.mark.parametrize("engine", ["vLLM", "Swift"])
def test_a_prompt_that_is_refused_is_left_out(engine: str) -> None:
    with endpoint(refuses(400)) as server:
        assert _compare(Client(server.url, "support", limits=QUICK), wanted(engine), TRAINED) is None


def test_an_engine_that_does_not_answer_is_no_answer() -> None:
    with endpoint(refuses(500)) as server, pytest.raises(UnansweredError):
        _compare(Client(server.url, "support", limits=QUICK), wanted(), TRAINED)
