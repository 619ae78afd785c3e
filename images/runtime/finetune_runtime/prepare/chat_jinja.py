"""Chat templates as Jinja text. Pure. Only what transformers and vLLM both offer: messages, add_generation_prompt, raise_exception."""

import json
import re
from dataclasses import dataclass

_MARKERS = re.compile(r"\{\{(QUERY|SYSTEM|ROUND0|ROUND1)\}\}")
_VALUES = {
    "QUERY": "message['content']",
    "SYSTEM": "state.system",
    "ROUND0": "(loop.index0 // 2)",
    "ROUND1": "(loop.index0 // 2 + 1)",
}


@dataclass(frozen=True)
class Pieces:
    """The texts that ms-swift puts around a conversation (its TemplateMeta), with {{QUERY}}, {{SYSTEM}}, {{ROUND0}} and {{ROUND1}}.

    `system_prefix` None: no system prompt is taken before the first question. `last_prompt`: for templates that put the system prompt
    into the last question. `chat_sep` None: one question and answer only. `answer_prefix`: what each answer begins with without being
    learned, such as an empty block of reasoning.
    """

    prefix: str
    system_prefix: str | None
    prompt: str
    last_prompt: str | None
    chat_sep: str | None
    suffix: str
    answer_prefix: str = ""


def literal(text: str) -> str:
    """A Jinja string literal. JSON's escapes are a subset of Jinja's; other characters stand for themselves."""
    return json.dumps(text, ensure_ascii=False)


def generate(pieces: Pieces, default_system: str, *, reasons: bool = False) -> str:
    """Template that renders what ms-swift encodes. Without a system message, `default_system` stands in.

    With an answer prefix, `enable_thinking` decides whether the generation prompt ends with it; `reasons` is its default.
    """
    lines = [
        f"{{%- set state = namespace(system={literal(default_system)}, turns=messages) -%}}",
        "{%- if messages and messages[0]['role'] == 'system' -%}",
        "{%- set state.system = messages[0]['content'] -%}{%- set state.turns = messages[1:] -%}",
        "{%- endif -%}",
        *_system(pieces),
        "{%- for message in state.turns -%}",
        # Other orders never occur in training: better a clear refusal than an answer from a prompt that nobody has tested.
        "{%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}",
        "{{- raise_exception('After an optional system message, user and assistant messages must alternate.') -}}",
        "{%- elif message['role'] == 'user' -%}",
        *_question(pieces),
        "{%- else -%}",
        *_answer(pieces),
        "{%- endif -%}",
        "{%- endfor -%}",
    ]
    if pieces.answer_prefix:
        wanted = f"add_generation_prompt and not (enable_thinking | default({'true' if reasons else 'false'}))"
        lines += [f"{{%- if {wanted} -%}}", _output(pieces.answer_prefix), "{%- endif -%}"]
    return "\n".join(line for line in lines if line) + "\n"


def with_default_system(template: str, system: str) -> str:
    """A template that behaves as if requests without a system message had this one."""
    return (
        "{%- if not messages or messages[0]['role'] != 'system' -%}"
        f"{{%- set messages = [{{'role': 'system', 'content': {literal(system)}}}] + messages -%}}"
        "{%- endif -%}\n" + template
    )


def _system(pieces: Pieces) -> list[str]:
    if pieces.system_prefix is not None:
        return _either("state.system", pieces.system_prefix, pieces.prefix)
    if pieces.last_prompt is not None:
        return [_output(pieces.prefix)]
    refusal = "{{- raise_exception('This model takes no system message.') -}}"
    return ["{%- if state.system -%}", refusal, "{%- endif -%}", _output(pieces.prefix)]


def _question(pieces: Pieces) -> list[str]:
    # The prompt ends with the assistant's header, so it opens the answer with and without add_generation_prompt.
    if pieces.last_prompt is None:
        return [_output(pieces.prompt)]
    return [
        "{%- if state.system and loop.index0 >= (state.turns | length) - 2 -%}",
        _output(pieces.last_prompt),
        "{%- else -%}",
        _output(pieces.prompt),
        "{%- endif -%}",
    ]


def _answer(pieces: Pieces) -> list[str]:
    lines = []
    if pieces.answer_prefix:
        openings = "'<think>'" if pieces.answer_prefix.startswith("<think>") else f"('<think>', {literal(pieces.answer_prefix)})"
        lines += [f"{{%- if not message['content'].startswith({openings}) -%}}", _output(pieces.answer_prefix), "{%- endif -%}"]
    lines.append("{{- message['content'] -}}")
    if pieces.chat_sep is None:
        only = "{{- raise_exception('This model takes one question at a time.') -}}"
        return [*lines, "{%- if not loop.last -%}", only, "{%- endif -%}", _output(pieces.suffix)]
    return [*lines, *_either("loop.last", pieces.suffix, pieces.chat_sep)]


def _either(condition: str, then: str, otherwise: str) -> list[str]:
    """Statements that print one of two texts."""
    if then == otherwise:
        return [_output(then)]
    return [f"{{%- if {condition} -%}}", _output(then), *(["{%- else -%}", _output(otherwise)] if otherwise else []), "{%- endif -%}"]


def _output(text: str) -> str:
    """A statement that prints a text with its markers filled in; `-` on both sides keeps the line breaks of this template out."""
    parts = _MARKERS.split(text)  # text, marker, text, marker, ...
    terms = [_VALUES[part] if number % 2 else literal(part) for number, part in enumerate(parts) if part]
    return f"{{{{- {' ~ '.join(terms)} -}}}}" if terms else ""
