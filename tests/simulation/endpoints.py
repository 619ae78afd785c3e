"""What people do to an endpoint: propose, pin, change gate and strategy, and meddle with what the operator made."""

from collections.abc import Callable
from typing import Any

from finetune_operator.api.modelendpoint import ModelEndpointSpec
from finetune_operator.names import LABEL_VERSION
from finetune_runtime.contract.evaluation import Evaluation

from .api import Key, Raw, deleting, key_of
from .storage import digest
from .user import INFERENCE, NAMESPACE, SPEC, Users

ENDPOINT = "support"
# With all defaults, as the API server fills them in.
BASE: Raw = ModelEndpointSpec.model_validate({"model": SPEC["model"], "storage": SPEC["storage"]}).dump()
NAMES = ("rooms", "bills")  # that adapters have beside the endpoint's own
_PROMPTS = [{"name": "greeting", "prompt": "hello", "expect": {"contains": ["hello"]}}]


class EndpointUsers(Users):
    """The people of a namespace with an endpoint."""

    _proposed = 0
    _known: tuple[Raw, ...] = ()  # candidates so far

    def begin(self) -> None:
        if self._world.chance(0.85):
            self._create()

    def _more(self) -> Raw:
        """Most jobs deploy to the endpoint, and some have a gate of their own."""
        inference = {**INFERENCE, **self._shape(), **self._merged(), **({"endpoint": ENDPOINT} if self._world.chance(0.8) else {})}
        if self._beside():
            inference["servedName"] = self._world.random.choice(NAMES)
        gate = {k: v for k, v in self._gate().items() if k != "evalLoss"}
        return {"inference": inference, "retries": {"limit": 1, "backoffSeconds": 5}, **({"evaluation": gate} if self._gated() else {})}

    def _beside(self) -> bool:
        """Whether somebody thinks of a second name; merged weights are one model, and the API server refuses others beside it."""
        return bool(self._weather.names) and not self._weather.merged and self._world.chance(self._weather.names)

    def _gated(self) -> bool:
        return self._world.chance(self._weather.gates)

    def _gate(self) -> Raw:
        """A gate with questions, a bound on the loss, or both."""
        random = self._world.random
        asks, bounds = random.choice(((True, False), (True, True), (False, True)))
        gate: Raw = {"minPassRate": random.choice(("0.3", "0.8", "1"))}
        if asks:
            gate |= {"prompts": _PROMPTS, "notWorseThanCurrent": random.random() < 0.3}
        if bounds:
            gate["evalLoss"] = {"max": random.choice(("1.0", "2.0"))}
        return Evaluation.model_validate(gate).dump()

    def _live(self) -> Raw:
        return {"adapterLoading": "Live"} if self._weather.live else {}

    def _merged(self) -> Raw:
        return {"quantization": "Merged"} if self._weather.merged else {}

    def _strategy(self) -> Raw:
        random = self._world.random
        kind = "Recreate" if random.random() < 0.25 else "BlueGreen"
        times = {"watchSeconds": random.choice((0, 30, 120, 600, 600)), "timeoutSeconds": random.choice((60, 300, 600, 7200))}
        if self._world.chance(self._weather.canary):
            steps: Raw = {"steps": random.choice(([10, 50], [50], [1, 10, 99])), "stepSeconds": random.choice((5, 60, 60, 300))}
            return {"type": "Canary", "canary": {"parentRefs": [{"name": "public"}], "hostnames": [], **steps}, **times}
        return {"type": kind, **times}

    def _shape(self) -> Raw:
        random = self._world.random
        return {"replicas": random.choice((0, 1, 1, 1, 2, 3)), "keepPrevious": random.choice((0, 1, 2)), "strategy": self._strategy()}

    def _candidate(self) -> Raw:
        """An adapter that somebody made elsewhere, or one that was proposed before."""
        random = self._world.random
        if self._known and random.random() < 0.5:
            return random.choice(self._known)
        self._proposed += 1
        name = f"hand-{self._proposed}"
        found: dict[str, Any] = {"job": name, "jobUid": "", "adapter": {"uri": f"s3://models/ft/{name}", "manifestSha256": digest(name)}}
        loss = random.choice((None, "0.5", "1.5", "3.0"))
        found.update({"evalLoss": loss} if loss else {}, **({"evaluation": self._gate()} if self._gated() and random.random() < 0.3 else {}))
        self._known = (*self._known, found)
        return found

    def _create(self) -> None:
        if self._api.get("ModelEndpoint", (NAMESPACE, ENDPOINT)) or NAMESPACE in self._api.terminating:
            return
        spec = {**BASE, **self._shape(), "autoRollback": self._world.chance(0.8), **self._merged(), **self._live()}
        if self._gated():
            spec["gate"] = self._gate()
        if self._world.chance(0.8):
            spec["candidate"] = self._candidate()
        self._world.note("user", f"creates ModelEndpoint {ENDPOINT}")
        meta = {"name": ENDPOINT, "namespace": NAMESPACE}
        self._api.create({"apiVersion": "finetune.dev/v1alpha1", "kind": "ModelEndpoint", "metadata": meta, "spec": spec})

    def act(self) -> None:
        """Something that a person may do at any time, mostly to an endpoint."""
        endpoint = self._job("ModelEndpoint")
        if endpoint is None or self._world.chance(0.1):
            super().act()
            return
        weights: list[tuple[int, Callable[[Raw], None]]] = [
            (10, self._propose), (3, self._pin), (4, self._unpin), (3, self._regate), (2, self._restrategy), (2, self._scale), (1, self._keep), (1, self._content),
            (1, self._flip_rollback), (1, self._kill_pod), (1, self._damage), (1, self._redirect), (1, self._reroute), (1, self._resize), (1, self._take_service), (1, self._drop), *([(2, self._withdraw)] if self._entries(endpoint) else []),
        ]  # fmt: skip
        chosen = self._world.random.choices([w[1] for w in weights], [w[0] for w in weights])[0]
        chosen(endpoint)

    def _set(self, raw: Raw, field: str, value: Any) -> None:
        """Set a field of the spec; None removes it."""
        found = self._api.get("ModelEndpoint", key_of(raw))
        if found and not deleting(found):
            told = value.get("job", "...") if isinstance(value, dict) else value
            self._world.note("user", f"sets {field} of ModelEndpoint {found['metadata']['name']}: {told}")
            self._world.hits.add(f"user {'removes' if value is None else 'sets'} {field}")
            rest = {k: v for k, v in found["spec"].items() if k != field}
            self._api.update(found, replace={**rest, **({} if value is None else {field: value})})

    def _propose(self, raw: Raw) -> None:
        if not self._beside():
            self._set(raw, "candidate", self._candidate())
            return
        name, standing = self._world.random.choice(NAMES), self._entries(raw)
        if name != raw["spec"].get("servedName"):  # the API server refuses a second one of that name
            self._set(raw, "adapters", list({**standing, name: {"name": name, **self._candidate()}}.values()))

    def _entries(self, raw: Raw) -> dict[str, Raw]:
        """Adapters beside the endpoint's own, by name."""
        return {entry["name"]: entry for entry in raw["spec"].get("adapters") or ()}

    def _withdraw(self, raw: Raw) -> None:
        """A name is no longer to be served."""
        if standing := self._entries(raw):
            gone = self._world.random.choice(list(standing))
            self._set(raw, "adapters", [entry for name, entry in standing.items() if name != gone])

    def _pin(self, raw: Raw) -> None:
        """To a version that there is or was, to a job, or to nonsense."""
        known = [name for v in raw["status"].get("versions") or () for name in (v["name"], v.get("job"), v["name"]) if name]
        candidate = (raw["spec"].get("candidate") or {}).get("job")
        self._set(raw, "version", self._world.random.choice([*known, *([candidate] if candidate else []), "nonsense"]))
        if self._world.chance(0.6):
            self._world.after(self._world.delay(5, 900), self._unpin, raw)

    def _unpin(self, raw: Raw) -> None:
        self._set(raw, "version", None)

    def _regate(self, raw: Raw) -> None:
        self._set(raw, "gate", self._gate() if self._world.chance(0.75) else None)
        if self._world.chance(0.3):  # and thinks better of it
            self._world.after(self._world.delay(5, 100), self._set, raw, "gate", self._gate())

    def _restrategy(self, raw: Raw) -> None:
        self._set(raw, "strategy", self._strategy())

    def _scale(self, raw: Raw) -> None:
        self._set(raw, "replicas", self._world.random.choice((0, 1, 2, 3)))

    def _keep(self, raw: Raw) -> None:
        self._set(raw, "keepPrevious", self._world.random.choice((0, 1, 2, 3)))

    def _content(self, raw: Raw) -> None:
        """A change that makes a new version of every adapter."""
        if self._weather.merged and self._world.chance(0.5):
            self._set(raw, "quantization", self._world.random.choice(("AsTrained", "Merged", "Merged")))
        elif self._weather.live and self._world.chance(0.3):
            self._set(raw, "adapterLoading", self._world.random.choice(("AtStart", "Live")))
        else:
            self._set(raw, "maxLength", self._world.random.choice((512, 1024, 2048)))

    def _flip_rollback(self, raw: Raw) -> None:
        self._set(raw, "autoRollback", not raw["spec"].get("autoRollback", True))

    def _meddle(self, what: str, raw: Raw) -> None:
        super()._meddle(what, raw)
        if raw["kind"] in ("Service", "Deployment", "ConfigMap", "Job", "HTTPRoute"):
            self.rollouts.meddled = self._world.now

    def _kill_pod(self, _: Raw) -> None:
        self._delete_child("Pod")

    def _damage(self, _: Raw) -> None:
        self._delete_child(self._world.random.choice(("Deployment", "Service", "ConfigMap", "Job", "PodDisruptionBudget", "HTTPRoute")))

    def _redirect(self, raw: Raw) -> None:
        """Somebody edits the selector of the Service."""
        service = self._api.get("Service", key_of(raw))
        names = [*(d["metadata"]["name"] for d in self._api.all("Deployment")), "nobody"]
        if service and service["metadata"].get("ownerReferences"):
            self._meddle("redirects", service)
            self._api.update(service, spec={"selector": {**service["spec"]["selector"], LABEL_VERSION: self._world.random.choice(names)}})

    def _reroute(self, raw: Raw) -> None:
        """Somebody edits the weights of the route."""
        route = self._api.get("HTTPRoute", key_of(raw))
        if route and route["metadata"].get("ownerReferences"):
            self._meddle("reroutes", route)
            rule = route["spec"]["rules"][0]
            turned = [{**b, "weight": 100 - b["weight"]} for b in rule["backendRefs"]]
            self._api.update(route, spec={"rules": [{**rule, "backendRefs": turned}]})

    def _resize(self, _: Raw) -> None:
        """Somebody scales a Deployment by hand."""
        if raw := self._child("Deployment"):
            self._meddle("scales", raw)
            self._api.update(raw, spec={"replicas": self._world.random.choice((0, 1, 3))})

    def _take_service(self, raw: Raw) -> None:
        """Somebody else's Service has the endpoint's name, and is removed later."""
        key: Key = key_of(raw)
        if key[0] in self._api.terminating:
            return
        if found := self._api.get("Service", key):
            if not found["metadata"].get("ownerReferences"):
                return
            self._meddle("replaces", found)
            self._api.remove(found)
        self._world.note("user", f"makes a foreign Service {key[1]}")
        self._world.hits.add("user makes a foreign Service")
        self.rollouts.meddled = self._world.now
        made = self._api.create({"kind": "Service", "metadata": {"name": key[1], "namespace": key[0]}, "spec": {"selector": {"app": "else"}}})
        if self._world.chance(0.8):
            self._world.after(self._world.delay(10, 1200), self._api.remove, made)

    def _drop(self, raw: Raw) -> None:
        self._world.note("user", f"deletes ModelEndpoint {raw['metadata']['name']}")
        self._world.hits.add("user deletes ModelEndpoint")
        self._api.delete("ModelEndpoint", key_of(raw), foreground=self._world.chance(0.3))
        if self._world.chance(0.8):
            self._world.after(self._world.delay(0.1, 60), self._create)
