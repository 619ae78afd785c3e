"""Several adapters on one endpoint as stories: names change one at a time, and what was served under the others goes on."""

import json
from typing import Any

import pytest

from .makers import names, result
from .story import Story, candidate, crashing, evaluation, evaluation_pod

GATE = {"prompts": [{"name": "room", "prompt": "What is the code of room 7?", "expect": {"contains": ["41"]}}]}
PASSED = {"passed": True, "prompts": 1, "repeats": 3}
CLOSED = {"passed": False, "prompts": 1, "repeats": 3, "reasons": ["pass rate 0.00 is below minPassRate 0.80"]}


def named(name: str, letter: str, **fields: Any) -> dict[str, Any]:
    """An adapter that is proposed under a name of its own."""
    return {"name": name, **candidate(letter, **fields)}


class Desk(Story):
    """An endpoint whose users ask for models by name; `asked` are the models that gates have asked, with the one they were compared with."""

    def __init__(self, **spec: Any) -> None:
        super().__init__(**spec)
        self.asked: list[tuple[str, bool]] = []
        self.configs: dict[str, dict[str, Any]] = {}

    def look(self, seconds: float = 1.0, **fields: Any) -> Any:
        plan = super().look(seconds, **fields)
        found = {b["metadata"]["name"]: json.loads(b["data"]["config.json"]) for b in plan.apply if b["kind"] == "ConfigMap"}
        self.configs |= found
        for body in plan.create:
            config = self.configs[body["spec"]["template"]["spec"]["volumes"][0]["configMap"]["name"]]
            self.asked.append((config["candidate"]["model"], "current" in config))
        return plan

    def adapters(self, version: str = "") -> dict[str, str]:
        """What pods of the version with the traffic serve: the adapter's letter by the model's name."""
        config = self.configs[version or self.traffic()]
        return {
            n: a["manifestSha256"][0] for n, a in [(config["servedName"], config["adapter"]), *((o["name"], o["adapter"]) for o in config.get("others", []))]
        }

    def candidate(self) -> str:
        return next((str(v["name"]) for v in self.status["versions"] if v["role"] == "Candidate"), "")

    def settle(self, *, looks: int = 12, verdict: dict[str, Any] | None = None) -> "Desk":
        """All pods answer, and all gates have the same verdict, until nothing is under way."""
        for _ in range(looks):
            self.look()
            if name := self.candidate():
                self.ready[name] = 1
            if self.jobs:
                job = next(iter(self.jobs))
                self.jobs[job] = evaluation(job, complete=True, finished_at="2027-01-15T08:00:00Z")
                self.pods = [evaluation_pod(job, 0, result("evaluate", evaluation=verdict or PASSED))]
            else:
                self.pods = []
        return self


def desk(*entries: dict[str, Any], **spec: Any) -> Desk:
    """One that serves a under its own name, and these."""
    return Desk(candidate=candidate("a"), adapters=list(entries), **spec).settle()


def test_an_adapter_under_another_name_is_served_beside_the_first() -> None:
    story = desk()
    old = story.traffic()
    story.spec["adapters"] = [named("rooms", "b")]
    story.look()
    new = story.candidate()
    assert (story.traffic(), story.adapters(new)) == (old, {"support": "a", "rooms": "b"})
    assert {f"Deployment/{new}", f"ConfigMap/{new}", f"Service/{new}"} < set(names(story.plan.apply))
    story.settle()
    assert (story.traffic(), story.roles(), story.progress()) == (new, {"b": "Current", "a": "Previous"}, ("False", "UpToDate"))
    assert (story.status["servedName"], story.status["servedNames"]) == ("support", ["support", "rooms"])
    record = story.version("b")
    assert (record["servedName"], [(o.get("name"), o["job"]) for o in record["others"]]) == ("rooms", [(None, "a")])


def test_another_adapter_under_one_name_leaves_the_others_as_they_are() -> None:
    story = desk(named("rooms", "b"))
    story.spec["candidate"] = candidate("c")
    assert story.settle().adapters() == {"support": "c", "rooms": "b"}
    story.spec["adapters"] = [named("rooms", "a")]
    assert story.settle().adapters() == {"support": "c", "rooms": "a"}


