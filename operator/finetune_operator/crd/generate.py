"""The CustomResourceDefinitions of the API group."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from finetune_operator.api import GROUP, VERSION, finetunejob, modelendpoint

from .explain import explained
from .schema import Schema, structural


@dataclass(frozen=True)
class Kind:
    """One kind of the group: its type and what kubectl makes of it."""

    model: type[BaseModel]
    short_name: str
    printer_columns: list[dict[str, Any]]
    selectable_fields: tuple[str, ...]
    scale: dict[str, str] | None = None

    @property
    def name(self) -> str:
        """Kind in PascalCase."""
        return self.model.__name__

    @property
    def plural(self) -> str:
        """Resource name, as in URLs and RBAC rules."""
        return f"{self.name.lower()}s"

    def schema(self) -> Schema:
        """Structural schema of the whole object. A status has no defaults: they would claim what nobody observed."""
        schema = structural(self.model, without_defaults=("status",))
        # The API server describes these by itself; a description of metadata it even refuses.
        common: dict[str, Schema] = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
        properties = common | schema["properties"]
        # kstatus (helm --wait, Argo CD, Flux) takes an object without any status for done, unless it says that nobody has seen it yet.
        properties["status"] = properties["status"] | {"default": {"observedGeneration": -1}}
        return schema | {"properties": properties}

    def crd(self) -> dict[str, Any]:
        """CustomResourceDefinition of the kind."""
        return {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{self.plural}.{GROUP}"},
            "spec": {
                "group": GROUP,
                "names": {
                    "kind": self.name,
                    "listKind": f"{self.name}List",
                    "plural": self.plural,
                    "singular": self.name.lower(),
                    "shortNames": [self.short_name],
                    "categories": ["finetune"],
                },
                "scope": "Namespaced",
                "versions": [
                    {
                        "name": VERSION,
                        "served": True,
                        "storage": True,
                        "subresources": {"status": {}} | ({"scale": self.scale} if self.scale else {}),
                        "additionalPrinterColumns": self.printer_columns,
                        "selectableFields": [{"jsonPath": path} for path in self.selectable_fields],
                        "schema": {"openAPIV3Schema": explained(self.schema())},
                    }
                ],
            },
        }


KINDS = (
    Kind(finetunejob.FineTuneJob, "ftj", finetunejob.PRINTER_COLUMNS, (".spec.model.source", ".status.phase")),
    Kind(
        modelendpoint.ModelEndpoint,
        "mep",
        modelendpoint.PRINTER_COLUMNS,
        (".spec.model.source",),
        scale={"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"},
    ),
)
