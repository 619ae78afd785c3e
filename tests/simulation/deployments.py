"""The Deployment controller: as many pods as asked for, in place of those that are going. ReplicaSets are left out.

A version's template never changes (a new version is a new Deployment), so neither does it here: pods keep what they were made with.
"""

from typing import Any

from .api import Api, Key, Raw, controller_of, deleting, key_of
from .jobs import terminal
from .staying import answers
from .world import World


class Deployments:
    """Makes pods for Deployments, and Deployments' statuses from pods."""

    def __init__(self, world: World, api: Api, slowness: float) -> None:
        """`slowness` is the longest time in seconds that it takes to notice something."""
        self._world, self._api, self._slowness = world, api, slowness
        self._asked: set[Key] = set()
        self._made = 0
        api.listen("Deployment", self._on_deployment)
        api.listen("Pod", self._on_pod)

    def _on_deployment(self, change: str, raw: Raw, _: Raw | None) -> None:
        if change != "DELETED":
            self._ask(key_of(raw))

    def _on_pod(self, _change: str, pod: Raw, _old: Raw | None) -> None:
        owner = controller_of(pod)
        if owner and owner["kind"] == "Deployment":
            self._ask((pod["metadata"]["namespace"], owner["name"]))

    def _ask(self, key: Key) -> None:
        if key not in self._asked:
            self._asked.add(key)
            self._world.after(self._world.delay(0.01, self._slowness), self._sync, key)

    def _sync(self, key: Key) -> None:
        self._asked.discard(key)
        raw = self._api.get("Deployment", key)
        if raw is None or deleting(raw) or key[0] in self._api.terminating:
            return
        wanted = raw["spec"].get("replicas", 1)
        pods = [p for p in self._api.owned(raw["metadata"]["uid"], "Pod") if not deleting(p) and not terminal(p)]
        if len(pods) > wanted:  # those that answer stay, and of those the oldest
            pods.sort(key=lambda p: (not answers(p), p["metadata"]["creationTimestamp"]))
            for pod in pods[wanted:]:
                self._api.delete("Pod", key_of(pod))
            pods = pods[:wanted]
        pods += [self._make_pod(raw) for _ in range(wanted - len(pods))]
        status = {"observedGeneration": raw["metadata"]["generation"], "replicas": len(pods), "readyReplicas": sum(map(answers, pods))}
        self._api.update(raw, status=status)

    def _make_pod(self, raw: Raw) -> Raw:
        self._made += 1
        template, meta = raw["spec"]["template"], raw["metadata"]
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": meta["name"], "uid": meta["uid"], "controller": True, "blockOwnerDeletion": True}
        name = f"{meta['name']}-{self._made:05d}"
        self._world.note("deployment", f"makes pod {name}")
        pod: dict[str, Any] = {"name": name, "namespace": meta["namespace"], "labels": template["metadata"]["labels"], "ownerReferences": [owner]}
        return self._api.create({"apiVersion": "v1", "kind": "Pod", "metadata": pod, "spec": template["spec"], "status": {"phase": "Pending"}})
