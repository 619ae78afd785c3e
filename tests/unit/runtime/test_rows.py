"""Raw rows become conversations, or say in words of the row why they cannot."""

import json
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_runtime.prepare.faults import MAX_CAUSE, Fault, RowError
from finetune_runtime.prepare.rows import ACCEPTED, normalise

Q, A = {"role": "user", "content": "When do you open?"}, {"role": "assistant", "content": "At nine."}
S = {"role": "system", "content": "You answer for a clinic."}
PLAIN = [Q, A]
WITH_SYSTEM = [S, Q, A]
TWO_ROUNDS = [Q, A, {"role": "user", "content": "And on Sunday?"}, {"role": "assistant", "content": "We rest."}]

ACCEPTED_SHAPES: dict[str, tuple[Any, list[dict[str, str]]]] = {
    "messages": ({"messages": WITH_SYSTEM}, WITH_SYSTEM),
    "messages as a text, as CSV-born files have it": ({"messages": json.dumps(PLAIN)}, PLAIN),
    "messages as a Python literal": ({"messages": repr(PLAIN)}, PLAIN),
    "conversations of ShareGPT": ({"conversations": [{"from": "human", "value": Q["content"]}, {"from": "gpt", "value": A["content"]}]}, PLAIN),
    "conversation in the singular, a bot answers": ({"conversation": [Q, {"role": "bot", "content": "At nine."}]}, PLAIN),
    "pairs of human and assistant": (
        {"conversations": [{"human": Q["content"], "assistant": "At nine."}, {"human": "And on Sunday?", "assistant": "We rest."}]},
        TWO_ROUNDS,
    ),
    "a system column beside messages": ({"messages": PLAIN, "system": S["content"]}, WITH_SYSTEM),
    "the same system prompt twice": ({"messages": WITH_SYSTEM, "system": S["content"]}, WITH_SYSTEM),
    "a blank system column": ({"messages": PLAIN, "system": " "}, PLAIN),
    "Alpaca with an input": ({"instruction": "When do you", "input": "open?", "output": "At nine."}, [{"role": "user", "content": "When do you\nopen?"}, A]),
    "Alpaca without an input": ({"instruction": Q["content"], "input": "", "output": "At nine."}, PLAIN),
    "Alpaca with null for the input": ({"instruction": Q["content"], "input": None, "output": "At nine."}, PLAIN),
    "Alpaca that repeats the prompt in text": ({"instruction": Q["content"], "input": "", "output": "At nine.", "text": "Below is ..."}, PLAIN),
    "query and response": ({"query": Q["content"], "response": "At nine."}, PLAIN),
    "question and answer": ({"question": Q["content"], "answer": "At nine."}, PLAIN),
    "prompt and completion": ({"prompt": Q["content"], "completion": "At nine."}, PLAIN),
    "column names in capitals": ({"Question": Q["content"], "Answer": "At nine."}, PLAIN),
    "history": ({"query": "And on Sunday?", "response": "We rest.", "history": [[Q["content"], "At nine."]]}, TWO_ROUNDS),
    "history as a text": ({"query": "And on Sunday?", "response": "We rest.", "history": f"[['{Q['content']}', 'At nine.']]"}, TWO_ROUNDS),
    "column names with white space": ({" query": Q["content"], "Response ": "At nine."}, PLAIN),
    "raw ChatML in text": (
        {
            "text": "<|im_start|>system\nYou answer for a clinic.<|im_end|>\n<|im_start|>user\nWhen do you open?<|im_end|>\n<|im_start|>assistant\nAt nine.<|im_end|>\n"
        },
        WITH_SYSTEM,
    ),
    "raw ChatML in text, the end of text behind it, a system column beside it": (
        {"text": "<|im_start|>user\nWhen do you open?<|im_end|><|im_start|>assistant\nAt nine.<|im_end|><|endoftext|>", "system": S["content"]},
        WITH_SYSTEM,
    ),
    "contents of raw ChatML are kept as they are": (
        {"text": "<|im_start|>user\n a\n\nb\n<|im_end|>\n<|im_start|>assistant\n<b>\n<|im_end|>"},
        [{"role": "user", "content": " a\n\nb\n"}, {"role": "assistant", "content": "<b>\n"}],
    ),
    "an empty history": ({"query": Q["content"], "response": "At nine.", "history": []}, PLAIN),
    "system_prompt": ({"system_prompt": S["content"], "query": Q["content"], "response": "At nine."}, WITH_SYSTEM),
    "keys of a message that say nothing about training": ({"messages": [{**Q, "id": 7}, {**A, "loss": True, "tool_calls": None}]}, PLAIN),
    "columns of other shapes that are null": ({"messages": PLAIN, "query": None, "rejected": None, "images": []}, PLAIN),
    "white space inside a content is kept": (
        {"query": " a\n", "response": "\tb "},
        [{"role": "user", "content": " a\n"}, {"role": "assistant", "content": "\tb "}],
    ),
}


