"""An endpoint that fails is tried again politely and for a limited time; what it sends is measured, and never taken for an answer when it is none."""

import json
import logging
import time
from dataclasses import replace
from typing import Any

import pytest

from finetune_runtime.evaluate.client import Client, Limits, UnansweredError
from finetune_runtime.report.evaluation_data import Answer
from tests.unit.runtime.openai_endpoint import Behaviour, chunk, endpoint, hangs, hangs_up, pings, refuses, says, sends, stalls, usage

# Patient, because a busy machine may stop the server of a test for a second.
QUICK = Limits(tries=3, patience=60, silence=30, first_pause=0.01, longest_pause=0.05)
TOUCHY = replace(QUICK, silence=2)
HELLO = [{"role": "user", "content": "Hello"}]


def ask(url: str, *, seconds: float = 10, limits: Limits = QUICK, key: str = "", **parameters: Any) -> Answer:
    return Client(url, "support", key=key, limits=limits).ask(HELLO, seconds=seconds, **parameters)


def test_an_answer_is_measured() -> None:
    with endpoint(says("We open at eight", before=0.1, between=0.05)) as server:
        began = time.monotonic()
        answer = ask(server.url)
        took = time.monotonic() - began
    assert (answer.text, answer.finish, answer.tokens, answer.refused) == ("We open at eight", "stop", 4, "")
    assert 0.1 <= answer.first_token_seconds < answer.seconds <= took
    assert answer.seconds >= 0.1 + 3 * 0.05
    assert answer.tokens_per_second == pytest.approx(3 / (answer.seconds - answer.first_token_seconds))


def test_a_request_has_what_users_send_and_no_key_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-somebody-else")
    with endpoint(says("Yes")) as server:
        ask(server.url, temperature=0.5, seed=7, max_tokens=16)
    assert server.requests == [
        {
            "model": "support",
            "messages": HELLO,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.5,
            "seed": 7,
            "max_tokens": 16,
        }
    ]
    assert server.keys == ["Bearer none"]


TOLD: dict[str, tuple[Behaviour, tuple[str, int, str]]] = {
    "without a count, pieces count as tokens": (says("one two three", counted=False), ("one two three", 3, "stop")),
    "reasoning is no part of the answer, but costs tokens": (
        sends(chunk(reasoning_content="Hm"), chunk(reasoning="m"), chunk("Eight"), chunk(finish="stop"), "[DONE]"),
        ("Eight", 3, "stop"),
    ),
    "a think block stays as the engine sends it": (sends(chunk("<think>\n\n</think>\n\nEight", finish="stop")), ("<think>\n\n</think>\n\nEight", 1, "stop")),
    "the longest answer that is allowed": (says("and so on", finish="length"), ("and so on", 3, "length")),
    "an empty answer": (sends(chunk(""), chunk(finish="stop"), usage(1)), ("", 1, "stop")),
}


@pytest.mark.parametrize(("behaviour", "expected"), TOLD.values(), ids=TOLD)
def test_what_is_an_answer(behaviour: Behaviour, expected: tuple[str, int, str]) -> None:
    with endpoint(behaviour) as server:
        answer = ask(server.url)
    assert (answer.text, answer.tokens, answer.finish) == expected
    assert 0 < answer.first_token_seconds <= answer.seconds


PASSING: dict[str, list[Behaviour]] = {
    "a fault of the server": [refuses(500), refuses(503)],
    "too many requests": [refuses(429)],
    "a connection that is closed": [hangs_up],
    "silence": [hangs],
    "silence in the middle of an answer": [stalls],
    "a stream that is cut off": [sends(chunk("We op"))],
    "a stream that is no JSON": [sends(chunk("We op"), "{broken", chunk(finish="stop"))],
    "a stream of other objects": [sends('{"choices": "none"}')],
    "an error in the stream": [sends(chunk("We op"), json.dumps({"error": {"message": "engine died"}}))],
}


@pytest.mark.parametrize("faults", PASSING.values(), ids=PASSING)
def test_a_passing_fault_is_tried_again(faults: list[Behaviour]) -> None:
    with endpoint(*faults, says("We open at eight")) as server:
        assert ask(server.url, limits=TOUCHY if {hangs, stalls} & set(faults) else QUICK).text == "We open at eight"
    assert len(server.requests) == len(faults) + 1


