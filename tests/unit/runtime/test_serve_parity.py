"""Prompt parity: which samples an adapter carries, and what is said when the engine sees another prompt."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.artefact import PARITY_FILE
from finetune_runtime.prepare.parity import COUNT, MAX_TOKENS, Proven, choose
from finetune_runtime.prepare.rows import Message
from finetune_runtime.prepare.sample import Example, as_request
from finetune_runtime.serve import parity

ASKED: list[dict[str, Any]] = [{"role": "user", "content": "When do you open?"}]
KNOWN = [{"messages": ASKED, "options": {}, "tokens": [1, 2, 3, 4, 5, 6, 7, 8, 9]}]


def example(*turns: str, system: str = "", where: str = "data:1") -> Example:
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]
    return Example(messages, as_request(messages, system_filled_in=False), where)


def proven(*turns: str, system: str = "", where: str = "data:1", tokens: int = 3, thinks: bool = False) -> Proven:
    return Proven(example(*turns, system=system, where=where), {"enable_thinking": True} if thinks else {}, list(range(tokens)))


def test_samples_are_of_every_kind_and_rows_of_the_data_come_first() -> None:
    found = choose(
        [
            proven("ours", "a", where=""),
            proven("theirs", "a"),
            *(proven(f"more {number}", "a") for number in range(20)),
            proven("b", "a", system="Be brief."),
            proven("c", "a", "d", "e"),
            proven("f", "<think>", thinks=True),
        ]
    )
    assert len(found) == COUNT
    # The last message of each request is a question: no sample holds the answer that it asks for.
    assert {sample["messages"][-1]["role"] for sample in found} == {"user"}
    assert [sample["messages"][0]["content"] for sample in found[:4]] == ["theirs", "f", "c", "Be brief."]
    assert found[1]["options"] == {"enable_thinking": True}
    assert "ours" not in json.dumps(found)


def test_samples_are_bounded_in_number_and_length() -> None:
    assert choose([proven("long", "a", tokens=MAX_TOKENS + 1)]) == []
    assert len(choose([proven(str(number), "a", tokens=MAX_TOKENS) for number in range(COUNT * 3)])) == COUNT


def test_an_engine_that_sees_the_training_prompts_passes() -> None:
    asked: list[tuple[list[dict[str, Any]], dict[str, Any]]] = []

    def tokenize(messages: list[dict[str, Any]], options: dict[str, Any]) -> list[int]:
        asked.append((messages, options))
        return [1, 2, 3, 4, 5, 6, 7, 8, 9]

    parity.check(KNOWN, tokenize)
    assert asked == [(ASKED, {})]


@pytest.mark.parametrize(
    ("seen", "words", "case"),
    [
        ([1, 2, 3, 4, 5, 66, 7, 8, 9], "differs from token 6 on: training has ... 2 3 4 5 6 7 8 9 (its end) of 9 tokens, the engine ... 2 3 4 5 66 7 8 9", "another token"),
        ([7, 1, 2, 3, 4, 5, 6, 7, 8, 9], "differs from token 1 on: training has 1 2 3 4 ... of 9 tokens, the engine 7 1 2 3 ... of 10 tokens", "a token before it"),
        ([1, 2, 3, 4, 5, 6, 7], "differs from token 8 on: training has ... 4 5 6 7 8 9 (its end) of 9 tokens, the engine ... 4 5 6 7 (its end) of 7 tokens", "a prompt that ends early"),
        ([], "differs from token 1 on: training has 1 2 3 4 ... of 9 tokens, the engine none", "nothing"),
    ],
)  # fmt: skip
def test_a_difference_is_told_with_sample_place_tokens_and_cure(seen: list[int], words: str, case: str) -> None:
    with pytest.raises(parity.PromptDiffersError) as caught:
        parity.check([*KNOWN, *KNOWN], lambda *_: seen)
    assert f"sample 1 of 2 {words}" in str(caught.value), case
    assert "serve the base model and the revision that the adapter was trained on, or train it again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_samples_are_read_from_the_adapter_and_older_adapters_have_none(tmp_path: Path) -> None:
    assert parity.samples(tmp_path) == []
    (tmp_path / PARITY_FILE).write_text(json.dumps({"samples": KNOWN}))
    assert parity.samples(tmp_path) == KNOWN
