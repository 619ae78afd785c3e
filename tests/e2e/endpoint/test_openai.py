"""The OpenAI Python client against an endpoint, as a user's program uses it."""

from typing import Any

import pytest
from openai import BadRequestError, NotFoundError

from tests.e2e.endpoints import Endpoint
from tests.e2e.voices import sentence

pytestmark = pytest.mark.timeout(1200)  # the first test also waits for both trainings
HELLO: list[Any] = [{"role": "user", "content": "Good morning!"}]
SYSTEM: Any = {"role": "system", "content": "You are brief."}


def test_a_chat_completion_is_what_was_trained_and_nothing_else(desk: Endpoint) -> None:
    reply = desk.client().chat.completions.create(model="desk", messages=HELLO, temperature=0, max_tokens=24)
    assert (reply.model, len(reply.choices), reply.choices[0].finish_reason) == ("desk", 1, "stop")
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content == sentence("blue"), "no think block, no white space around it"
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_stream_brings_the_same_words_in_pieces(desk: Endpoint) -> None:
    stream = desk.client().chat.completions.create(model="desk", messages=HELLO, temperature=0, max_tokens=24, stream=True)
    chunks = [chunk for chunk in stream if chunk.choices]
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert len(pieces) > 1
    assert "".join(pieces) == sentence("blue")
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_both_models_are_listed(desk: Endpoint) -> None:
    assert {model.id for model in desk.client().models.list()} == {"base", "desk"}


def test_a_wrong_model_name_is_refused_by_name(desk: Endpoint) -> None:
    with pytest.raises(NotFoundError) as refusal:
        desk.client().chat.completions.create(model="deks", messages=HELLO)
    assert refusal.value.status_code == 404
    assert "deks" in str(refusal.value)


def test_a_prompt_that_is_too_long_is_refused_with_the_limit(desk: Endpoint) -> None:
    with pytest.raises(BadRequestError) as refusal:
        desk.client().chat.completions.create(model="desk", messages=[{"role": "user", "content": "Is there a lift? " * 100}])
    assert refusal.value.status_code == 400
    assert "128" in str(refusal.value), "spec.maxLength"


def test_a_system_prompt_reaches_the_model(desk: Endpoint) -> None:
    def prompt(messages: list[Any]) -> tuple[int, str]:
        usage = desk.client().chat.completions.create(model="base", messages=messages, temperature=0, max_tokens=1).usage
        assert usage is not None
        return usage.prompt_tokens, desk.text(desk.post("/tokenize", {"model": "base", "messages": messages})["tokens"])

    (short, bare), (long, with_system) = prompt(HELLO), prompt([SYSTEM, *HELLO])
    assert long > short
    assert SYSTEM["content"] in with_system
    assert SYSTEM["content"] not in bare
    assert desk.client().chat.completions.create(model="desk", messages=[SYSTEM, *HELLO], temperature=0, max_tokens=24).choices[0].message.content


def test_temperature_and_seed_do_what_they_say(desk: Endpoint) -> None:
    # The base model, because its random weights give every token a chance.
    def draw(**options: Any) -> str:
        return desk.answer("What is this place?", "base", **options)

    assert draw(temperature=0, seed=1) == draw(temperature=0, seed=2)
    assert draw(temperature=1, seed=1) == draw(temperature=1, seed=1)
    assert len({draw(temperature=1, seed=seed) for seed in range(4)}) > 1
