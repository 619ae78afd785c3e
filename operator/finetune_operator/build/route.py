"""The HTTPRoute of a model endpoint: which version gets which share of the requests that come through a Gateway."""

from collections.abc import Mapping
from typing import Any

from finetune_operator import names
from finetune_operator.api.meta import Owner
from finetune_operator.api.serving import Canary, ParentRef

from .meta import metadata
from .serving import COMPONENT, SERVICE_PORT

# All fields that the API server would fill in are written out, so that a route which somebody has edited can be told from one that was only stored.
_EVERYTHING = {"path": {"type": "PathPrefix", "value": "/"}}


def _parent(ref: ParentRef) -> dict[str, Any]:
    return {"group": names.GATEWAY_GROUP, "kind": "Gateway", **ref.dump()}


def _backend(version: str, weight: int) -> dict[str, Any]:
    return {"group": "", "kind": "Service", "name": version, "port": SERVICE_PORT, "weight": weight}


def route(owner: Owner, canary: Canary, weights: Mapping[str, int]) -> dict[str, Any]:
    """HTTPRoute of the endpoint's name. `weights` are shares in percent by version; each is reached at its own Service. One write moves traffic."""
    spec: dict[str, Any] = {
        "parentRefs": [_parent(ref) for ref in canary.parent_refs],
        "rules": [{"matches": [_EVERYTHING], "backendRefs": [_backend(version, weight) for version, weight in weights.items()]}],
    }
    if canary.hostnames:
        spec["hostnames"] = list(canary.hostnames)
    labels = names.labels(owner.name, COMPONENT, **{names.LABEL_ENDPOINT: owner.name})
    return {"apiVersion": names.GATEWAY_API, "kind": "HTTPRoute", "metadata": metadata(owner, owner.name, labels), "spec": spec}
