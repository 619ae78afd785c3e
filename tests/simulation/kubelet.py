"""Scheduler, nodes and kubelets: what becomes of a pod between its creation and its end."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from .api import Api, Key, Raw, deleting, key_of
from .jobs import has, terminal
from .nodes import GPU, least, make_node, memory
from .staying import Stay, stays
from .world import World

EVICTED = {"type": "DisruptionTarget", "status": "True"}
EXIT = Callable[[int, str, str], None]


class Program(Protocol):
    """A container's main process."""

    uid: str  # FineTuneJob that it works for
    trains: bool
    container: str  # the one that runs now

    def terminate(self) -> None:
        """SIGTERM."""

    def stop(self) -> None:
        """It has ended, one way or the other: nothing of it happens any more."""


@dataclass(slots=True)
class Node:
    """A node with its GPUs."""

    name: str
    gpus: int
    up: bool = True  # the API server hears of it
    running: bool = True  # its processes run, whether anybody hears of them or not
    removed: bool = False


@dataclass(slots=True)
class Surroundings:
    """What pods need and may not find."""

    missing: set[str] = field(default_factory=set)  # of: image, secret, claim, gpu


@dataclass(slots=True)
class Container:
    """A pod on its node."""

    uid: str
    key: Key
    node: Node
    program: Program | None = None
    result: tuple[int, str, str] | None = None  # exit code, reason and message that the node could not tell yet
    stay: Stay | None = None  # of a pod whose containers are started again


def config_of(pod: Raw) -> str:
    """ConfigMap that a pod mounts as its configuration; empty where it carries that itself."""
    return next((str(v["configMap"]["name"]) for v in pod["spec"].get("volumes", ()) if v["name"] == "config" and "configMap" in v), "")


