"""What meets an expectation, what does not and why, and which expectations cannot be checked."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_runtime.contract.evaluation import Expectation
from finetune_runtime.evaluate.expectation import fault, misses, shown
from tests.unit.runtime.openai_endpoint import endpoint, hangs

ORDER = json.dumps({"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}, "additionalProperties": False})
CASES: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "nothing expected": ({}, "anything", []),
    "nothing expected of an empty answer": ({}, "", []),
    "contains in another case": ({"contains": ["EIGHT", "six"]}, "We open at eight and close at Six.", []),
    "contains with a sharp s": ({"contains": ["STRASSE"]}, "in der Hauptstraße", []),
    "contains only one of two": ({"contains": ["eight", "six"]}, "We open at eight.", ['does not contain "six"']),
    "contains in another script": ({"contains": ["八点"]}, "我们八点开门。", []),
    "not contains": ({"notContains": ["as an AI"]}, "We open at eight.", []),
    "not contains in another case": ({"notContains": ["as an AI"]}, "As an ai language model", ['contains "as an AI"']),
    "regex somewhere": ({"regex": r"\b8 ?(am|Uhr)\b"}, "From 8 am on.", []),
    "regex nowhere": ({"regex": r"^\d+$"}, "eight", [r"does not match ^\d+$"]),
    "JSON as it should be": ({"jsonSchema": ORDER}, ' {"id": 7}\n', []),
    "JSON of another shape": ({"jsonSchema": ORDER}, '{"id": "7"}', ["is not as jsonSchema says at $.id: '7' is not of type 'integer'"]),
    "no JSON": ({"jsonSchema": ORDER}, "Sure! Here it is", ["is not JSON: Expecting value: line 1 column 1 (char 0)"]),
    "JSON in a code fence, which no program would read": ({"jsonSchema": ORDER}, '```json\n{"id": 7}\n```', ["is not JSON: Expecting value: line 1 column 1 (char 0)"]),
    "NaN is no JSON": ({"jsonSchema": '{"type": "number"}'}, "NaN", ["is not JSON: NaN is no JSON value"]),
    "JSON without end": ({"jsonSchema": "{}"}, "[" * 100_000, ["is not JSON: maximum recursion depth exceeded while decoding a JSON array from a unicode string"]),
    "schema that allows all": ({"jsonSchema": "true"}, "[]", []),
    "schema that allows nothing": ({"jsonSchema": "false"}, "[]", ["is not as jsonSchema says at $: False schema does not allow []"]),
    "schema of an older draft": ({"jsonSchema": '{"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 3, "exclusiveMinimum": true}'}, "3", [
        "is not as jsonSchema says at $: 3 is less than or equal to the minimum of 3"
    ]),
    "schema that refers into itself": ({"jsonSchema": '{"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}'}, '"x"', []),
    "schema that refers to nothing": ({"jsonSchema": '{"$ref": "#/$defs/a"}'}, '"x"', [
        "cannot be checked: jsonSchema refers to what is not in it, or to itself without end (_WrappedReferencingError)"
    ]),
    "schema that refers to itself without end": ({"jsonSchema": '{"$ref": "#"}'}, '"x"', [
        "cannot be checked: jsonSchema refers to what is not in it, or to itself without end (RecursionError)"
    ]),
    "quick enough": ({"maxLatencySeconds": "1.5"}, "x", []),
    "too slow": ({"maxLatencySeconds": "1.4"}, "x", ["took 1.50 s, longer than 1.4 s"]),
    "all that is wrong is told": ({"contains": ["a"], "notContains": ["b"], "regex": "c", "maxLatencySeconds": "1"}, "b", [
        'does not contain "a"', 'contains "b"', "does not match c", "took 1.50 s, longer than 1 s"
    ]),
}  # fmt: skip


@pytest.mark.parametrize(("expect", "answer", "expected"), CASES.values(), ids=CASES)
def test_misses(expect: dict[str, Any], answer: str, expected: list[str]) -> None:
    parsed = Expectation.model_validate(expect)
    assert fault(parsed) == ""
    assert misses(parsed, answer, 1.5) == expected


def test_no_schema_is_fetched_from_anywhere() -> None:
    with endpoint(hangs) as server:  # what it answers to GET would do as a schema that allows everything
        [miss] = misses(Expectation(json_schema=json.dumps({"$ref": f"{server.url}/models"})), '"x"', 0)
    assert miss.startswith("cannot be checked: jsonSchema refers to what is not in it")


FAULTS: dict[str, tuple[dict[str, str], str]] = {
    "a broken regular expression": ({"regex": "(open"}, "expect.regex is not a regular expression: missing ), unterminated subpattern at position 0"),
    "a schema that is no JSON": ({"jsonSchema": "{type: object}"}, "expect.jsonSchema is not JSON: Expecting property name"),
    "a schema that is JSON only": ({"jsonSchema": '{"type": "integr"}'}, "expect.jsonSchema is not a JSON schema: 'integr' is not valid"),
    "a schema that is a text": ({"jsonSchema": '"object"'}, "expect.jsonSchema is not a JSON schema: 'object' is not of type"),
}


@pytest.mark.parametrize(("expect", "words"), FAULTS.values(), ids=FAULTS)
def test_an_expectation_that_cannot_be_checked_says_why(expect: dict[str, str], words: str) -> None:
    assert fault(Expectation.model_validate(expect)).startswith(words)


@given(answer=st.text(), part=st.text(min_size=1, max_size=20))
def test_a_text_is_contained_or_it_is_not(answer: str, part: str) -> None:
    contained = not misses(Expectation(contains=[part]), answer, 0)
    assert contained != (not misses(Expectation(not_contains=[part]), answer, 0))
    assert not misses(Expectation(contains=[part]), f"{answer}{part}{answer}", 0)


@given(st.text())
def test_a_quote_is_one_short_line(text: str) -> None:
    assert len(shown(text)) <= 126
    assert "\n" not in shown(text)
