"""Deployments that versions share, where adapters are live: what must hold of them, and how kubelets hear of a new list."""

from random import Random
from typing import TYPE_CHECKING

from finetune_operator.names import ANNOTATION_TOLD, LABEL_ENDPOINT, LABEL_VERSION
from finetune_operator.plan.versions import WITH_PODS

from .adapters import mounted
from .api import Api, Raw, deleting, key_of
from .following import BY_ITSELF, NOTED
from .invariants import fail
from .merging import merges
from .world import World

if TYPE_CHECKING:
    from .kubelet import Kubelets
    from .rollouts import Rollouts
    from .serving import Server

SHARE = 0.4  # of the schedules about endpoints that merge nothing


def is_live(seed: int) -> bool:
    """Whether adapters of a schedule are live. By numbers of its own, as those that merge."""
    return not merges(seed) and Random(f"live {seed}").random() < SHARE


class Hosts:
    """What must hold of Deployments that versions share."""

    def __init__(self, world: World, api: Api, rollouts: "Rollouts", kubelets: "Kubelets") -> None:
        self._world, self._api, self._rollouts, self._kubelets = world, api, rollouts, kubelets
        api.listen("ConfigMap", self._on_config)
        api.listen("Deployment", self._on_deployment)
        api.listen("Pod", self._on_pod)

    def _programs(self, host: str) -> "list[tuple[Raw, Server]]":
        pods = self._api.select("Pod", None, f"{LABEL_VERSION}={host}")
        here = ((pod, self._kubelets.containers.get(pod["metadata"]["uid"])) for pod in pods)
        return [(pod, found.program) for pod, found in here if found and getattr(found.program, "following", None)]  # type: ignore[misc]

    def _on_pod(self, change: str, pod: Raw, old: Raw | None) -> None:
        notes = [((p or {"metadata": {}})["metadata"].get("annotations") or {}).get(ANNOTATION_TOLD) for p in (pod, old)]
        here = self._kubelets.containers.get(pod["metadata"]["uid"])
        following = getattr(here.program, "following", None) if here else None
        if change != "DELETED" and notes[0] != notes[1] and following:
            following.look(NOTED)

    def _on_config(self, change: str, raw: Raw, old: Raw | None) -> None:
        text = raw.get("data", {}).get("config.json", "")
        if change == "DELETED" or '"live"' not in text or '"servedName"' not in text:
            return
        host = raw["metadata"]["name"]
        for _, program in self._programs(host):
            program.following.look(BY_ITSELF)  # type: ignore[union-attr]
        endpoint = self._api.get("ModelEndpoint", (raw["metadata"]["namespace"], raw["metadata"]["labels"][LABEL_ENDPOINT]))
        before = (old or {}).get("data", {}).get("config.json", "")
        if not before or endpoint is None or self._rollouts.selected(endpoint) != host or not self._rollouts.left_alone():
            return
        was, now = mounted(before).models, mounted(text).models
        fresh = {name: sha for name, sha in now.items() if was.get(name) != sha}
        if fresh:
            self._world.hits.add("users get another adapter in the same pods")
            self._rollouts.may_be_public(endpoint, host, fresh)
            self._loaded(host, fresh)
        if now != was:
            self._rollouts.keeps_names(endpoint, host, was, now)

    def _loaded(self, host: str, fresh: dict[str, str]) -> None:
        """Pods that have answered for a while have each of these already."""
        since = self._world.now - self._rollouts.moment()
        for pod, program in self._programs(host):
            if not program.stay.ready or program.since > since or deleting(pod):
                continue
            for name, sha in fresh.items():
                if sha not in program.loaded_ever and not self._rollouts.was_served(sha):
                    fail("users get what all pods have loaded", f"{name} is given to users, and pod {pod['metadata']['name']} has never loaded it")

    def _on_deployment(self, change: str, raw: Raw, _: Raw | None) -> None:
        labels = raw["metadata"].get("labels") or {}
        endpoint = self._api.get("ModelEndpoint", (raw["metadata"]["namespace"], labels.get(LABEL_ENDPOINT, "")))
        if endpoint is None or LABEL_VERSION not in labels or not self._rollouts.acting():
            return
        host, places = raw["metadata"]["name"], {v.get("host"): v["name"] for v in endpoint["status"].get("versions") or () if v["role"] in WITH_PODS}
        if (change == "DELETED" or deleting(raw)) and host in places and host not in self._rollouts.deleted:
            fail("a host stays while a version is in it", f"Deployment {host} is deleted, and {places[host]} is in its pods")
        if change == "ADDED":
            self._world.after(0.0, self._alone, key_of(raw))

    def _alone(self, key: tuple[str, str]) -> None:
        """A moment later, when its ConfigMap is there: no other Deployment serves in the same manner."""
        raw = self._api.get("Deployment", key)
        made = self._rollouts.names.of(key[1])
        if raw is None or '"live"' not in made.manner:
            return
        image = _image(raw)
        for other in self._api.select("Deployment", key[0], f"{LABEL_ENDPOINT}={raw['metadata']['labels'][LABEL_ENDPOINT]}"):
            name = other["metadata"]["name"]
            if name != key[1] and not deleting(other) and (self._rollouts.names.of(name).manner, _image(other)) == (made.manner, image):
                fail("live adapters need no other pods", f"Deployment {key[1]} is made beside {name}, which differs in adapters only")


def _image(deployment: Raw) -> str:
    return str(deployment["spec"]["template"]["spec"]["containers"][0]["image"])
