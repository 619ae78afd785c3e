"""Base model and scalar types shared by the API and the contract."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """Immutable camelCase document. Unknown fields are ignored when read: strictness is the API server's job,
    and an operator must be able to read objects that a newer CRD wrote.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")

    def dump(self) -> dict[str, Any]:
        """Plain JSON-ready dict with camelCase keys and without absent fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


# Kubernetes API conventions forbid floats in a spec (they do not survive every round trip), so they are strings.
PositiveFloat = Annotated[str, Field(pattern=r"^([0-9]*[1-9][0-9]*(\.[0-9]+)?|[0-9]+\.[0-9]*[1-9][0-9]*)([eE]-?[0-9]+)?$", max_length=32)]
Fraction = Annotated[str, Field(pattern=r"^(0(\.[0-9]+)?|1(\.0+)?)$", max_length=16)]

QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
Quantity = Annotated[
    str,
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": QUANTITY_PATTERN,
            "minimum": 0,  # the API server holds strings to the pattern, and integers only to this
            "maxLength": 32,
        }
    ),
    Field(coerce_numbers_to_str=True),
]

_UNITS = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "": 1}


def parse_quantity(text: str) -> float:
    """Value of a Kubernetes quantity in its base unit (bytes, cores). Raises ValueError for anything else."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text)
    if not match or match[2] not in _UNITS:
        raise ValueError(f"not a quantity: {text!r}")
    return float(match[1]) * _UNITS[match[2]]
