"""Quiescence: does what a job says it waits for really miss?"""

from finetune_operator.names import config_map

from .adapters import wanted
from .api import Api, Raw, controller_of
from .jobs import has
from .kubelet import Kubelets
from .kueue import Kueue


def _deploys(raw: Raw, api: Api) -> bool:
    """Whether a job that waits for its endpoint waits for one that has its candidate and is held up (see endpoint_rest), or pinned by somebody."""
    told = raw["status"].get("endpoint") or {}
    endpoint = api.get("ModelEndpoint", (raw["metadata"]["namespace"], told.get("name", "")))
    if endpoint is None:
        return False
    progress = next((c for c in endpoint["status"].get("conditions") or () if c["type"] == "Progressing"), {"status": "False", "reason": ""})
    if progress["reason"] == "NameConflict":
        return True  # nothing of the endpoint changes, so neither does what is recorded of its versions
    if raw["metadata"]["uid"] not in {entry.get("jobUid") for entry in wanted(endpoint["spec"]).values()}:
        return False
    return "version" in endpoint["spec"] if raw["status"].get("reason") == "Pinned" else bool(progress["status"] == "True")


def waits_for(raw: Raw, api: Api, kubelets: Kubelets, kueue: Kueue) -> bool:
    """Whether the reason of a job's status names something that is missing in the model."""
    missing, spec = kubelets.needs.missing, raw["spec"]
    if raw["status"].get("phase") == "Deploying" and raw["status"].get("reason") != "Suspended":
        return _deploys(raw, api)
    match raw["status"].get("reason"):
        case "Suspended":
            return bool(spec.get("suspend"))
        case "SecretNotFound":
            return "secret" in missing
        case "VolumeNotFound":
            return "claim" in missing
        case "Unschedulable":
            return "gpu" in missing or "claim" in missing or not any(n.up and kubelets.free(n) for n in kubelets.nodes)
        case "ImagePullFailed":
            return "image" in missing
        case "Pending" if raw["status"].get("phase") == "Queued":
            others = (load for load in api.all("Workload") if has(load, "QuotaReserved") and not has(load, "Finished"))
            return kueue.outsider or any(not (controller_of(load) or {})["name"].startswith(raw["metadata"]["name"]) for load in others)
        case "GPUTooSmall":
            return 0 < kubelets.mebibytes < 10_000
        case "NameConflict":
            name, namespace = raw["metadata"]["name"], raw["metadata"]["namespace"]
            children = [
                ("ConfigMap", config_map(name, raw["metadata"]["uid"])),
                *(("Job", f"{name}-{step}-{n}") for step in ("prep", "train") for n in range(1, 30)),
            ]
            found = [c for kind, child in children if (c := api.get(kind, (namespace, child)))]
            return any(not any(o["uid"] == raw["metadata"]["uid"] for o in c["metadata"].get("ownerReferences") or ()) for c in found)
        case _:
            return False
