"""Which version is wanted: the one that is named, else the next one on the way to all that is proposed."""

from collections.abc import Collection
from dataclasses import dataclass

from finetune_operator import names
from finetune_operator.api.modelendpoint import Candidate, ModelEndpointSpec, ServedAdapter, VersionStatus
from finetune_operator.settings import Settings
from finetune_runtime.contract.evaluation import Evaluation

from .adapters import Served, as_served, proposals, refs, served
from .versions import Question, Target, Versions, gates, host_of, version_of


def target(endpoint: str, spec: ModelEndpointSpec, versions: Versions, alive: Collection[str], settings: Settings) -> Target | None:
    """The version that spec.version names, else the next one that the proposals make; None when there is none. `alive`: versions with a Deployment.

    A version that has had the traffic gets it back without passing the gate again: whoever names it has decided. One that never had it can
    only be named while it is proposed, or its job's gate would be forgotten.
    """
    offers = _Offers(endpoint, spec, versions, settings).all()
    if spec.version is None:
        return next(iter(offers), None)
    known = versions.named(spec.version)
    for offer in offers:
        if spec.version == offer.name or (spec.version == offer.candidate.job and (known is None or _same(known, offer))):
            return offer
    if known is None or not known.trusted:
        return None
    # One with pods is taken as it is, also when it was made by an older spec; one without is made anew, by today's.
    whole = served(known)
    there = known.name in alive
    name = known.name if there else version_of(endpoint, spec, refs(whole), settings)
    host = known.host if there else host_of(endpoint, spec, settings)
    about = {field: getattr(known, field) for field in ("job", "job_uid", "adapter", "eval_loss", "model_bytes")}
    asked = _standing(spec, known)
    given_up = _rejected(versions.find(name), asked, known.eval_loss)
    return Target(name, Candidate(**about), asked, known.served_name or "", whole, given_up=given_up, host=host)


def wish(spec: ModelEndpointSpec, found: tuple[Evaluation, ...]) -> str:
    """What is asked for beside adapters and serving: digest of the gates, and of the name where somebody names a version."""
    return f"{names.digest(''.join(g.model_dump_json() for g in found))}.{names.digest(spec.version) if spec.version else ''}"


def _standing(spec: ModelEndpointSpec, version: VersionStatus) -> str:
    """The wish that a version goes by which has had the traffic. Its gates do not count any more, but stand for the adapter as it is proposed."""
    proposed = proposals(spec).get(version.served_name or "")
    return wish(spec, gates(spec, proposed if proposed and proposed.adapter == version.adapter else None))


def forget_names(spec: ModelEndpointSpec, versions: Versions) -> None:
    """Nobody names a version any more: whoever does so next asks for it anew, also for one that was given up while it was named."""
    for record in versions.having("Rejected") if spec.version is None else ():
        gates_then, _, named_then = (record.asked or "").partition(".")
        if named_then:
            versions.put(record.model_copy(update={"asked": f"{gates_then}."}))


def brought(spec: ModelEndpointSpec, current: VersionStatus | None, wanted: Target | None) -> str:
    """Digest of the wish that gave the version with the traffic its place, as far as it stands today."""
    if current is None or (wanted and wanted.name == current.name):
        return wanted.asked if wanted else ""
    return _standing(spec, current)


def _same(known: VersionStatus, offer: Target) -> bool:
    """Whether a recorded version is what this offer makes, so that a job's name may mean either."""
    if known.trusted:
        return refs(served(known)) == refs(offer.all)
    return (known.served_name or "", known.adapter) == (offer.served, offer.candidate.adapter)


def _rejected(record: VersionStatus | None, asked: str, eval_loss: str | None) -> VersionStatus | None:
    same = record is not None and (record.role, record.eval_loss) == ("Rejected", eval_loss) and _as_asked(record, asked)
    return record if same else None


def _as_asked(record: VersionStatus, asked: str) -> bool:
    """Whether a version was given up under this wish: with the same gates, and nobody has named it since. That it is named no longer is no news."""
    (gates_then, _, named_then), (gates_now, _, named_now) = (record.asked or "").partition("."), asked.partition(".")
    return gates_then == gates_now and named_now in ("", named_then)


