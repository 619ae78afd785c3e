"""Descriptions that say all that a schema says: `kubectl explain` prints neither defaults nor rules."""

import json
from typing import Any

from .schema import Schema


def explained(schema: Schema, *, defaults: bool = True) -> Schema:
    """The schema with the rules on each field, and its default if asked, written into its description."""
    out = dict(schema)
    for node in ("items", "additionalProperties"):
        if node in out:
            out[node] = explained(out[node], defaults=defaults)
    if "properties" in out:
        fields = {name: explained(field, defaults=defaults) for name, field in out["properties"].items()}
        out["properties"] = {name: _with_default(field) for name, field in fields.items()} if defaults else fields
    for rule in out.get("x-kubernetes-validations", []):
        field = out
        for name in rule.get("fieldPath", "").split(".")[1:]:
            field = field["properties"][name]  # a copy of ours, so that it may be changed
        _append(field, "Immutable." if "oldSelf" in rule["rule"] else f"Rule: {rule['message']}.")
    return out


def shown_default(field: Schema) -> str:
    """A field's default as a user would write it; nothing for objects and for empty values."""
    default: Any = field.get("default")
    if default in (None, "", [], {}) or "properties" in field:
        return ""
    return default if isinstance(default, str) else json.dumps(default)


def _with_default(field: Schema) -> Schema:
    if "x-kubernetes-int-or-string" in field:
        _append(field, "An integer or a string.")  # kubectl calls this type Object
    if text := shown_default(field):
        _append(field, f"Defaults to {text}.")
    return field


def _append(field: Schema, text: str) -> None:
    field["description"] = f"{field['description']} {text}"
