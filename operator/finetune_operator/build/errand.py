"""Kubernetes Job of a step that an endpoint needs done before a version can have the traffic. Its controller retries it; it needs no GPU."""

from typing import Any

from finetune_operator import names
from finetune_operator.api.meta import Owner
from finetune_runtime.contract.result import Exit

from .meta import metadata

_FINAL = [int(code) for code in (Exit.INVALID_CONFIG, Exit.DATA_INVALID, Exit.MODEL_INVALID)]


def errand_labels(owner: Owner, component: str, step: str) -> dict[str, str]:
    """No version label: a Service selects its pods by that, and this pod answers nobody."""
    return names.labels(owner.name, component, **{names.LABEL_ENDPOINT: owner.name, names.LABEL_STEP: step})


def errand(
    owner: Owner, name: str, labels: dict[str, str], pod: dict[str, Any], *, retries: int, seconds: int, annotations: dict[str, str] | None = None
) -> dict[str, Any]:
    """Job around a pod spec. `retries`: by the Job's controller; `seconds`: the longest that it may take; `annotations`: of its pods."""
    meta: dict[str, Any] = {"labels": labels, **({"annotations": annotations} if annotations else {})}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(owner, name, labels),
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": retries,
            "activeDeadlineSeconds": seconds,
            # A new pod only after the old one is gone: two would write to the same place.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {"action": "FailJob", "onExitCodes": {"containerName": names.CONTAINER, "operator": "In", "values": _FINAL}},
                ]
            },
            "template": {"metadata": meta, "spec": pod},
        },
    }
