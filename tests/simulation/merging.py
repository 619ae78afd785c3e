"""Merging adapters into their base: the pod that does it, what it has committed, and what must hold of both."""

from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING

from finetune_operator import names
from finetune_runtime.contract.config import AdapterRef, MergeConfig, ServeConfig
from finetune_runtime.contract.result import Exit, Reason, StepResult

from .api import Api, Raw
from .invariants import fail
from .kubelet import EXIT
from .storage import digest

if TYPE_CHECKING:
    from .serving import Servers

SHARE = 0.3  # of the schedules about endpoints


def merges(seed: int) -> bool:
    """Whether versions of a schedule are merged. By numbers of its own, so that all other schedules are what they would be without."""
    return Random(f"merged {seed}").random() < SHARE


@lru_cache(maxsize=256)
def merged_of(adapter: str) -> AdapterRef:
    """What comes of an adapter, by its digest: always the same."""
    return AdapterRef(uri=f"s3://models/ft/merged/{adapter[:16]}", manifest_sha256=digest(f"merged {adapter}"))


class Merges:
    """What storage has of merged models."""

    def __init__(self) -> None:
        self.committed: set[str] = set()  # digests of adapters

    def served(self, text: str) -> None:
        """A serving pod starts with this configuration. Raises ViolationError."""
        config = ServeConfig.model_validate_json(text)
        if config.quantization != "Merged":
            return
        adapter = config.adapter.manifest_sha256
        if config.merged != merged_of(adapter) or adapter not in self.committed:
            fail("a merged version serves what was merged of its adapter", f"a pod serves {config.merged} of adapter {adapter[:8]}")


def check_job(job: Raw, endpoint: Raw) -> None:
    """A Job was made that merges. Raises ViolationError where that is on record already."""
    for record in endpoint["status"].get("versions") or ():
        name = names.merge_job(endpoint["metadata"]["name"], record["name"])
        if name == job["metadata"]["name"] and record.get("merged") and record["role"] in ("Candidate", "Current", "Previous"):
            fail("a merged adapter counts", f"Job {name} merges {record['name']} again")


class Merging:
    """The pod of a merge. It can be killed at any moment, also when all is committed and nobody was told."""

    uid, trains, container = "", False, names.CONTAINER

    def __init__(self, servers: "Servers", api: Api, pod: Raw, leave: EXIT) -> None:
        self.servers, self.api, self._leave, self.ended = servers, api, leave, False
        self.config = MergeConfig.model_validate_json(pod["metadata"]["annotations"][names.ANNOTATION_CONFIG])
        self.adapter = self.config.adapter.manifest_sha256
        world = servers.world
        again = self.adapter in servers.merges.committed
        servers.world.hits.add("merge: found" if again else "merge: made")
        world.after(world.delay(1, 10) if again else world.delay(5, 300), self._committed)

    def _committed(self) -> None:
        if self.ended:
            return
        world, nature = self.servers.world, self.servers.adapters.of(self.adapter)
        if nature.kind == "unreadable":
            self._end(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG)
        elif world.chance(self.servers.weather.pod_failure):
            self._end(world.random.choice((1, 137, Exit.STORAGE_UNAVAILABLE)), None)
        else:
            self.servers.merges.committed.add(self.adapter)
            world.after(world.delay(0.1, 3), lambda: None if self.ended else self._end(0, Reason.COMPLETED))

    def _end(self, code: int, reason: Reason | None) -> None:
        self.servers.world.hits.add(f"merge: {reason or 'crash'}")
        told = StepResult(step="merge", reason=reason, message=f"merge: {reason}", merged=None if code else merged_of(self.adapter)) if reason else None
        self._leave(code, "Error" if code else "Completed", told.encode() if told else "Traceback")

    def terminate(self) -> None:
        """SIGTERM: what is uploaded stays."""
        self.servers.world.after(0.5, lambda: None if self.ended else self._leave(143, "Error", ""))

    def stop(self) -> None:
        """Nothing of it happens any more."""
        self.ended = True
