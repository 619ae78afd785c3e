"""One raw row as messages. Pure: the shapes that ms-swift accepts, but what it would drop or repair in silence is refused with a cause."""

import ast
import json
from dataclasses import dataclass
from typing import Any, TypedDict

from . import chatml
from .faults import Fault, RowError

ACCEPTED = "messages [{role, content}], conversations [{from, value}], instruction/input/output, query/response, or text with raw ChatML"

_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "bot": "assistant"}
_TOOL_ROLES = frozenset({"tool", "tool_call", "tool_response", "function", "function_call", "function_response", "observation", "observations"})
# The aliases of ms-swift's preprocessors; the first name of a line wins over the others.
_MESSAGES = ("messages", "conversations", "conversation")
_SYSTEM = ("system", "system_prompt")
_QUESTION = ("query", "prompt", "input", "instruction", "question", "problem")
_ANSWER = ("response", "answer", "output", "targets", "target", "answer_key", "answers", "solution", "text", "completion", "content")
_REFUSED = {
    "tool calls are not supported": ("tools",),
    "only text is supported": ("images", "image", "videos", "video", "audios", "audio"),
    "preference data (chosen and rejected answers) is not supported: keep one answer a row": (
        "chosen",
        "rejected",
        "rejected_response",
        "rejected_messages",
    ),
}
COLUMNS = frozenset({*_MESSAGES, *_SYSTEM, *_QUESTION, *_ANSWER, "history", *(name for names in _REFUSED.values() for name in names)})
# Keys of one message that would change what is trained; True and 1 are what happens anyway.
_REFUSED_KEYS = ("tool_calls", "function_call", "loss", "loss_scale", "weight")


class Message(TypedDict):
    """One turn as the engines know it; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """A valid row: an optional system message, then user and assistant in turn, the assistant last. No content is blank."""

    messages: list[Message]
    unused: tuple[str, ...] = ()  # columns of the row that nothing was taken from


@dataclass(frozen=True)
class _Turn:
    role: object
    content: object
    where: str  # for causes: "message 2", "column output"


def normalise(row: object) -> Conversation:
    """The conversation in a row as json.loads returned it. Raises RowError."""
    if not isinstance(row, dict):
        raise RowError(Fault.COLUMNS, f"the row is {_kind(row)}, not an object")
    columns = {str(name).strip().lower(): value for name, value in row.items() if value is not None}
    for cause, names in _REFUSED.items():
        if present := [name for name in names if columns.get(name) not in (None, [], "", {})]:
            raise RowError(Fault.UNSUPPORTED, f"column {present[0]}: {cause}")
    found = sorted(columns)
    if any(name in columns for name in _MESSAGES):
        turns = _from_messages(columns)
    elif "text" in columns and not COLUMNS.intersection(columns).difference(("text", *_SYSTEM)):
        turns = _from_text(columns)
    else:
        turns = _from_question(columns, found)
    return Conversation(_checked(turns), tuple(sorted(columns)))


def _from_messages(columns: dict[str, Any]) -> list[_Turn]:
    column = next(name for name in _MESSAGES if name in columns)
    entries = _unquoted(columns.pop(column))
    if not isinstance(entries, list) or not entries:
        raise RowError(Fault.COLUMNS, f"column {column} is {_kind(entries)}, not a list of messages")
    return _with_system(columns, _paired(entries) or [_turn(number, entry) for number, entry in enumerate(entries, 1)])


def _from_text(columns: dict[str, Any]) -> list[_Turn]:
    text = columns.pop("text")
    if not isinstance(text, str) or not text.strip():
        raise RowError(Fault.CONTENT, f"column text is {'empty' if isinstance(text, str) else f'{_kind(text)}, not text'}")
    if chatml.START not in text:
        # ms-swift would put an empty question before it, markers included.
        raise RowError(
            Fault.UNSUPPORTED, "column text is plain text without turns, and a chat template needs a question and an answer: give query and response"
        )
    return _with_system(columns, [_turn(number, entry) for number, entry in enumerate(chatml.parse(text), 1)])


def _with_system(columns: dict[str, Any], turns: list[_Turn]) -> list[_Turn]:
    """The turns behind the system prompt of its own column, if there is one."""
    system = _system(columns)
    if not system:
        return turns
    if turns[0].role == "system":
        if turns[0].content != system[0].content:
            raise RowError(Fault.COLUMNS, f"{system[0].where} and message 1 are two different system prompts; keep one")
        return turns
    return system + turns


def _turn(number: int, entry: object) -> _Turn:
    where = f"message {number}"
    if not isinstance(entry, dict):
        raise RowError(Fault.COLUMNS, f"{where} is {_kind(entry)}, not an object with role and content")
    for key in _REFUSED_KEYS:
        if entry.get(key) not in (None, True, [], ""):
            raise RowError(Fault.UNSUPPORTED, f"{where} has the key {key}, which is not supported")
    return _Turn(entry.get("role", entry.get("from")), entry.get("content", entry.get("value")), where)


def _paired(entries: list[Any]) -> list[_Turn]:
    """Turns of [{"human": ..., "assistant": ...}, ...], the other ShareGPT shape; empty for any other."""
    turns = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            return []
        question, answer = (next((key for key in entry if _ROLES.get(key) == role), None) for role in ("user", "assistant"))
        if question is None or answer is None:
            return []
        turns += [_Turn("user", entry[question], f"{question} of pair {number}"), _Turn("assistant", entry[answer], f"{answer} of pair {number}")]
    return turns


def _from_question(columns: dict[str, Any], found: list[str]) -> list[_Turn]:
    question = _instruction(columns) or _column(columns, _QUESTION, "question")
    answer = _column(columns, _ANSWER, "answer")
    if question is None or answer is None:
        missing = "question" if question is None else "answer"
        raise RowError(Fault.COLUMNS, f"no {missing} in the columns {', '.join(found) or 'of an empty row'}; accepted shapes: {ACCEPTED}")
    turns = _system(columns)
    for number, pair in enumerate(_history(columns), 1):
        turns += [_Turn("user", pair[0], f"question of history {number}"), _Turn("assistant", pair[1], f"answer of history {number}")]
    return [*turns, _Turn("user", question[1], f"column {question[0]}"), _Turn("assistant", answer[1], f"column {answer[0]}")]


def _instruction(columns: dict[str, Any]) -> tuple[str, Any] | None:
    """Alpaca's question: the instruction, and below it the input unless that is empty. None where another column may be the question."""
    if not {"instruction"} <= set(columns).intersection(_QUESTION) <= {"instruction", "input"}:
        return None
    instruction, text = columns.pop("instruction"), columns.pop("input", "")
    if isinstance(instruction, str) and isinstance(text, str):
        return "instruction", "\n".join(part for part in (instruction, text) if part)
    return "instruction", None


