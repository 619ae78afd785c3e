"""Conversion of pydantic models to structural schemas, one construct a row."""

from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, create_model

from finetune_operator.crd.schema import NotStructuralError, structural

INT_OR_STRING = {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True}


class Colour(StrEnum):
    RED = "Red"
    BLUE = "Blue"


class Inner(BaseModel):
    """The class's own text."""

    size: int = 3


class Ruled(BaseModel):
    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": [{"rule": "self.size < 5", "message": "small only"}]})
    size: int = 3


class Node(BaseModel):
    """Two classes that contain each other."""

    children: list["Node"] = []


def field(annotation: Any, **settings: Any) -> dict[str, Any]:
    """Schema of a model's only field, `it`; required unless the settings have a default."""
    schema: dict[str, Any] = structural(create_model("Outer", it=(annotation, Field(**settings))))["properties"]["it"]
    return schema


CONVERTED = [
    pytest.param(str, {}, {"type": "string"}, id="a title is dropped"),
    pytest.param(str, {"description": "d"}, {"type": "string", "description": "d"}, id="a description is kept"),
    pytest.param(str | None, {"default": None}, {"type": "string"}, id="an optional field may be absent, not null"),
    pytest.param(
        Annotated[str, Field(max_length=9)] | None, {"default": None}, {"type": "string", "maxLength": 9}, id="an optional field keeps its inner bounds"
    ),
    pytest.param(Literal["a"], {}, {"type": "string", "enum": ["a"]}, id="a constant is an enum of one"),
    pytest.param(Literal["a", "b"], {}, {"type": "string", "enum": ["a", "b"]}, id="a literal is an enum"),
    pytest.param(Colour, {"default": Colour.RED}, {"type": "string", "enum": ["Red", "Blue"], "default": "Red"}, id="an enum is inlined"),
    pytest.param(int, {"ge": 1, "le": 9}, {"type": "integer", "minimum": 1, "maximum": 9}, id="inclusive bounds"),
    pytest.param(
        int,
        {"gt": 1, "lt": 9},
        {"type": "integer", "minimum": 1, "exclusiveMinimum": True, "maximum": 9, "exclusiveMaximum": True},
        id="exclusive bounds are flags in OpenAPI 3.0",
    ),
    pytest.param(bool, {"default": False}, {"type": "boolean", "default": False}, id="a false default is a default"),
    pytest.param(int, {"default": 0}, {"type": "integer", "default": 0}, id="a zero default is a default"),
    pytest.param(
        list[str], {"default": [], "max_length": 4}, {"type": "array", "items": {"type": "string"}, "maxItems": 4, "default": []}, id="a bounded list"
    ),
    pytest.param(
        dict[str, int],
        {"default": {}, "max_length": 4},
        {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 4, "default": {}},
        id="a bounded map",
    ),
    pytest.param(
        Inner,
        {"default": Inner(), "description": "the field's text"},
        {"type": "object", "description": "the field's text", "properties": {"size": {"type": "integer", "default": 3}}, "default": {}},
        id="an object defaults to {}, its fields default by themselves, and the field's description wins",
    ),
    pytest.param(
        Ruled,
        {"default": Ruled()},
        {
            "type": "object",
            "properties": {"size": {"type": "integer", "default": 3}},
            "default": {"size": 3},
            "x-kubernetes-validations": [{"rule": "self.size < 5", "message": "small only"}],
        },
        id="an object with rules defaults in full, because its default must satisfy them",
    ),
    pytest.param(Annotated[str, WithJsonSchema(INT_OR_STRING)], {}, INT_OR_STRING, id="integer or string"),
    pytest.param(Annotated[str, WithJsonSchema(INT_OR_STRING)] | None, {"default": None}, INT_OR_STRING, id="optional integer or string"),
    pytest.param(
        dict[str, Any],
        {"json_schema_extra": {"x-kubernetes-preserve-unknown-fields": True}},
        {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        id="an object of any fields",
    ),
    pytest.param(
        list[str], {"json_schema_extra": {"x-kubernetes-list-type": "set"}}, {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
        id="Kubernetes' own keywords are kept",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "settings", "expected"), CONVERTED)
def test_conversion(annotation: Any, settings: dict[str, Any], expected: dict[str, Any]) -> None:
    assert field(annotation, **settings) == expected


REFUSED = [
    pytest.param(float, {}, "it: floating-point numbers", id="a float"),
    pytest.param(list[float], {}, r"it\[\]: floating-point numbers", id="a float in a list"),
    pytest.param(dict[str, float], {}, r"it\.\*: floating-point numbers", id="a float in a map"),
    pytest.param(int | str, {}, "it: a union of types", id="a union"),
    pytest.param(Any, {}, "it: a node needs exactly one type", id="anything"),
    pytest.param(list[Any], {}, r"it\[\]: a node needs exactly one type", id="a list of anything"),
    pytest.param(dict[str, Any], {}, "it: an object needs fields", id="an untyped object"),
    pytest.param(set[str], {}, "it: a CRD has no place for uniqueItems", id="a set"),
    pytest.param(tuple[int, str], {}, "it: a CRD has no place for prefixItems", id="a tuple"),
    pytest.param(Node, {}, r"it\.children\[\]: Node contains itself", id="a type that contains itself"),
    pytest.param(Inner, {"default": Inner(size=4)}, "it: its default {'size': 4} differs from {'size': 3}", id="a default that the fields do not have"),
    pytest.param(str, {"examples": ["a"]}, "it: a CRD has no place for examples", id="a keyword without a place"),
]


@pytest.mark.parametrize(("annotation", "settings", "message"), REFUSED)
def test_what_a_crd_cannot_express_is_refused_with_its_path(annotation: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(NotStructuralError, match=message):
        field(annotation, **settings)


def test_required_fields_and_unknown_ones() -> None:
    class Strict(BaseModel):
        model_config = ConfigDict(extra="forbid")
        a: int
        b: int = 1

    assert structural(Strict) == {
        "type": "object",
        "required": ["a"],
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer", "default": 1}},
    }, "additionalProperties: false has no place beside properties; the API server refuses unknown fields anyway"


def test_defaults_are_left_out_below_the_named_fields_only() -> None:
    class Outer(BaseModel):
        spec: Inner = Inner()
        status: Inner = Inner()
        status_text: str = "x"

    properties = structural(Outer, without_defaults=("status",))["properties"]

    assert properties["status"] == {"type": "object", "description": "The class's own text.", "properties": {"size": {"type": "integer"}}}
    assert properties["spec"]["default"] == {}
    assert properties["status_text"]["default"] == "x"