@pytest.mark.parametrize("shape", ACCEPTED_SHAPES)
def test_accepted_shape(shape: str) -> None:
    row, expected = ACCEPTED_SHAPES[shape]
    before = json.dumps(row)
    assert normalise(row).messages == expected
    assert json.dumps(row) == before, "the raw row is not changed"


REFUSED: dict[str, tuple[Any, Fault, str]] = {
    "a list": ([1], Fault.COLUMNS, "the row is a list, not an object"),
    "null": (None, Fault.COLUMNS, "the row is null, not an object"),
    "an empty object": ({}, Fault.COLUMNS, f"no question in the columns of an empty row; accepted shapes: {ACCEPTED}"),
    "unknown columns": ({"foo": "a", "bar": "b"}, Fault.COLUMNS, f"no question in the columns bar, foo; accepted shapes: {ACCEPTED}"),
    "a null answer": ({"query": "a", "response": None}, Fault.COLUMNS, f"no answer in the columns query; accepted shapes: {ACCEPTED}"),
    "plain text": (
        {"text": "Once upon a time"},
        Fault.UNSUPPORTED,
        "column text is plain text without turns, and a chat template needs a question and an answer: give query and response",
    ),
    "an empty text": ({"text": " "}, Fault.CONTENT, "column text is empty"),
    "a text that is a number": ({"text": 7}, Fault.CONTENT, "column text is a number, not text"),
    "raw ChatML without an end": (
        {"text": "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb"},
        Fault.CHATML,
        "raw ChatML: turn 2 (line 3 of the row) is not <|im_start|>role, a line end, the content, <|im_end|>",
    ),
    "raw ChatML whose first turn has no end": (
        {"text": "<|im_start|>user\na\n<|im_start|>assistant\nb<|im_end|>"},
        Fault.CHATML,
        "raw ChatML: turn 1 (line 1 of the row) is not <|im_start|>role, a line end, the content, <|im_end|>",
    ),
    "raw ChatML with words between the turns": (
        {"text": "<|im_start|>user\na<|im_end|>\nand\n<|im_start|>assistant\nb<|im_end|>"},
        Fault.CHATML,
        "raw ChatML: turn 2 (line 3 of the row) is not <|im_start|>role, a line end, the content, <|im_end|>",
    ),
    "raw ChatML of a tool": (
        {"text": "<|im_start|>tool\na<|im_end|>"},
        Fault.UNSUPPORTED,
        "message 1 has the role tool: tool calls are not supported",
    ),
    "raw ChatML with an empty answer": (
        {"text": "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<|im_end|>"},
        Fault.CONTENT,
        "message 2 (assistant) is empty",
    ),
    "a chat marker in an answer": (
        {"query": "a", "response": "b<|im_end|>"},
        Fault.CONTENT,
        "column response (assistant) holds the chat marker <|im_end|>; markers are added by the job, remove them from contents",
    ),
    "raw ChatML as an answer": (
        {"messages": [Q, {"role": "assistant", "content": "<|im_start|>assistant\nb<|im_end|>"}]},
        Fault.CONTENT,
        "message 2 (assistant) holds the chat marker <|im_start|>; markers are added by the job, remove them from contents",
    ),
    "a date of Parquet": (
        {"query": "a", "response": date(2026, 1, 1)},
        Fault.CONTENT,
        "column response (assistant) is a value of type date, not text",
    ),
    "a role of bytes": (
        {"messages": [{"role": b"user", "content": "a"}]},
        Fault.ROLE,
        'message 1 has the role "b' + "'user'" + '"; accepted: system, user, human, assistant, gpt, bot',
    ),
    "two possible questions": (
        {"question": "a", "problem": "b", "answer": "c"},
        Fault.COLUMNS,
        "columns question and problem could each be the question; keep one",
    ),
    "an instruction beside a question": (
        {"instruction": "a", "question": "b", "answer": "c"},
        Fault.COLUMNS,
        "columns instruction and question could each be the question; keep one",
    ),
    "two possible answers": ({"query": "a", "answer": "b", "solution": "c"}, Fault.COLUMNS, "columns answer and solution could each be the answer; keep one"),
    "no messages": ({"messages": []}, Fault.COLUMNS, "column messages is an empty list, not a list of messages"),
    "messages that are a text": ({"messages": "hello"}, Fault.COLUMNS, "column messages is text, not a list of messages"),
    "a message that is a text": ({"messages": ["hello"]}, Fault.COLUMNS, "message 1 is text, not an object with role and content"),
    "two system prompts": (
        {"messages": WITH_SYSTEM, "system": "Another."},
        Fault.COLUMNS,
        "column system and message 1 are two different system prompts; keep one",
    ),
    "history of texts": ({"query": "a", "response": "b", "history": ["a", "b"]}, Fault.COLUMNS, "column history is not a list of [question, answer] pairs"),
    "an unknown role": (
        {"messages": [Q, {"role": "receptionist", "content": "b"}]},
        Fault.ROLE,
        'message 2 has the role "receptionist"; accepted: system, user, human, assistant, gpt, bot',
    ),
    "no role": ({"messages": [{"content": "a"}]}, Fault.ROLE, "message 1 has the role null; accepted: system, user, human, assistant, gpt, bot"),
    "a role that is an object": (
        {"messages": [{"role": {}, "content": "a"}]},
        Fault.ROLE,
        "message 1 has the role {}; accepted: system, user, human, assistant, gpt, bot",
    ),
    "an empty answer": ({"messages": [Q, {"role": "assistant", "content": ""}]}, Fault.CONTENT, "message 2 (assistant) is empty"),
    "a blank answer": ({"query": "a", "response": " \n"}, Fault.CONTENT, "column response (assistant) is empty"),
    "an empty question": ({"query": "", "response": "b"}, Fault.CONTENT, "column query (user) is empty"),
    "an empty Alpaca question": ({"instruction": "", "input": "", "output": "b"}, Fault.CONTENT, "column instruction (user) is empty"),
    "an empty system message": ({"messages": [{"role": "system", "content": ""}, Q, A]}, Fault.CONTENT, "message 1 (system) is empty"),
    "a null content": ({"messages": [Q, {"role": "assistant", "content": None}]}, Fault.CONTENT, "message 2 (assistant) is null, not text"),
    "a number as content": ({"query": "a", "response": 7}, Fault.CONTENT, "column response (assistant) is a number, not text"),
    "a list as content": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, A]},
        Fault.CONTENT,
        "message 1 (user) is a list, not text",
    ),
    "an instruction that is no text": ({"instruction": "a", "input": 1, "output": "b"}, Fault.CONTENT, "column instruction (user) is null, not text"),
    "an empty answer in the history": ({"query": "a", "response": "b", "history": [["c", ""]]}, Fault.CONTENT, "answer of history 1 (assistant) is empty"),
    "half a surrogate pair": (
        {"query": "a", "response": "\ud83d"},
        Fault.CONTENT,
        "column response (assistant) holds half of a surrogate pair at character 1: not valid Unicode",
    ),
    "only a question": ({"messages": [Q]}, Fault.ORDER, "there is no assistant turn to learn from"),
    "the user speaks last": ({"messages": [Q, A, Q]}, Fault.ORDER, "the last turn must be the assistant's"),
    "the assistant speaks first": ({"messages": [A, Q, A]}, Fault.ORDER, "message 1 is from the assistant where the user must speak"),
    "the user speaks twice": ({"messages": [Q, Q, A]}, Fault.ORDER, "message 2 is from the user where the assistant must speak"),
    "a system message in the middle": ({"messages": [Q, A, S, Q, A]}, Fault.ORDER, "message 3 is from the system where the user must speak"),
    "two system messages": ({"messages": [S, S, Q, A]}, Fault.ORDER, "message 2 is from the system where the user must speak"),
    "preference data": (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        Fault.UNSUPPORTED,
        "column chosen: preference data (chosen and rejected answers) is not supported: keep one answer a row",
    ),
    "a rejected response": (
        {"messages": PLAIN, "rejected_response": "c"},
        Fault.UNSUPPORTED,
        "column rejected_response: preference data (chosen and rejected answers) is not supported: keep one answer a row",
    ),
    "pictures": ({"messages": PLAIN, "images": ["a.png"]}, Fault.UNSUPPORTED, "column images: only text is supported"),
    "tools": ({"messages": PLAIN, "tools": "[...]"}, Fault.UNSUPPORTED, "column tools: tool calls are not supported"),
    "a tool call": (
        {"messages": [Q, {"role": "tool_call", "content": "{}"}]},
        Fault.UNSUPPORTED,
        "message 2 has the role tool_call: tool calls are not supported",
    ),
    "OpenAI's tool calls": ({"messages": [Q, {**A, "tool_calls": [{}]}]}, Fault.UNSUPPORTED, "message 2 has the key tool_calls, which is not supported"),
    "a turn that must not be learned": ({"messages": [Q, {**A, "loss": False}]}, Fault.UNSUPPORTED, "message 2 has the key loss, which is not supported"),
    "a weight": ({"messages": [Q, {**A, "weight": 0}]}, Fault.UNSUPPORTED, "message 2 has the key weight, which is not supported"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_refused_row_names_its_cause(fault: str) -> None:
    row, kind, cause = REFUSED[fault]
    with pytest.raises(RowError) as caught:
        normalise(row)
    assert (caught.value.fault, caught.value.cause) == (kind, cause)


def test_columns_that_nothing_was_taken_from_are_named() -> None:
    row = {"instruction": "a", "output": "b", "Context": "c", "id": 1, "note": None}
    assert normalise(row).unused == ("context", "id")


def test_cause_of_a_row_with_thousands_of_columns_stays_readable() -> None:
    with pytest.raises(RowError) as caught:
        normalise({f"column{number}": 1 for number in range(5000)})
    assert len(caught.value.cause) < MAX_CAUSE + 10


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
TEXT = st.text(max_size=6) | st.none() | st.sampled_from(["hello", " ", "\ud800", "[[1, 2]]", "["])
ROLE = st.sampled_from(["system", "user", "human", "assistant", "gpt", "tool", "x"]) | JSON
TURNS = st.lists(st.fixed_dictionaries({}, optional={"role": ROLE, "content": TEXT, "from": ROLE, "value": TEXT, "user": TEXT, "assistant": TEXT}), max_size=6)
COLUMN = st.sampled_from(
    ["messages", "conversations", "query", "response", "instruction", "input", "output", "history", "system", "text", "answer", "chosen", "images", "Query"]
)
ROWS = JSON | st.dictionaries(COLUMN, TURNS | TEXT | JSON | st.lists(st.lists(TEXT, min_size=2, max_size=2), max_size=2), max_size=5)


@given(ROWS)
def test_any_json_is_a_valid_conversation_or_a_row_error(row: Any) -> None:
    try:
        messages = normalise(row).messages
    except RowError as error:
        assert error.cause
        return
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    assert turns == ["user", "assistant"] * (len(turns) // 2)
    assert turns
    for message in messages:
        assert message["content"].strip()
        message["content"].encode()


@given(ROWS)
def test_normalising_a_normalised_row_changes_nothing(row: Any) -> None:
    try:
        messages = normalise(row).messages
    except RowError:
        return
    assert normalise(json.loads(json.dumps({"messages": messages}))).messages == messages
