"""Descriptions as kubectl explain prints them."""

from typing import Any

import pytest

from finetune_operator.crd.explain import explained

ROWS = [
    pytest.param({"type": "integer", "default": 3}, "It. Defaults to 3.", id="a number"),
    pytest.param({"type": "integer", "default": 0}, "It. Defaults to 0.", id="zero"),
    pytest.param({"type": "boolean", "default": False}, "It. Defaults to false.", id="false, as YAML writes it"),
    pytest.param({"type": "string", "default": "3e-6"}, "It. Defaults to 3e-6.", id="a text"),
    pytest.param({"type": "array", "items": {"type": "string"}, "default": ["all-linear"]}, 'It. Defaults to ["all-linear"].', id="a list"),
    pytest.param({"type": "string", "default": ""}, "It.", id="an empty default, which the description explains"),
    pytest.param({"type": "object", "properties": {}, "default": {}}, "It.", id="an object, whose fields have their own"),
    pytest.param({"x-kubernetes-int-or-string": True, "default": "16Gi"}, "It. An integer or a string. Defaults to 16Gi.", id="a quantity"),
]


@pytest.mark.parametrize(("schema", "expected"), ROWS)
def test_defaults_are_described(schema: dict[str, Any], expected: str) -> None:
    parent = {"description": "All.", "properties": {"it": {"description": "It."} | schema}}

    assert explained(parent)["properties"]["it"]["description"] == expected
    assert explained(parent, defaults=False)["properties"]["it"]["description"] == "It."


def test_rules_are_described_where_their_path_points() -> None:
    schema = {
        "description": "All.",
        "properties": {
            "a": {"description": "A.", "default": 1},
            "deep": {"description": "Deep.", "properties": {"b": {"description": "B."}}},
            "list": {"description": "List.", "items": {"description": "Entry.", "x-kubernetes-validations": [{"rule": "self > 0", "message": "positive"}]}},
        },
        "x-kubernetes-validations": [
            {"rule": "self.a == oldSelf.a", "message": "a is fixed", "fieldPath": ".a"},
            {"rule": "self.deep.b < 2", "message": "b is small", "fieldPath": ".deep.b"},
            {"rule": "self.a < 2", "message": "all is well"},
        ],
    }

    result = explained(schema)

    assert result["description"] == "All. Rule: all is well."
    assert result["properties"]["a"]["description"] == "A. Defaults to 1. Immutable."
    assert result["properties"]["deep"]["properties"]["b"]["description"] == "B. Rule: b is small."
    assert result["properties"]["list"]["items"]["description"] == "Entry. Rule: positive."
    assert schema["description"] == "All.", "the argument is left alone"