class Kubelets:
    """All nodes. `launch` starts the program of a pod and returns it."""

    def __init__(self, world: World, api: Api, nodes: int, gpus: int, launch: Callable[[Raw, Container, EXIT], Program]) -> None:
        """So many nodes with so many GPUs each."""
        self._world, self._api, self._launch, self._gpus = world, api, launch, gpus
        self.nodes = [Node(f"node-{n}", gpus) for n in range(1, nodes + 1)]
        self.mebibytes = world.random.choice((0, 0, 0, 81920, 81920, 8192))  # memory of their GPUs, as their labels say
        for node in self.nodes:
            make_node(api, node.name, gpus, self.mebibytes)
        self.needs = Surroundings()
        self.containers: dict[str, Container] = {}  # by the pod's UID, until the pod is gone
        self._blocked: dict[str, None] = {}  # UIDs of pods that wait for something
        self._keys: dict[str, Key] = {}
        api.listen("Pod", self._on_pod)
        api.listen("ConfigMap", lambda *_: self.wake())

    def wake(self) -> None:
        """Something that was missing may be there."""
        for uid in list(self._blocked):
            self._blocked.pop(uid)
            self._world.after(self._world.delay(0.1, 5), self._start, uid)

    def find(self, uid: str) -> Raw | None:
        """A pod by its UID."""
        key = self._keys.get(uid)
        raw = self._api.get("Pod", key) if key else None
        return raw if raw and raw["metadata"]["uid"] == uid else None

    def _on_pod(self, change: str, pod: Raw, old: Raw | None) -> None:
        uid = pod["metadata"]["uid"]
        if change == "ADDED":
            self._keys[uid] = key_of(pod)
            self._world.after(self._world.delay(0.05, 2), self._start, uid)
        elif change == "DELETED":
            self._gone(uid)
        elif deleting(pod):
            if not deleting(old or pod) or (pod["metadata"]["deletionGracePeriodSeconds"] == 0 != (old or pod)["metadata"].get("deletionGracePeriodSeconds")):
                self._world.after(self._world.delay(0.01, 2), self._terminate, uid)
            elif terminal(pod):
                self._world.after(self._world.delay(0.01, 1), self._remove, uid)

    def _start(self, uid: str) -> None:
        pod = self.find(uid)
        if pod is None or deleting(pod) or terminal(pod):
            return
        here = self.containers.get(uid)
        if here is None:
            node = self._place(pod)
            if node is None:
                self._blocked[uid] = None
                claim = "claim" in self.needs.missing
                words = 'persistentvolumeclaim "models" not found' if claim else f"0/{len(self.nodes)} nodes are available: 1 Insufficient nvidia.com/gpu."
                waits = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
                self._tell(pod, conditions={**waits, "lastTransitionTime": self._world.text()})
                self._world.hits.add("pod unschedulable")
                return
            here = self.containers[uid] = Container(uid, key_of(pod), node, stay=Stay() if stays(pod) else None)
            scheduled = {"type": "PodScheduled", "status": "True"}
            updated = self._api.update(pod, spec={"nodeName": node.name}, status={**pod["status"], "conditions": [scheduled]})
            pod = updated or pod
            self._world.after(self._world.delay(0.2, 3), self._start, uid)
            return
        if not here.node.running or here.program or here.result:
            return
        volume = config_of(pod)
        if volume and self._api.get("ConfigMap", (here.key[0], volume)) is None:
            self._blocked[uid] = None
        elif "image" in self.needs.missing:
            self._block(pod, "ImagePullBackOff", 'Back-off pulling image "trainer"')
        elif "secret" in self.needs.missing:
            self._block(pod, "CreateContainerConfigError", 'secret "s3" not found')
        else:
            self._run(pod, here)

    def _place(self, pod: Raw) -> Node | None:
        wants = self._wants_gpu(pod)
        if "claim" in self.needs.missing or (wants and "gpu" in self.needs.missing):
            return None
        usable = [n for n in self.nodes if n.up and not n.removed]
        if wants:
            demand = least(pod["spec"])
            usable = [n for n in usable if self.free(n) and not 0 < memory(self._api, n.name) < demand]
        return self._world.random.choice(usable) if usable else None

    def free(self, node: Node) -> bool:
        """Whether a node has a GPU that nobody uses."""
        users = (c for c in self._on(node) if (pod := self.find(c.uid)) and not terminal(pod) and self._wants_gpu(pod))
        return sum(1 for _ in users) < node.gpus

    @staticmethod
    def _wants_gpu(pod: Raw) -> bool:
        return GPU in pod["spec"]["containers"][0].get("resources", {}).get("requests", {})

    def _block(self, pod: Raw, reason: str, message: str) -> None:
        self._blocked[pod["metadata"]["uid"]] = None
        self._world.hits.add(f"pod {reason}")
        waiting = {"name": "main", "state": {"waiting": {"reason": reason, "message": message}}}
        self._api.update(pod, status={**pod["status"], "containerStatuses": [waiting]})

    def _run(self, pod: Raw, here: Container) -> None:
        self._world.note("kubelet", f"pod {pod['metadata']['name']} runs on {here.node.name}")
        if here.stay:
            here.stay.started(self._world.now, self._world.text())
            status = here.stay.shown(pod["status"])
        else:
            running = {"name": "main", "state": {"running": {"startedAt": self._world.text()}}, "ready": True}
            status = {**pod["status"], "phase": "Running", "containerStatuses": [running]}
        updated = self._api.update(pod, status=status)
        here.program = self._launch(updated or pod, here, lambda code, reason, message: self._exit(here, code, reason, message))

    def _tell(self, pod: Raw, conditions: Raw) -> None:
        others = [c for c in pod["status"].get("conditions") or () if c["type"] != conditions["type"]]
        self._api.update(pod, status={**pod["status"], "conditions": [*others, conditions]})

    def _exit(self, here: Container, code: int, reason: str, message: str) -> None:
        """The main process has ended."""
        container, pod = "main", self.find(here.uid)
        if here.program:
            container = here.program.container
            here.program.stop()
        here.program = None
        if here.stay and pod and not deleting(pod):
            ended = {"exitCode": code, "reason": reason, "message": message, "finishedAt": self._world.text()}
            pause = here.stay.crashed(self._world.now, ended, container)
            self._world.note("kubelet", f"{container} of pod {here.key[1]} has ended with {code}, {here.stay.restarts} times by now")
            self.show(here)
            if pause is not None:
                self._world.after(pause, self._start, here.uid)
            return
        here.result = (code, reason, message)
        if here.node.up:
            self._publish(here)

    def show(self, here: Container) -> None:
        """Tell how the containers of a pod are that stays, where the node is heard."""
        pod = self.find(here.uid)
        if here.stay and here.node.up and pod and not terminal(pod):
            self._api.update(pod, status=here.stay.shown(pod["status"]))

    def _publish(self, here: Container) -> None:
        pod = self.find(here.uid)
        if pod is None or here.result is None or terminal(pod):
            return
        code, reason, message = here.result
        self._world.note("kubelet", f"pod {pod['metadata']['name']} has ended with {code} {reason}")
        ended = {"exitCode": code, "reason": reason, "message": message, "finishedAt": self._world.text()}
        status = {**pod["status"], "phase": "Failed" if code else "Succeeded", "containerStatuses": [{"name": "main", "state": {"terminated": ended}}]}
        self._api.update(pod, status=status)
        self.wake()

    def _terminate(self, uid: str) -> None:
        """A pod is to end."""
        pod = self.find(uid)
        if pod is None:
            return
        here = self.containers.get(uid)
        if terminal(pod):
            self._remove(uid)
        elif here is None:
            self._fail(pod)
        elif not here.node.up:
            return  # nobody hears it
        elif here.program is None and here.result is None:
            here.result = (137, "ContainerStatusUnknown", "The container could not be located when the pod was terminated")
            self._publish(here)
        elif here.program:
            grace = pod["metadata"]["deletionGracePeriodSeconds"]
            here.program.terminate()
            self._world.after(max(2.0, grace), self._kill, uid, grace)

    def _kill(self, uid: str, grace: float) -> None:
        here, pod = self.containers.get(uid), self.find(uid)
        if here and here.program and pod and here.node.up and pod["metadata"]["deletionGracePeriodSeconds"] <= grace:
            self._exit(here, 137, "Error", "")

    def _fail(self, pod: Raw, condition: Raw | None = None) -> None:
        conditions = [*(pod["status"].get("conditions") or ()), *([condition] if condition else ())]
        self._api.update(pod, status={**pod["status"], "phase": "Failed", "conditions": conditions})

    def _remove(self, uid: str) -> None:
        pod = self.find(uid)
        if pod and deleting(pod) and terminal(pod):
            if pod["metadata"].get("finalizers"):
                return  # comes again when the finalizer is taken away
            self._api.remove(pod)

    def _gone(self, uid: str) -> None:
        here = self.containers.pop(uid, None)
        self._blocked.pop(uid, None)
        if here and here.program and here.node.running and here.node.up:
            here.program.stop()
        self.wake()

    # What happens to nodes and pods from outside.

    def evict(self, pod: Raw, reason: str) -> None:
        """The eviction API, a drain, the scheduler's preemption."""
        if not terminal(pod) and not deleting(pod):
            self._world.note("cluster", f"evicts pod {pod['metadata']['name']} ({reason})")
            self._world.hits.add(f"eviction {reason}")
            if not has(pod, "DisruptionTarget"):
                self._tell(pod, {**EVICTED, "reason": reason, "message": "evicted", "lastTransitionTime": self._world.text()})
            self._api.delete("Pod", key_of(pod))

    def lose(self, node: Node, *, partition: bool, back: float | None) -> None:
        """A node is not heard of any more, and comes back after a while, or never and is removed."""
        if not node.up:
            return
        self._world.note("cluster", f"{node.name} is lost{' but goes on' if partition else ''}")
        self._world.hits.add("node partition" if partition else "node death")
        node.up, node.running = False, partition
        if not partition:
            for here in self._on(node):
                if here.program:
                    here.program.stop()
        self._world.after(self._world.delay(40, 300), self._taint, node)
        if back is None:
            self._world.after(self._world.delay(300, 900), self._drop, node)
        else:
            self._world.after(back, self._recover, node)

    def _on(self, node: Node) -> list[Container]:
        return [c for c in self.containers.values() if c.node is node]

    def _taint(self, node: Node) -> None:
        for here in self._on(node) if not node.up else ():
            if pod := self.find(here.uid):
                if here.stay:
                    self._tell(pod, {"type": "Ready", "status": "False", "reason": "NodeNotReady"})
                self.evict(self.find(here.uid) or pod, "DeletionByTaintManager")

    def _drop(self, node: Node) -> None:
        """The node object is removed: PodGC ends its pods."""
        self._world.note("cluster", f"{node.name} is removed")
        node.removed = True
        if raw := self._api.get("Node", ("", node.name)):
            self._api.remove(raw)
        for here in self._on(node):
            pod = self.find(here.uid)
            if pod and not terminal(pod):
                self._fail(pod, {**EVICTED, "reason": "DeletionByPodGC", "message": "node is gone"})
                self._api.delete("Pod", here.key, grace=0)
        fresh = Node(f"node-{len(self.nodes) + 1}", self._gpus)
        self.nodes.append(fresh)
        make_node(self._api, fresh.name, fresh.gpus, self.mebibytes)
        self.wake()

    def _recover(self, node: Node) -> None:
        if node.up or node.removed:
            return
        self._world.note("cluster", f"{node.name} is back")
        partition, node.up, node.running = node.running, True, True
        for here in self._on(node):
            pod = self.find(here.uid)
            if pod is None:
                continue
            if here.program and not partition:
                self._exit(here, 137, "ContainerStatusUnknown", "")
            self.show(here)
            if here.result:
                self._publish(here)
            elif deleting(pod):
                self._world.after(self._world.delay(0.1, 5), self._terminate, here.uid)
            else:  # it may have been on its way
                self._world.after(self._world.delay(0.1, 5), self._start, here.uid)
        self.wake()
