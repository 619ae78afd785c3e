"""The Node objects of the cluster, as far as somebody reads them."""

from typing import Any

from finetune_operator.names import memory_label

from .api import Api

GPU = "nvidia.com/gpu"
LABEL = memory_label(GPU)


def make_node(api: Api, name: str, gpus: int, mebibytes: int) -> None:
    """A node with its GPUs; 0 mebibytes: nothing says how large they are."""
    labels = {LABEL: str(mebibytes)} if mebibytes else {}
    body: dict[str, Any] = {"kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {}}
    api.create({**body, "status": {"allocatable": {GPU: str(gpus)}}})


def label(api: Api, mebibytes: int) -> None:
    """Larger GPUs are built in."""
    for raw in api.all("Node"):
        api.update(raw, meta={"labels": {LABEL: str(mebibytes)}})


def memory(api: Api, name: str) -> int:
    """What a node says of its GPU, in MiB; 0: nothing."""
    raw = api.get("Node", ("", name))
    return int((raw["metadata"].get("labels") or {}).get(LABEL, 0)) if raw else 0


def least(pod_spec: dict[str, Any]) -> int:
    """Memory in MiB that a pod's affinity demands of a node that says anything."""
    affinity = (pod_spec.get("affinity") or {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    wanted = [e for term in affinity.get("nodeSelectorTerms", ()) for e in term.get("matchExpressions", ()) if e["operator"] == "Gt"]
    return max((int(e["values"][0]) + 1 for e in wanted), default=0)
