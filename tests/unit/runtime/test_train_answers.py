"""Which validation prompts a model is asked at the end of its training."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.train.answers import PROMPTS, choose, offer


def talk(*turns: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]


MANY = [talk(f"question {number}", "answer") for number in range(50)]

CASES = {
    "a few of many, in their order": (MANY, 4),
    "all of a few": (MANY[:3], 3),
    "none": ([], 0),
    "no long prompts": ([talk("x" * 1501, "answer"), talk("short", "a" * 5000)], 1),
    "the whole history counts": ([talk("x" * 800, "y" * 800, "more", "answer")], 0),
    "nothing that asks nothing": ([[{"role": "assistant", "content": "a plain text"}]], 0),
    "nothing that ends with a question": ([talk("one", "two", "three")], 0),
}


@pytest.mark.parametrize(("conversations", "count"), CASES.values(), ids=CASES)
def test_chosen_are(conversations: list[list[dict[str, Any]]], count: int) -> None:
    chosen = choose(conversations, 42)
    assert len(chosen) == count
    assert chosen == [messages for messages in conversations if messages in chosen]


def test_the_seed_decides() -> None:
    assert choose(MANY, 42) == choose(MANY, 42)
    assert len({json.dumps(choose(MANY, seed)) for seed in range(5)}) > 1


def test_offered_prompts_are_found_through_the_environment(tmp_path: Path) -> None:
    validation = tmp_path / "val.jsonl"
    validation.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in MANY[:2]))
    environment = offer(validation, 42, tmp_path / "answers")
    assert json.loads(Path(environment[PROMPTS]).read_text()) == MANY[:2]