def _column(columns: dict[str, Any], names: tuple[str, ...], what: str) -> tuple[str, Any] | None:
    present = [name for name in names if name in columns]
    if not present:
        return None
    # Alpaca files repeat the whole prompt in `text`, which is an answer only where nothing else is.
    certain = [name for name in present if name not in ("text", "content")] or present
    if len(certain) > 1 and certain[0] != names[0]:
        raise RowError(Fault.COLUMNS, f"columns {' and '.join(certain)} could each be the {what}; keep one")
    return certain[0], columns.pop(certain[0])


def _system(columns: dict[str, Any]) -> list[_Turn]:
    found = _column(columns, _SYSTEM, "system prompt")
    if found is None or (isinstance(found[1], str) and not found[1].strip()):
        return []
    return [_Turn("system", found[1], f"column {found[0]}")]


def _history(columns: dict[str, Any]) -> list[list[Any]]:
    history = _unquoted(columns.pop("history", []))
    if history == "":
        return []
    if not isinstance(history, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in history):
        raise RowError(Fault.COLUMNS, "column history is not a list of [question, answer] pairs")
    return [list(pair) for pair in history]


def _unquoted(value: Any) -> Any:
    """The list in a text that holds one, as CSV-born data sets have it; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return value


def _checked(turns: list[_Turn]) -> list[Message]:
    messages: list[Message] = []
    for turn in turns:
        given = turn.role if isinstance(turn.role, str) else ""
        if given in _TOOL_ROLES:
            raise RowError(Fault.UNSUPPORTED, f"{turn.where} has the role {given}: tool calls are not supported")
        role = _ROLES.get(given)
        if role is None:
            raise RowError(Fault.ROLE, f"{turn.where} has the role {_shown(turn.role)}; accepted: {', '.join(_ROLES)}")
        messages.append({"role": role, "content": _content(turn, role)})
    spoken = [message["role"] for message in messages]
    if "assistant" not in spoken:
        raise RowError(Fault.ORDER, "there is no assistant turn to learn from")
    first = 1 if spoken[0] == "system" else 0
    for number, role in enumerate(spoken[first:]):
        expected = ("user", "assistant")[number % 2]
        if role != expected:
            raise RowError(Fault.ORDER, f"{turns[first + number].where} is from the {role} where the {expected} must speak")
    if spoken[-1] != "assistant":
        raise RowError(Fault.ORDER, "the last turn must be the assistant's")
    return messages


def _content(turn: _Turn, role: str) -> str:
    text = turn.content
    if not isinstance(text, str):
        raise RowError(Fault.CONTENT, f"{turn.where} ({role}) is {_kind(text)}, not text")
    if not text.strip():
        raise RowError(Fault.CONTENT, f"{turn.where} ({role}) is empty")
    if marker := next((marker for marker in (chatml.START, chatml.END) if marker in text), None):
        # It would be encoded as the real marker, and the model learn to speak for both sides.
        raise RowError(Fault.CONTENT, f"{turn.where} ({role}) holds the chat marker {marker}; markers are added by the job, remove them from contents")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(Fault.CONTENT, f"{turn.where} ({role}) holds half of a surrogate pair at character {error.start + 1}: not valid Unicode") from error
    return text


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list" if value else "an empty list", str: "text", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value)) or ("a number" if isinstance(value, int | float) else f"a value of type {type(value).__name__}")


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, default=str)[:60]  # Parquet has more types than JSON