def test_all_names_that_are_proposed_at_once_are_served_in_the_end() -> None:
    story = Desk(candidate=candidate("a"), adapters=[named("rooms", "b"), named("bills", "c")])
    assert story.settle().adapters() == {"support": "a", "bills": "c", "rooms": "b"}
    assert story.status["servedNames"] == ["support", "bills", "rooms"]


def test_what_is_on_its_way_goes_on_when_another_name_is_proposed() -> None:
    story = desk()
    story.spec["adapters"] = [named("rooms", "b")]
    story.look()
    way = story.candidate()
    story.spec["candidate"] = candidate("c")
    story.look()
    assert story.candidate() == way
    assert story.settle().adapters() == {"support": "c", "rooms": "b"}
    assert "Rejected" not in story.roles().values()


class TestGivenUp:
    def refused(self) -> Desk:
        """One whose second name did not pass its gate."""
        story = desk()
        story.spec |= {"gate": GATE, "adapters": [named("rooms", "b")]}
        return story.settle(verdict=CLOSED)

    def test_a_name_that_does_not_pass_is_not_served_and_the_others_are(self) -> None:
        story = self.refused()
        assert (story.adapters(), story.version("b")["reason"], story.progress()) == ({"support": "a"}, "GateClosed", ("False", "GateClosed"))

    def test_it_is_not_tried_again_with_every_change_of_another_name(self) -> None:
        story = self.refused()
        asked = len(story.asked)
        story.spec["candidate"] = candidate("c")
        story.settle()
        assert (story.adapters(), [model for model, _ in story.asked[asked:]]) == ({"support": "c"}, ["support"])
        assert story.version("b")["role"] == "Rejected"

    def test_nor_when_many_versions_came_after_it(self) -> None:
        story = self.refused()
        asked = len(story.asked)
        for number in range(10):
            adapter = {"uri": f"s3://models/{number}", "manifestSha256": f"{number:064d}"}
            story.spec["candidate"] = {"job": f"job-{number}", "jobUid": str(number), "adapter": adapter}
            story.settle(looks=9)
            story.look(600)
        assert {model for model, _ in story.asked[asked:]} == {"support"}
        assert story.version("b")["role"] == "Rejected"

    @pytest.mark.parametrize(("wish", "letter"), [({"gate": None}, "b"), ({"adapters": [named("rooms", "c")]}, "c")], ids=["another gate", "another adapter"])
    def test_something_else_that_is_asked_for_is_tried(self, wish: dict[str, Any], letter: str) -> None:
        story = self.refused()
        story.spec |= wish
        assert story.settle().adapters() == {"support": "a", "rooms": letter}

    def test_one_whose_neighbour_did_not_pass_is_tried_without_it(self) -> None:
        story = desk(named("rooms", "b", evalLoss="1.6"))
        story.spec |= {"candidate": candidate("c", evalLoss="1"), "gate": {"evalLoss": {"max": "1.5"}}, "maxLength": 512}
        story.settle()
        assert (story.adapters(), story.version("c")["reason"]) == ({"support": "a", "rooms": "b"}, "GateClosed")
        assert "rooms: evaluation loss 1.6 is above" in story.version("c")["message"]
        story.spec["adapters"] = []
        assert story.settle().adapters() == {"support": "c"}

    def test_one_that_is_named_by_its_job_is_tried_again(self) -> None:
        story = desk()
        story.spec["adapters"] = [named("rooms", "b")]
        story.look()
        story.pods = [crashing(story.candidate(), 5)]
        story.look()
        assert story.settle().adapters() == {"support": "a"}
        story.spec["version"] = "b"
        assert story.settle().adapters() == {"support": "a", "rooms": "b"}

    @pytest.mark.parametrize("gate", [None, GATE], ids=["no gate", "a gate"])
    def test_a_crash_soon_after_the_switch_takes_the_new_name_away_and_nothing_else(self, gate: dict[str, Any] | None) -> None:
        story = desk(gate=gate)
        story.spec["adapters"] = [named("rooms", "b")]
        story.settle()
        story.pods = [crashing(story.traffic(), 1)]
        story.look()
        assert (story.adapters(), story.version("b")["role"]) == ({"support": "a"}, "Rejected")
        assert story.settle().adapters() == {"support": "a"}
        story.spec["candidate"] = candidate("c")
        assert story.settle().adapters() == {"support": "c"}

    def test_one_that_cannot_start_does_not_hold_up_those_behind_it(self) -> None:
        story = desk()
        story.spec["adapters"] = [named("rooms", "b"), named("bills", "c")]
        story.look()
        story.pods = [crashing(story.candidate(), 5)]
        story.look()
        assert story.version("b")["role"] == "Rejected"
        assert story.settle().adapters() == {"support": "a", "bills": "c"}