LASTING: dict[str, tuple[Behaviour, str, int]] = {
    "a fault of the server": (refuses(500, {"error": {"message": "engine is dead"}}), "gave no answer in 3 tries: 500 engine is dead", 3),
    "a fault that is no JSON": (refuses(502, "<html>"), "gave no answer in 3 tries: 502 Bad Gateway", 3),
    "silence": (hangs, "gave no answer in 3 tries: it is silent for too long", 3),
    "silence in the middle of an answer": (stalls, "gave no answer in 3 tries: it is silent for too long", 3),
    "a closed connection": (hangs_up, "gave no answer in 3 tries: the connection fails (", 3),
    "cut off answers": (sends(chunk("We op")), "gave no answer in 3 tries: an answer breaks off in the middle", 3),
    "no JSON": (sends("{broken"), "gave no answer in 3 tries: what it sends is not as the OpenAI API has it (JSONDecodeError", 3),
    "an error in the stream": (sends(json.dumps({"error": {"message": "died"}})), "gave no answer in 3 tries: it breaks off with died", 3),
    "an answer without end": (sends(*[chunk("x" * 2**16)] * 20), "gave no answer in 3 tries: an answer has more than 1,048,576 characters", 3),
    "another address": (refuses(404, {"message": "no such path"}), "answers 404 no such path", 1),
    "a wrong key": (refuses(401), "answers 401 status 401", 1),
}


@pytest.mark.parametrize(("behaviour", "words", "tries"), LASTING.values(), ids=LASTING)
def test_a_lasting_fault_ends_in_a_clear_failure(behaviour: Behaviour, words: str, tries: int) -> None:
    with endpoint(behaviour) as server, pytest.raises(UnansweredError) as caught:
        ask(server.url, limits=replace(QUICK, silence=0.3) if behaviour in (hangs, stalls) else QUICK)
    assert caught.value.cause.startswith(f"{server.url} {words}")
    assert caught.value.final == (tries == 1)
    assert len(server.requests) == tries


def test_nobody_there() -> None:
    with endpoint(hangs) as server:
        pass
    with pytest.raises(UnansweredError, match=r"gave no answer in 3 tries: the connection fails \(ConnectError: .*refused"):
        ask(server.url)


SLOW: dict[str, Behaviour] = {
    "a trickle of words": says("and so on " * 500, between=0.02),
    "signs of life": pings,
    "nothing at all": hangs,
}


@pytest.mark.parametrize("behaviour", SLOW.values(), ids=SLOW)
def test_what_takes_longer_than_an_answer_may_is_none(behaviour: Behaviour) -> None:
    with endpoint(behaviour) as server, pytest.raises(UnansweredError, match="gave no answer in 2 tries: it takes longer than 1 s"):
        ask(server.url, seconds=0.6, limits=Limits(tries=2, first_pause=0.01))
    assert len(server.requests) == 2
    assert server.times[1] - server.times[0] < 15


def test_patience_ends_before_the_tries_do() -> None:
    with endpoint(refuses(503)) as server, pytest.raises(UnansweredError, match="in 2 tries: 503"):
        ask(server.url, limits=Limits(tries=100, patience=5, first_pause=2))


def test_a_server_may_ask_for_a_pause() -> None:
    with endpoint(refuses(429, **{"Retry-After": "1.5"}), refuses(503, **{"Retry-After": "Wed, 25 Nov 2026 12:00:00 GMT"}), says("Yes")) as server:
        ask(server.url)
    first, second, third = server.times
    assert 1.5 <= second - first < 20
    assert third - second < 1.5


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_is_the_answer_to_it(status: int) -> None:
    with endpoint(refuses(status, {"error": {"message": "the prompt is\ntoo long"}})) as server:
        answer = ask(server.url)
    assert (answer.refused, answer.text, answer.met, len(server.requests)) == (f"{status} the prompt is too long", "", False, 1)


def test_a_model_has_to_be_listed() -> None:
    with endpoint(says("Yes"), models=["base", "other"]) as server, pytest.raises(UnansweredError, match="serves base, other, but not support") as caught:
        Client(server.url, "support", limits=QUICK).check_served()
    assert caught.value.final


@pytest.mark.parametrize("status", [401, 500])
def test_a_key_is_not_shown_whatever_the_server_repeats(status: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with endpoint(refuses(status, {"error": {"message": "wrong key sk-hunter2-0123"}})) as server, pytest.raises(UnansweredError) as caught:
        ask(server.url, key="sk-hunter2-0123")
    assert server.keys[0] == "Bearer sk-hunter2-0123"
    assert "wrong key [key]" in caught.value.cause
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("key", ["sk-hunter2\n-0123", "sk-hunter2'\t\\0123\n"], ids=["a line's end in it", "what is quoted"])
def test_a_key_that_no_header_takes_is_not_shown_either(key: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with endpoint(says("Yes")) as server, pytest.raises(UnansweredError) as caught:
        ask(server.url, key=key)
    assert "[key]" in caught.value.cause
    assert "hunter2" not in caught.value.cause + caplog.text


def test_retries_do_not_wait_longer_than_they_should() -> None:
    started = time.monotonic()
    with endpoint(refuses(500)) as server, pytest.raises(UnansweredError):
        ask(server.url, limits=Limits(tries=6, first_pause=1, longest_pause=0.02))
    assert time.monotonic() - started < 15, "without a limit the pauses would be 31 seconds"
    assert len(server.requests) == 6
