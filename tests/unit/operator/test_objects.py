"""What is known of an object when a watch is late, silent or wrong."""

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from finetune_operator.children import LOOK_EVERY
from finetune_operator.kube import Cluster
from finetune_operator.objects import Key, Objects

KEY = Key("FineTuneJob", "team", "support")


def version(number: int, uid: str = "uid-1", **meta: Any) -> dict[str, Any]:
    return {"metadata": {"name": "support", "uid": uid, "resourceVersion": str(number), **meta}}


GOING = {"deletionTimestamp": "2027-01-15T08:00:00Z"}


@dataclass
class World:
    """What the watch shows, and what the API server has."""

    seen: list[dict[str, Any]] = field(default_factory=list)
    there: dict[str, Any] | None = None
    gets: int = 0
    now: float = 0.0
    objects: Objects = field(init=False)

    def __post_init__(self) -> None:
        store = cast("Any", self)
        self.objects = Objects(cast("Cluster", self), store, store, lambda: self.now)

    def get(self, at: object, default: object = ()) -> Any:
        """A cache is asked with (namespace, name), the API server with a Ref."""
        return self.seen or default if isinstance(at, tuple) else self._answer()

    async def _answer(self) -> dict[str, Any] | None:
        self.gets += 1
        return self.there

    async def newest(self) -> str:
        found = await self.objects.newest(KEY)
        return found["metadata"]["resourceVersion"] if found else ""


@pytest.mark.parametrize(
    ("seen", "written", "expected"),
    [
        ([], None, ""),
        ([version(3)], None, "3"),
        ([version(3)], version(5), "5"),
        ([version(7)], version(5), "7"),
        ([version(3, **GOING)], None, ""),
        ([version(3), version(9, "uid-2")], version(5), "9"),
        ([version(7, **GOING)], version(5), ""),
    ],
    ids=["never heard of", "seen", "the watch is late", "the watch is ahead", "going", "made anew under its name", "written, and now going"],
)
async def test_newest_is_what_the_watch_shows_or_what_was_written(seen: list[dict[str, Any]], written: dict[str, Any] | None, expected: str) -> None:
    world = World(seen)
    if written:
        world.objects.learn(KEY, written)
    assert (await world.newest(), world.gets) == (expected, 0)


async def test_the_watch_at_the_deletion_of_a_predecessor_does_not_hide_the_successor() -> None:
    world = World([], version(5, "uid-2"))
    world.objects.learn(KEY, version(4, "uid-2"))
    assert await world.newest() == "5"
    world.there = None
    assert await world.newest() == ""
    assert (await world.newest(), world.gets) == ("", 2), "and then it is forgotten"


async def test_an_answer_that_was_lost_is_asked_for_once() -> None:
    world = World([version(3)], version(4))
    world.objects.unsure(KEY)
    assert [await world.newest(), await world.newest()] == ["4", "4"]
    assert world.gets == 1


async def test_an_object_that_turns_out_to_be_going_is_not_worked_on_by_what_the_watch_still_shows() -> None:
    world = World([version(3)], version(5, **GOING))
    world.objects.unsure(KEY)
    assert [await world.newest(), await world.newest()] == ["", ""]


async def test_an_older_answer_does_not_take_the_place_of_a_newer_one() -> None:
    world = World([version(3)], version(4))
    world.objects.learn(KEY, version(5))
    found = await world.objects.read(KEY)
    assert found == version(5)


async def test_what_a_watch_never_told_the_end_of_is_noticed_and_not_seen_again() -> None:
    world = World([version(3)])
    assert await world.newest() == "3"
    world.now = LOOK_EVERY
    assert [await world.newest(), await world.newest()] == ["", ""]
    assert world.gets == 1
    world.seen.append(version(9, "uid-2"))
    assert await world.newest() == "9"
