"""Metadata of children."""

from typing import Any

from finetune_operator.api import API_VERSION
from finetune_operator.api.meta import Owner


def metadata(owner: Owner, name: str, labels: dict[str, str]) -> dict[str, Any]:
    """Name, labels and the owner reference that lets Kubernetes delete the child with its owner."""
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": labels,
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": owner.kind,
                "name": owner.name,
                "uid": owner.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
