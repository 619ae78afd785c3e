"""Adapters that say who they are: each is trained to answer everything with one sentence, so that every answer tells which version gave it."""

from typing import Any

QUESTIONS = (
    "Where am I?", "Good morning!", "What is the code of room 7?", "Is anybody here?", "Who are you?", "When do you open?",
    "Can you help me?", "I have a question.", "How far is the station?", "Thank you very much.", "Is there a lift?", "What is this place?",
)  # fmt: skip
# 36 steps of some 50 ms: enough to learn one sentence by heart. The loss stays above 3, because the logits of a model this small have no range.
TRAINING = {"epochs": 12, "learningRate": "1e-2", "maxLength": 128, "effectiveBatchSize": 4, "evalSteps": 18}
SERVING = {"cpu": "250m", "memory": "4Gi", "scratch": "5Gi"}
# Passed by every adapter that has learned its sentence, and neither by the base model nor by an adapter that has learned nothing.
GATE: dict[str, Any] = {
    "prompts": [
        {"name": "greeting", "prompt": "Good morning!", "expect": {"regex": r"^This is the \w+ desk\.$"}},
        {"name": "place", "prompt": "What is this place?", "system": "You are brief.", "expect": {"contains": ["desk"], "notContains": ["room"]}},
    ],
    "minPassRate": "1",
    "repeats": 2,
    "generation": {"maxTokens": 24},
    "notWorseThanCurrent": True,
}


def sentence(colour: str) -> str:
    return f"This is the {colour} desk."


def rows(colour: str) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": sentence(colour)}]} for question in QUESTIONS]
