"""docs/api.md from the CRDs' schemas."""

from collections.abc import Iterator

from finetune_operator.api import API_VERSION
from finetune_operator.crd.explain import explained, shown_default
from finetune_operator.crd.generate import KINDS, Kind
from finetune_operator.crd.schema import Schema

_INTRODUCTION = f"""\
<!-- Written by hack/generate.py from the types in operator/finetune_operator/api; do not edit. -->
# API reference

Group and version: `{API_VERSION}`. In a terminal, `kubectl explain finetunejob.spec.training` says the same.

`train[].source` is the field `source` of each entry of the list `train`. A field marked **required** must be given whenever
the object around it is given; any other may be left out and then has its default. *Immutable* fields cannot be changed
after the object was created. The API server checks types, limits and rules when an object is applied, and names the field
that breaks one.
"""


def reference() -> str:
    """The whole document, in Markdown."""
    return "\n".join([_INTRODUCTION, *(line for kind in KINDS for line in _kind(kind))])


def _kind(kind: Kind) -> Iterator[str]:
    schema = explained(kind.schema(), defaults=False)
    yield f"## {kind.name}\n\n{schema['description']}\n\nShort name for kubectl: `{kind.short_name}`.\n"
    for top in ("spec", "status"):
        fields = schema["properties"][top]["properties"]
        yield f"### {kind.name} {top}\n\n{schema['properties'][top]['description']}\n"
        yield from _table(_row(name, field, schema["properties"][top]) for name, field in fields.items())
        for name, field in fields.items():
            if inner := _object(field):
                yield f"#### {kind.name} {top}.{name}{'[]' if 'items' in field else ''}\n\n{field['description']}\n"
                yield from _table(_rows("", inner))


def _table(rows: Iterator[str]) -> Iterator[str]:
    yield "| Field | Type | Default | Meaning |\n|---|---|---|---|"
    yield from rows
    yield ""


def _rows(prefix: str, schema: Schema) -> Iterator[str]:
    """One row for each field, at any depth."""
    for name, field in schema["properties"].items():
        yield _row(prefix + name, field, schema)
        if inner := _object(field):
            yield from _rows(f"{prefix}{name}{'[]' if 'items' in field else ''}.", inner)


def _object(field: Schema) -> Schema | None:
    """The object that a field holds, itself or as the entries of a list; none for scalars and maps."""
    inner: Schema = field.get("items", field)
    return inner if "properties" in inner else None


def _row(path: str, field: Schema, parent: Schema) -> str:
    required = path.rsplit(".", 1)[-1] in parent.get("required", [])
    default = f"`{shown_default(field)}`" if shown_default(field) else ""
    return f"| `{path}` | {_type(field)} | {'**required**' if required else default} | {_escaped(field['description'])} |"


def _type(field: Schema) -> str:
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "x-kubernetes-int-or-string" in field:
        return "integer or string"
    if "items" in field:
        return f"list of {_type(field['items'])}s{_limits(field, 'minItems', 'maxItems')}"
    if "additionalProperties" in field:
        return f"map of {_type(field['additionalProperties'])}s{_limits(field, 'minProperties', 'maxProperties')}"
    return str(field["type"]) + _limits(field, "minimum", "maximum")


def _limits(field: Schema, low: str, high: str) -> str:
    if low in field and high in field:
        return f", {field[low]} to {field[high]}"
    return f", at least {field[low]}" if low in field else f", at most {field[high]}" if high in field else ""


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
