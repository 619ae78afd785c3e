"""What people do: to their job, and to what the operator made for it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from finetune_operator.api.finetunejob import FineTuneJob, Inference
from finetune_operator.names import ANNOTATION_IGNORE_FIT, config_map

from .api import Api, Key, Raw, deleting, key_of
from .jobs import finished
from .world import World

if TYPE_CHECKING:
    from .faults import Weather
    from .invariants import Invariants
    from .rollouts import Rollouts

NAMESPACE = "team"
_BASE: Raw = {
    "model": {"source": "s3://models/base", "type": "qwen3", "template": "qwen3"},
    "dataset": {"train": [{"source": "s3://data/train.jsonl"}]},
    "storage": {"s3": {"uri": "s3://models/ft", "endpoint": "http://s3:7070", "secretRef": {"name": "s3"}}},
}
# With all defaults, as the API server fills them in.
SPEC: Raw = FineTuneJob.model_validate({"spec": _BASE}).spec.dump()


INFERENCE: Raw = Inference().dump()


class Users:
    """The people of one namespace."""

    def __init__(self, world: World, api: Api, conditions: "Weather") -> None:
        self._world, self._api, self._weather = world, api, conditions
        self.invariants: Invariants
        self.rollouts: Rollouts

    def begin(self) -> None:
        """What is there before anything happens."""

    def submit(self, name: str) -> None:
        """Create a job."""
        if self._api.get("FineTuneJob", (NAMESPACE, name)) or NAMESPACE in self._api.terminating:
            return
        random = self._world.random
        spec = {**SPEC, "retries": {"limit": random.choice((0, 1, 3)), "backoffSeconds": random.choice((5, 30))}}
        extra: list[tuple[float, Raw]] = [
            (0.1, {"suspend": True}),
            (0.3, {"queue": {"name": "team-a", "priorityClass": ""}}),
            (0.25, {"activeDeadlineSeconds": random.choice((60, 300, 600))}),
            (0.25, {"ttlSecondsAfterFinished": random.choice((0, 60, 300))}),
            (0.25, {"schedulingTimeoutSeconds": random.choice((60, 300))}),
            (self._weather.inference, {"inference": INFERENCE if random.random() < 0.5 else {**INFERENCE, "endpoint": "support"}}),
        ]
        for share, fields in extra:
            if random.random() < share:
                spec.update(fields)
        spec.update(self._more())
        self._world.note("user", f"creates FineTuneJob {name}")
        self._api.create({"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec})

    def _more(self) -> Raw:
        """Further fields of a job's spec."""
        return {}

    def act(self) -> None:
        """Something that a person may do at any time."""
        weights: list[tuple[int, Callable[[], None]]] = [
            (5, self._flip_suspend), (2, self._edit_retries), (1, self._edit_deadline), (1, self._edit_ttl), (1, self._annotate), (2, lambda: self._delete_child("Job")), (2, lambda: self._delete_child("Pod")),
            (2, lambda: self._delete_child("ConfigMap")), (1, lambda: self._delete_child("Service")), (1, lambda: self._delete_child("Deployment")),
            (1, lambda: self._delete_child("Workload")), (1, self._deactivate), (1, self._ignore_fit), (2, self._flip_job), (1, self._force_delete), (1, self._edit_config), (2, self._delete),
            (1, self._take_name), (1, self._delete_namespace),
        ]  # fmt: skip
        chosen = self._world.random.choices([w[1] for w in weights], [w[0] for w in weights])[0]
        chosen()

    def _job(self, kind: str = "FineTuneJob") -> Raw | None:
        found = [raw for raw in self._api.all(kind) if not deleting(raw)]
        return self._world.random.choice(found) if found else None

    def _edit(self, what: str, raw: Raw, spec: Raw) -> None:
        self._world.note("user", f"{what} of {raw['kind']} {raw['metadata']['name']}")
        self._world.hits.add(f"user {what}")
        self._api.update(raw, spec=spec)

    def _flip_suspend(self) -> None:
        if raw := self._job():
            wanted = not raw["spec"].get("suspend", False)
            self._edit(f"suspend={wanted}", raw, {"suspend": wanted})
            if wanted and self._world.chance(0.8):
                self._world.after(self._world.delay(1, 900), self._resume, raw)

    def _resume(self, raw: Raw) -> None:
        found = self._api.get("FineTuneJob", key_of(raw))
        if found and found["metadata"]["uid"] == raw["metadata"]["uid"] and found["spec"].get("suspend"):
            self._edit("suspend=False", found, {"suspend": False})

    def _edit_retries(self) -> None:
        if raw := self._job():
            limit = self._world.random.choice((0, 1, 5))
            self._edit(f"retries.limit={limit}", raw, {"retries": {**raw["spec"]["retries"], "limit": limit}})

    def _deactivate(self) -> None:
        """An administrator takes a Workload out of its queue, for a while."""
        if raw := self._child("Workload"):
            self._meddle("deactivates", raw)
            self._api.update(raw, spec={"active": False})
            self._world.after(self._world.delay(10, 600), self._activate, raw)

    def _activate(self, raw: Raw) -> None:
        self._world.note("user", f"activates {raw['kind']} {raw['metadata']['name']}")
        self._api.update(raw, spec={"active": True})

    def _ignore_fit(self) -> None:
        if raw := self._job():
            self._world.hits.add("user ignores the fit")
            self._world.note("user", f"annotates {raw['metadata']['name']}: the fit does not matter")
            self._api.update(raw, meta={"annotations": {ANNOTATION_IGNORE_FIT: "true"}})

    def _edit_deadline(self) -> None:
        if raw := self._job():
            seconds = self._world.random.choice((30, 300, 600))
            self._edit(f"activeDeadlineSeconds={seconds}", raw, {"activeDeadlineSeconds": seconds})

    def _edit_ttl(self) -> None:
        if raw := self._job():
            seconds = self._world.random.choice((0, 300))
            self._edit(f"ttlSecondsAfterFinished={seconds}", raw, {"ttlSecondsAfterFinished": seconds})

    def _annotate(self) -> None:
        if raw := self._job():
            self._world.hits.add("user annotates")
            self._api.update(raw, meta={"annotations": {"note": f"{self._world.now:.0f}"}})

    def _child(self, kind: str) -> Raw | None:
        found = [raw for raw in self._api.all(kind) if raw["metadata"].get("ownerReferences") and not deleting(raw)]
        return self._world.random.choice(found) if found else None

    def _meddle(self, what: str, raw: Raw) -> None:
        self.invariants.meddled = self._world.now
        self._world.note("user", f"{what} {raw['kind']} {raw['metadata']['name']}")
        self._world.hits.add(f"user {what} {raw['kind']}")
        if what == "deletes" and raw["kind"] in ("Deployment", "Job"):
            self.rollouts.deleted.add(raw["metadata"]["name"])

    def _delete_child(self, kind: str) -> None:
        if raw := self._child(kind):
            self._meddle("deletes", raw)
            self._api.delete(kind, key_of(raw), foreground=kind == "Job" and self._world.chance(0.3))

    def _force_delete(self) -> None:
        if raw := self._child("Pod"):
            self._meddle("force-deletes", raw)
            self._api.delete("Pod", key_of(raw), grace=0)

    def _flip_job(self) -> None:
        raw = self._child("Job")
        if raw and not finished(raw):
            self._meddle("flips suspend of", raw)
            self._api.update(raw, spec={"suspend": not raw["spec"].get("suspend", False)})

    def _edit_config(self) -> None:
        if raw := self._child("ConfigMap"):
            self._meddle("edits", raw)
            self._api.update(raw, data={**raw["data"], "status-ca.crt": "edited"})

    def _delete(self) -> None:
        if raw := self._job():
            self._world.note("user", f"deletes FineTuneJob {raw['metadata']['name']}")
            self._world.hits.add("user deletes FineTuneJob")
            self._api.delete("FineTuneJob", key_of(raw), foreground=self._world.chance(0.3))
            if self._world.chance(0.8):
                self._world.after(self._world.delay(0.1, 60), self.submit, raw["metadata"]["name"])

    def _take_name(self) -> None:
        """Somebody else's object has a name that the operator would give to a child, and is removed later."""
        if raw := self._job():
            name = raw["metadata"]["name"]
            kind, child = self._world.random.choice(
                (("ConfigMap", config_map(name, raw["metadata"]["uid"])), ("Job", f"{name}-train-1"), ("Job", f"{name}-train-2"))
            )
            key: Key = (NAMESPACE, child)
            found = self._api.get(kind, key)
            if found and kind == "ConfigMap":
                self._meddle("replaces", found)
                self._api.remove(found)
            if NAMESPACE in self._api.terminating or self._api.get(kind, key):
                return
            self._world.note("user", f"makes a foreign {kind} {child}")
            self._world.hits.add(f"user makes a foreign {kind}")
            body: dict[str, Any] = {"kind": kind, "metadata": {"name": child, "namespace": NAMESPACE}}
            rest: dict[str, Any] = (
                {"data": {}} if kind == "ConfigMap" else {"spec": {"suspend": True, "template": {"metadata": {"labels": {}}, "spec": {"containers": [{}]}}}}
            )
            made = self._api.create({**body, **rest})
            if self._world.chance(0.8):
                self._world.after(self._world.delay(10, 1200), self._api.remove, made)

    def _delete_namespace(self) -> None:
        self._world.note("user", f"deletes namespace {NAMESPACE}")
        self._world.hits.add("user deletes namespace")
        self._api.terminating.add(NAMESPACE)
        for kind in self._api.kinds():
            for raw in self._api.all(kind):
                self._world.after(self._world.delay(0.1, 30), self._purge, kind, key_of(raw))
        self._world.after(60, self._purge_rest)

    def _purge(self, kind: str, key: Key) -> None:
        self._api.delete(kind, key)

    def _purge_rest(self) -> None:
        left = [raw for kind in self._api.kinds() for raw in self._api.all(kind) if raw["metadata"].get("namespace") == NAMESPACE]
        for raw in left:
            self._api.delete(raw["kind"], key_of(raw))
        if left:
            self._world.after(30, self._purge_rest)