@dataclass(frozen=True, slots=True)
class _Offers:
    """Versions that may come next: what is served now with one change each."""

    endpoint: str
    spec: ModelEndpointSpec
    versions: Versions
    settings: Settings

    def all(self) -> list[Target]:
        """Best first: what is on its way already goes on, what was given up comes last."""
        proposed, current = proposals(self.spec), self.versions.current
        now = served(current) if current else {}
        base = {name: found for name, found in now.items() if name in proposed}
        pending = [name for name, found in proposed.items() if name not in base or base[name].adapter != found.adapter]
        new = current is None or self._version(now) != current.name  # today's spec serves them otherwise
        stay = base.keys() - set(pending)
        offers = [self._change(name, base, now, new=new) for name in pending]
        if current and base and (not pending or len(base) < len(now) or (new and stay)):
            # A new spec comes before new adapters: whether it serves those that stay is no news of what is proposed.
            offers.insert(0 if new and stay else len(offers), self._rest(base, current, new=new))
        return sorted(offers, key=lambda offer: (offer.given_up is not None, not self._under_way(offer)))

    def _change(self, name: str, base: Served, now: Served, *, new: bool) -> Target:
        """What is served, with another adapter under one name."""
        proposed = proposals(self.spec)[name]
        wanted = {name: as_served(name, proposed), **{other: found for other, found in base.items() if other != name}}
        asked = wish(self.spec, gates(self.spec, proposed))
        changed = tuple(n for n, found in wanted.items() if new or n not in now or now[n].adapter != found.adapter)
        version = self._version(wanted)
        given_up = self._given_up(version, name, proposed, asked)
        return Target(version, proposed, asked, name, wanted, self._questions(changed, wanted), given_up, self._host)

    def _rest(self, base: Served, current: VersionStatus, *, new: bool) -> Target:
        """What is served, by today's spec and without what is no longer proposed."""
        first = current.served_name or ""
        wanted = {name: base[name] for name in sorted(base, key=lambda name: name != first)}
        name, main = next(iter(wanted.items()))
        questions, version = self._questions(tuple(wanted), wanted), self._version(wanted)
        asked = wish(self.spec, questions[0].gates)
        about = {field: getattr(main, field) for field in ("job", "job_uid", "adapter", "eval_loss")}
        candidate = self._proposal(name, main) or Candidate(**about, model_bytes=current.model_bytes)
        given_up = _rejected(self.versions.find(version), asked, candidate.eval_loss)
        return Target(version, candidate, asked, name, wanted, questions if new else (), given_up, self._host)

    @property
    def _host(self) -> str | None:
        return host_of(self.endpoint, self.spec, self.settings)

    def _version(self, adapters: Served) -> str:
        return version_of(self.endpoint, self.spec, refs(adapters), self.settings)

    def _proposal(self, name: str, found: ServedAdapter) -> Candidate | None:
        """The proposal that an adapter comes from, while it stands."""
        proposed = proposals(self.spec).get(name)
        return proposed if proposed and proposed.adapter == found.adapter else None

    def _questions(self, about: tuple[str, ...], adapters: Served) -> tuple[Question, ...]:
        found = ((name, adapters[name]) for name in about)
        return tuple(Question(name, a.job, a.eval_loss, gates(self.spec, self._proposal(name, a))) for name, a in found)

    def _given_up(self, version: str, name: str, proposed: Candidate, asked: str) -> VersionStatus | None:
        """The record of this adapter's failure under this name and spec, whatever was served beside it then.

        What failed may have been that: in a version of other adapters it says nothing of this one.
        """
        for record in self.versions.having("Rejected"):
            same = (record.served_name or "", record.adapter, record.eval_loss) == (name, proposed.adapter, proposed.eval_loss)
            same = same and _as_asked(record, asked)
            other = record.name != version and any(o.evaluation and not o.evaluation.passed for o in record.others or ())
            if same and not other and self._version(served(record)) == record.name:
                return record
        return None

    def _under_way(self, offer: Target) -> bool:
        record = self.versions.find(offer.name)
        return record is not None and record.role == "Candidate"
