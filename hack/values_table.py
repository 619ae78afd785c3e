"""The table of values in the chart's README, from values.schema.json and values.yaml."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

BEGIN, END = "<!-- values: written by hack/generate.py -->", "<!-- end of values -->"


def with_values_table(readme: str, chart: Path) -> str:
    """The README with a fresh table between its marks. Raises ValueError when a value lacks its description."""
    schema = json.loads((chart / "values.schema.json").read_text())
    values = yaml.safe_load((chart / "values.yaml").read_text())
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not after:
        raise ValueError(f"{chart}/README.md lacks the marks {BEGIN!r} and {END!r}; put them where the table belongs")
    table = "\n".join(["| Value | Default | Meaning |", "|---|---|---|", *_rows("", schema, values, schema["definitions"])])
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _rows(prefix: str, schema: dict[str, Any], values: dict[str, Any], definitions: dict[str, Any]) -> Iterator[str]:
    for name, node in schema["properties"].items():
        if name not in values:  # only admitted, as Helm's own `global`
            continue
        resolved = definitions[node["$ref"].rsplit("/", 1)[-1]] | node if "$ref" in node else node
        if "properties" in resolved:
            yield from _rows(f"{prefix}{name}.", resolved, values[name], definitions)
        elif "description" not in resolved:
            raise ValueError(f"values.schema.json: {prefix}{name} has no description")
        else:
            yield f"| `{prefix}{name}` | `{json.dumps(values[name])}` | {resolved['description']} |"