class TestGate:
    def test_only_what_changes_is_asked_and_under_its_own_name(self) -> None:
        story = desk(gate=GATE)
        story.spec["adapters"] = [named("rooms", "b")]
        story.settle()
        story.spec["adapters"] = [named("rooms", "c")]
        story.settle()
        assert story.asked == [("support", False), ("rooms", False), ("rooms", True)]
        assert story.version("c")["evaluation"]["passed"] is True

    def test_the_gate_of_a_job_is_for_its_own_adapter(self) -> None:
        story = desk()
        story.spec["adapters"] = [named("rooms", "b", evaluation=GATE)]
        story.settle()
        story.spec["candidate"] = candidate("c")
        assert story.settle().adapters() == {"support": "c", "rooms": "b"}
        assert story.asked == [("rooms", False)]

    def test_when_all_are_served_otherwise_each_is_asked_and_compared_with_itself(self) -> None:
        story = desk(named("rooms", "b"), gate=GATE)
        story.asked.clear()
        old = story.traffic()
        story.spec["maxLength"] = 4096
        story.settle()
        assert (sorted(story.asked), story.traffic() != old) == ([("rooms", True), ("support", True)], True)
        record = next(v for v in story.status["versions"] if v["role"] == "Current")
        assert [a["evaluation"]["passed"] for a in (record, *record["others"])] == [True, True]
        assert len({record["gate"], *(o["gate"] for o in record["others"])}) == 2
        story.settle()
        assert len(story.asked) == 2

    def test_all_of_them_have_to_pass(self) -> None:
        story = desk(named("rooms", "b"), gate=GATE)
        old = story.traffic()
        story.spec["maxLength"] = 4096
        story.look()
        story.ready[story.candidate()] = 1
        story.look()
        first = next(iter(story.jobs))
        for verdict in (PASSED, CLOSED):
            job = next(iter(story.jobs))
            story.jobs[job] = evaluation(job, complete=True, finished_at="2027-01-15T08:00:00Z")
            story.pods = [evaluation_pod(job, 0, result("evaluate", evaluation=verdict))]
            story.look()
            story.pods = []
            story.look()
        assert (story.traffic(), story.progress()) == (old, ("False", "GateClosed"))
        rejected = next(v for v in story.status["versions"] if v["role"] == "Rejected")
        assert "gets no traffic: the adapter under the endpoint's own name: pass rate 0.00" in rejected["message"]
        assert first not in story.jobs

    def test_a_bound_on_the_loss_of_one_is_compared_with_its_own(self) -> None:
        story = Desk(gate={"evalLoss": {"max": "1.5"}}, candidate=candidate("a", evalLoss="1"), adapters=[named("rooms", "b", evalLoss="1.6")])
        assert story.settle().adapters() == {"support": "a"}
        assert story.version("b")["message"].endswith("gets no traffic: evaluation loss 1.6 is above evalLoss.max 1.5")


