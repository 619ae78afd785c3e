"""What happens to the cluster, the nodes and the operator's process by themselves."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from .jobs import terminal
from .nodes import label
from .watches import WATCHED

if TYPE_CHECKING:
    from .schedule import Schedule

LARGE = 81920  # MiB of a GPU that takes any of the models here


def disturb(schedule: "Schedule") -> None:
    """One of them, by weight."""
    chosen = schedule.world.random.choices([d for _, d in _WEIGHTS], [w for w, _ in _WEIGHTS])[0]
    chosen(schedule)


def _evict(schedule: "Schedule") -> None:
    pods = [p for p in schedule.api.all("Pod") if not terminal(p)]
    if pods:
        random = schedule.world.random
        reason = random.choice(("EvictionByEvictionAPI", "EvictionByEvictionAPI", "PreemptionByScheduler", "DeletionByTaintManager"))
        schedule.kubelets.evict(random.choice(pods), reason)


def _lose_node(schedule: "Schedule") -> None:
    world = schedule.world
    back = world.delay(20, 900) if world.chance(0.7) else None
    schedule.kubelets.lose(world.random.choice(schedule.kubelets.nodes), partition=world.chance(0.5), back=back)


def _take_away(schedule: "Schedule") -> None:
    """Something that pods need is missing, for a while or for good."""
    world, kubelets = schedule.world, schedule.kubelets
    what = world.random.choice(("image", "secret", "claim", "gpu"))
    world.note("cluster", f"{what} is missing")
    world.hits.add(f"missing {what}")
    kubelets.needs.missing.add(what)

    def give_back() -> None:
        world.note("cluster", f"{what} is there again")
        kubelets.needs.missing.discard(what)
        kubelets.wake()

    if world.chance(0.85):
        world.after(world.delay(30, 900), give_back)


def _lose_watch(schedule: "Schedule") -> None:
    if schedule.weather.lost_watch:
        kind = schedule.world.random.choice(WATCHED)
        schedule.world.note("world", f"the watch of {kind} is lost")
        schedule.world.hits.add("fault lost_watch")
        schedule.process.watches.lose(kind, schedule.world.delay(1, 120))


def _repeat(schedule: "Schedule") -> None:
    schedule.world.hits.add("fault repeated_events")
    schedule.process.watches.repeat(schedule.world.random.choice(WATCHED))


def _set_clock(schedule: "Schedule") -> None:
    if schedule.weather.skew:
        schedule.world.hits.add("fault clock")
        schedule.process.set_clock()


def _restart(schedule: "Schedule") -> None:
    schedule.world.note("operator", "is restarted")
    schedule.process.crash()


def _upgrade(schedule: "Schedule") -> None:
    schedule.world.hits.add("fault upgrade")
    schedule.process.upgrade()


def _preempt(schedule: "Schedule") -> None:
    schedule.kueue.preempt(schedule.world.delay(10, 600))


def _build_in_gpus(schedule: "Schedule") -> None:
    schedule.world.note("cluster", "gets larger GPUs")
    label(schedule.api, LARGE)
    schedule.kubelets.mebibytes = LARGE
    schedule.kubelets.wake()


def _break_versions(schedule: "Schedule") -> None:
    """New versions of endpoints do not become ready, for a while or for good."""
    schedule.servers.broken = True
    schedule.world.hits.add("broken versions")
    if schedule.world.chance(0.8):
        schedule.world.after(schedule.world.delay(30, 900), schedule.servers.mend)


def _refuse_routes(schedule: "Schedule") -> None:
    """A Gateway takes no routes, mostly for a while."""
    schedule.world.hits.add("routes are refused")
    schedule.gateway.refuse(schedule.world.delay(30, 900))


def _refuse(schedule: "Schedule") -> None:
    """An admission policy takes none of a kind, for a while."""
    kind, policies = schedule.world.random.choice(_KINDS), schedule.process.cluster.policies
    schedule.world.note("cluster", f"a policy takes no {kind}")
    policies.add(kind)

    def give_back() -> None:
        if kind in policies:
            schedule.world.note("cluster", f"a policy takes {kind} again")
            policies.discard(kind)
            schedule.rollouts.meddled = schedule.world.now

    schedule.rollouts.meddled = schedule.world.now
    schedule.world.after(schedule.world.delay(20, 600), give_back)


_KINDS = ("ConfigMap", "Deployment", "HTTPRoute", "Job", "PodDisruptionBudget", "Service")
_WEIGHTS: list[tuple[int, Callable[["Schedule"], None]]] = [
    (4, _evict), (1, _lose_node), (2, _take_away), (2, _lose_watch), (1, _repeat), (1, _set_clock), (1, _restart), (1, _upgrade), (2, _preempt),
    (1, _build_in_gpus), (1, _break_versions), (1, _refuse_routes), (2, _refuse),
]  # fmt: skip
