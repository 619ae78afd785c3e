"""Structural OpenAPI v3 schemas, as a CRD needs them, from pydantic models.

A CRD takes a narrow dialect of JSON schema: no references, no nulls, every node typed. What has no place in that
dialect is refused here with the field's path, rather than dropped and then accepted from users unchecked.
"""

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]

_COPIED = (
    "description", "type", "format", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum", "multipleOf",
    "minItems", "maxItems", "minProperties", "maxProperties", "required",
)  # fmt: skip
_CONVERTED = {"const", "exclusiveMinimum", "exclusiveMaximum", "default", "items", "additionalProperties", "properties", "anyOf"}
_DROPPED = {"title", "$defs"}
_TYPES = {"string", "integer", "boolean", "array", "object"}
_INT_OR_STRING = "x-kubernetes-int-or-string"
_PRESERVE = "x-kubernetes-preserve-unknown-fields"


class NotStructuralError(TypeError):
    """A model says something that a CRD cannot express. The message begins with the field's path."""

    def __init__(self, path: str, cause: str) -> None:
        super().__init__(f"{path or '(root)'}: {cause}")


def structural(model: type[BaseModel], *, without_defaults: Collection[str] = ()) -> Schema:
    """Structural schema of `model`. Top-level fields in `without_defaults` get no defaults, at any depth.

    Raises NotStructuralError for what a CRD cannot express.
    """
    document = model.model_json_schema()
    return _Converter(document.get("$defs", {}), without_defaults).convert(document, "", frozenset())


class _Converter:
    def __init__(self, definitions: Mapping[str, Schema], without_defaults: Collection[str]) -> None:
        self._definitions = definitions
        self._without_defaults = frozenset(without_defaults)

    def convert(self, node: Schema, path: str, refs: frozenset[str]) -> Schema:
        """Structural form of the node at `path`, reached through the definitions `refs`."""
        node, refs = self._resolve(node, path, refs)
        unknown = sorted(k for k in node if k not in _DROPPED | _CONVERTED | set(_COPIED) and not k.startswith("x-kubernetes-"))
        if unknown:
            raise NotStructuralError(path, f"a CRD has no place for {', '.join(unknown)}")
        schema = {key: node[key] for key in _COPIED if key in node}
        if "const" in node:
            schema["enum"] = [node["const"]]
        for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if exclusive in node:  # a number in today's JSON schema, a flag beside the bound in OpenAPI 3.0
                schema |= {bound: node[exclusive], exclusive: True}
        if _INT_OR_STRING in node:
            schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]  # the one union that is structural
        elif node.get("type") not in _TYPES:
            raise NotStructuralError(path, _type_fault(node.get("type")))
        schema |= self._children(node, path, refs)
        if node.get("default") is not None and path.partition(".")[0] not in self._without_defaults:
            schema["default"] = _default(schema, node, path)
        return schema | {key: value for key, value in node.items() if key.startswith("x-kubernetes-")}

    def _children(self, node: Schema, path: str, refs: frozenset[str]) -> Schema:
        children: Schema = {}
        if node.get("type") == "array":
            if not isinstance(node.get("items"), dict):
                raise NotStructuralError(path, "a list needs the type of its items")
            children["items"] = self.convert(node["items"], f"{path}[]", refs)
        if "properties" in node:
            # additionalProperties: false is left out: the API server prunes or refuses unknown fields by itself.
            prefix = f"{path}." if path else ""
            children["properties"] = {name: self.convert(child, prefix + name, refs) for name, child in node["properties"].items()}
        elif isinstance(node.get("additionalProperties"), dict):
            children["additionalProperties"] = self.convert(node["additionalProperties"], f"{path}.*", refs)
        elif node.get("type") == "object" and _PRESERVE not in node:
            raise NotStructuralError(path, f"an object needs fields, a value type or {_PRESERVE}")
        return children

    def _resolve(self, node: Schema, path: str, refs: frozenset[str]) -> tuple[Schema, frozenset[str]]:
        """Follows references and takes the null out of optional types. What stands beside them wins."""
        while True:
            if "$ref" in node:
                name = node["$ref"].rsplit("/", 1)[-1]
                if name in refs:
                    raise NotStructuralError(path, f"{name} contains itself, and a CRD has no references")
                refs |= {name}
                node = self._definitions[name] | {k: v for k, v in node.items() if k != "$ref"}
            elif "anyOf" in node and _INT_OR_STRING not in node:
                options = [option for option in node["anyOf"] if option != {"type": "null"}]
                if len(options) != 1:
                    raise NotStructuralError(path, "a union of types cannot be pruned; only integer-or-string can be expressed")
                node = options[0] | {k: v for k, v in node.items() if k != "anyOf"}
            else:
                return node, refs


def _type_fault(kind: object) -> str:
    if kind == "number":
        return "floating-point numbers do not survive every round trip; use a string with a pattern"
    return "a node needs exactly one type" if kind is None else f"type {kind!r} is not one of {', '.join(sorted(_TYPES))}"


def _default(schema: Schema, node: Schema, path: str) -> Any:
    """The default to write down: {} for an object, which the API server fills with the defaults of its fields.

    An object with CEL rules gets its default in full: the API server proves a default by these rules before it fills it.
    """
    default = node["default"]
    if "properties" not in schema:
        return default
    by_fields = _filled(schema)
    if _without_absent(default) != by_fields:
        raise NotStructuralError(path, f"its default {default} differs from {by_fields}, the defaults of its fields; give the fields these defaults")
    return by_fields if "x-kubernetes-validations" in node else {}


def _filled(schema: Schema) -> Schema:
    fields = schema["properties"].items()
    return {name: _filled(field) if "properties" in field else field["default"] for name, field in fields if "default" in field}


def _without_absent(value: Any) -> Any:
    return {k: _without_absent(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value