class TestUsers:
    def test_a_name_that_is_removed_is_served_no_more_and_nothing_is_asked_for_it(self) -> None:
        story = desk(named("rooms", "b"), gate=GATE)
        asked = len(story.asked)
        story.spec["adapters"] = []
        assert story.settle().adapters() == {"support": "a"}
        assert (len(story.asked), story.progress()) == (asked, ("False", "UpToDate"))

    def test_the_endpoints_own_name_may_go_as_well(self) -> None:
        story = desk(named("rooms", "b"))
        del story.spec["candidate"]
        story.settle()
        assert (story.adapters(), story.status["servedNames"]) == ({"rooms": "b"}, ["rooms"])

    def test_nothing_that_is_proposed_means_that_nothing_changes(self) -> None:
        story = desk(named("rooms", "b"))
        del story.spec["candidate"]
        story.spec["adapters"] = []
        story.settle()
        assert (story.adapters(), story.progress()) == ({"support": "a", "rooms": "b"}, ("False", "UpToDate"))

    def test_a_pin_is_to_all_that_a_version_serves(self) -> None:
        story = desk(named("rooms", "b"), keepPrevious=2)
        both = story.traffic()
        story.spec["candidate"] = candidate("c")
        story.settle()
        story.spec["version"] = both
        story.settle()
        assert (story.traffic(), story.adapters()) == (both, {"support": "a", "rooms": "b"})
        story.spec["adapters"] = [named("rooms", "c")]
        assert story.settle().adapters() == {"support": "a", "rooms": "b"}
        del story.spec["version"]
        assert story.settle().adapters() == {"support": "c", "rooms": "c"}

    def test_a_pin_to_a_version_without_pods_makes_it_anew_by_todays_spec(self) -> None:
        story = desk(named("rooms", "b"), strategy={"watchSeconds": 0})
        both = story.traffic()
        story.spec |= {"candidate": candidate("c"), "maxLength": 4096}
        story.settle()
        story.look(600)
        story.spec["version"] = both
        story.settle()
        assert (story.traffic() != both, story.adapters()) == (True, {"support": "a", "rooms": "b"})

    def test_one_name_alone_goes_back_by_its_older_adapter_which_is_not_asked_again(self) -> None:
        story = desk(named("rooms", "b"), gate=GATE)
        story.spec["adapters"] = [named("rooms", "c")]
        story.settle()
        asked = len(story.asked)
        story.spec["adapters"] = [named("rooms", "b")]
        story.settle()
        assert (story.adapters(), len(story.asked)) == ({"support": "a", "rooms": "b"}, asked)

    def test_the_endpoints_own_name_may_be_changed(self) -> None:
        story = desk(named("rooms", "b"))
        story.spec["servedName"] = "desk"
        story.settle()
        assert (story.adapters(), story.status["servedNames"]) == ({"desk": "a", "rooms": "b"}, ["desk", "rooms"])

    def test_a_settled_status_is_stable(self) -> None:
        story = desk(named("rooms", "b"), gate=GATE)
        story.look(600)
        before = story.status
        assert (story.look(60).status, story.plan.delete, story.plan.create) == (before, (), ())


def test_versions_of_one_adapter_are_called_as_by_operators_that_knew_no_others() -> None:
    story = Desk(candidate=candidate("a"))
    story.settle()
    assert story.traffic() == "support-048a769b"
    assert not {"servedName", "others"} & set(story.status["versions"][0])
    assert "others" not in story.configs[story.traffic()]


def test_a_named_version_that_crashes_is_given_up_although_todays_spec_would_make_it_with_a_gate() -> None:
    story = desk(named("rooms", "b", evalLoss="1.5"), keepPrevious=1, strategy={"watchSeconds": 120}, gate={"evalLoss": {"max": "2.0"}})
    story.spec |= {"candidate": candidate("a", evalLoss="1.5"), "maxLength": 64}
    story.settle()
    story.spec |= {"candidate": candidate("c", evalLoss="3"), "maxLength": 128}
    story.settle()
    newest = story.traffic()
    story.spec["version"] = newest
    story.look()
    assert story.progress() == ("False", "UpToDate")
    story.pods = [crashing(newest, 1)]
    for _ in range(3):
        story.look()
        record = next(v for v in story.status["versions"] if v["name"] == newest)
        assert (story.traffic() == newest, record["role"], story.progress()) == (False, "Rejected", ("False", "CrashLoop"))
