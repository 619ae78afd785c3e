"""Adapters of an endpoint by name: as a spec wants them, as the record of a version tells, and as pods serve them."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from .api import Api, Raw
from .world import ViolationError, World

if TYPE_CHECKING:
    from collections.abc import Iterable


def sha(found: Raw | None) -> str:
    """Digest of a candidate's, a record's or an entry's adapter."""
    return str(((found or {}).get("adapter") or {}).get("manifestSha256", ""))


def wanted(spec: Raw) -> dict[str, Raw]:
    """What a spec proposes, by name; the endpoint's own is empty."""
    own = {"": spec["candidate"]} if spec.get("candidate") else {}
    return {**own, **{entry["name"]: entry for entry in spec.get("adapters") or ()}}


def recorded(version: Raw) -> dict[str, Raw]:
    """What a version serves by its record: anything with an adapter, by name; the one that it was made for first."""
    return {version.get("servedName", ""): version, **{other.get("name", ""): other for other in version.get("others") or ()}}


def digests(found: dict[str, Raw]) -> dict[str, str]:
    """Digests by name."""
    return {name: sha(entry) for name, entry in found.items()}


@dataclass(frozen=True, slots=True)
class Mounted:
    """What the configuration of a serving pod says."""

    manner: str  # all but the adapters
    models: dict[str, str]  # digests of adapters by the model's name in the API


@lru_cache(maxsize=256)
def mounted(text: str) -> Mounted:
    """The configuration of a serving pod."""
    found = json.loads(text)
    models = {str(found["servedName"]): sha(found), **{str(other["name"]): sha(other) for other in found.get("others") or ()}}
    manner = {k: v for k, v in found.items() if k not in ("servedName", "adapter", "others")}
    if "live" in manner:
        manner["live"] = {k: v for k, v in manner["live"].items() if k != "trial"}
    return Mounted(json.dumps(manner, sort_keys=True), models)


@lru_cache(maxsize=256)
def told_of(text: str) -> dict[str, str]:
    """Digests of all adapters that a configuration wants, by name: what users ask first, then what is tried."""
    trial = json.loads(text).get("live", {}).get("trial") or ()
    return {**mounted(text).models, **{str(named["name"]): sha(named) for named in trial}}


class Names:
    """What versions serve, also those that are gone, and that no name is lost on the way from one to the next."""

    def __init__(self, world: World, api: Api) -> None:
        self._world = world
        self._made: dict[str, Mounted] = {}
        self._told: dict[str, dict[str, str]] = {}
        api.listen("ConfigMap", self._on_config)

    def _on_config(self, change: str, raw: Raw, _: Raw | None) -> None:
        text = raw.get("data", {}).get("config.json", "")
        if change != "DELETED" and '"servedName"' in text:
            made = self._made[raw["metadata"]["name"]] = mounted(text)
            self._told.setdefault(raw["metadata"]["name"], {}).update(told_of(text))
            self._world.hits.add(f"version of {min(3, len(made.models))} adapters")

    def wanted(self, host: str) -> dict[str, str]:
        """Digests of all that the pods of a host were ever told to have, by name."""
        return self._told.get(host, {})

    def of(self, version: str) -> Mounted:
        """What a version serves; nothing, where nobody has ever seen its configuration."""
        return self._made.get(version, Mounted("", {}))

    def kept(self, endpoint: Raw, specs: "Iterable[Raw]", before: str, to: str) -> None:
        """The traffic moves by the operator's will: no name is gone that a user wants. `specs`: all that it may go by."""
        self.none_lost(endpoint, specs, f"traffic moves from {before} to {to}", self.of(before).models, self.of(to).models)

    @staticmethod
    def none_lost(endpoint: Raw, specs: "Iterable[Raw]", what: str, before: dict[str, str], after: dict[str, str]) -> None:
        """The same of what is served before and after."""
        known = list(specs)
        if any(spec.get("version") for spec in known):
            return  # a pin is to all that a version serves
        for name in before.keys() - after.keys():
            own = [(spec.get("servedName") or endpoint["metadata"]["name"]) == name for spec in known]
            if all(("" if is_own else name) in wanted(spec) for spec, is_own in zip(known, own, strict=True)):
                raise ViolationError("an adapter is served until a user takes it away", f"{what}, and {name} is not served any more")
