"""An endpoint is retrained, rolled on, rolled back by itself and by hand, while users ask it all the time: no request fails."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import DEVCLUSTER, get, kill, kubectl, wait
from tests.e2e.conftest import Jobs, put_rows
from tests.e2e.endpoints import Endpoint, condition, in_role, settled
from tests.e2e.voices import GATE, SERVING, TRAINING, rows, sentence

from .conftest import Tally
from .traffic import LAG, Crash, faults
from .watching import Traffic, users

PORT = 18114
GPUS = 6  # two versions and what is kept of a third
WATCH = 75  # seconds: the crash and what follows from it took 27 on two cores with much else to do
pytestmark = pytest.mark.timeout(1500)  # three trainings, and the start of three versions


@pytest.fixture
def gpus() -> Iterator[None]:
    """The node offers enough GPUs for three versions at once."""
    (node,) = json.loads(kubectl("get", "nodes", "-o", "json"))["items"]
    before = node["status"]["capacity"].get("nvidia.com/gpu", "0")
    subprocess.run([str(DEVCLUSTER / "gpus"), str(GPUS)], check=True)
    yield
    subprocess.run([str(DEVCLUSTER / "gpus"), before], check=True)


class Rollouts:
    """The endpoint `desk`, and the jobs that teach its versions what to say."""

    def __init__(self, jobs: Jobs, folder: Path, replicas: int) -> None:
        self.jobs, self.folder, self.replicas = jobs, folder, replicas
        self.desk = Endpoint(jobs.namespace, "desk", PORT)

    def submit(self, colour: str, **changes: Any) -> None:
        source = put_rows(self.folder / f"{colour}.jsonl", rows(colour))
        self.jobs.submit(colour, dataset={"train": [{"source": source}]}, training=TRAINING, **changes)

    def retrain(self, colour: str) -> None:
        """A job that rolls its adapter out to the endpoint, and makes the endpoint when there is none."""
        strategy = {"watchSeconds": WATCH, "timeoutSeconds": 600}
        resources = {**SERVING, "memory": "2560Mi"}
        self.submit(
            colour,
            evaluation=GATE,
            inference={"endpoint": "desk", "replicas": self.replicas, "resources": resources, "strategy": strategy, "keepPrevious": 1},
        )

    def has_traffic(self, job: str, seconds: float) -> dict[str, Any]:
        """The version of that job, once it has the traffic."""
        return in_role(self.desk.until(f"{job} has the traffic", lambda s: in_role(s, "Current", job), seconds), "Current", job)

    def pods(self, version: str) -> int:
        """Pods of a version, those that end included."""
        return sum(o.startswith("Pod/") for o in self.desk.objects(version))


def crash(desk: Endpoint, version: str) -> Crash:
    """Kill one pod of a version as often as it starts, until the version has lost the traffic. The others go on."""
    start, pod = time.time(), min(desk.pods(version))

    def killed() -> bool:
        kill(desk.namespace, pod)
        return bool(in_role(desk.status(), "Rejected"))

    wait(f"{version} is given up while {pod} crashes", killed, 60)
    return Crash(start, time.time() + LAG)


def test_no_request_fails_through_rollouts_and_rollbacks(jobs: Jobs, gpus: None, tmp_path: Path, tally: Tally, request: pytest.FixtureRequest) -> None:
    rollouts = Rollouts(jobs, tmp_path, request.config.getoption("--replicas"))
    desk = rollouts.desk
    rollouts.retrain("blue")
    jobs.phase("Succeeded", 400, "blue")
    blue = rollouts.has_traffic("blue", 10)["name"]
    with users(desk) as traffic:
        traffic.hears(sentence("blue"))

        # Retrained: the second job's training, gate and switch.
        rollouts.submit("red")
        rollouts.retrain("green")
        jobs.phase("Succeeded", 500, "green")
        green = rollouts.has_traffic("green", 10)["name"]
        traffic.hears(sentence("green"))
        tally.rollouts += 1
        wait("one pod of the version before is kept", lambda: rollouts.pods(blue) == 1, WATCH + 120)

        # A third version, proposed by hand, whose pods crash as soon as it has the traffic.
        jobs.phase("Succeeded", 300, "red")
        desk.propose("red", jobs.status("red")["artifact"]["adapter"])
        red = rollouts.has_traffic("red", 400)["name"]
        traffic.hears(sentence("red"), WATCH - 40)
        tally.rollouts += 1
        crashed = crash(desk, red)
        status = desk.status()
        assert in_role(status, "Rejected", "red")["reason"] == "CrashLoop"
        assert in_role(status, "Current")["name"] == green
        traffic.hears(sentence("green"))
        tally.rollbacks += 1
        wait("nothing is left of the version that crashed", lambda: not desk.objects(red), 120)

        # By hand: back, forward again, and free.
        desk.merge(version="blue")
        rollouts.has_traffic("blue", 120)
        traffic.hears(sentence("blue"))
        tally.rollbacks += 1
        desk.merge(version="green")
        rollouts.has_traffic("green", 120)
        traffic.hears(sentence("green"))
        tally.rollouts += 1
        desk.merge(version=None)
        generation = get("modelendpoint", "desk", desk.namespace)["metadata"]["generation"]
        status = desk.until("the endpoint has read its spec and settles", lambda s: settled(s) and s["observedGeneration"] == generation, 60)
        assert condition(status, "Progressing")["reason"] == "CrashLoop", "the version that crashed is not taken up again"
        assert in_role(status, "Current")["name"] == green

        requests = traffic.end()
        judge(traffic, requests, [crashed], {sentence("blue"): blue, sentence("green"): green, sentence("red"): red}, tally)
    assert [switch.version for switch in traffic.switches] == [blue, green, red, green, blue, green]


def judge(traffic: Traffic, requests: list[Any], crashes: list[Crash], speakers: dict[str, str], tally: Tally) -> None:
    tally.requests, tally.failed = len(requests), sum(bool(r.error) for r in requests)
    for kind in ("new", "kept", "stream"):
        mine = [r for r in requests if r.kind == kind]
        slowest = max(r.end - r.start for r in mine)
        print(f"{kind}: {len(mine)} requests, {sum(r.retries for r in mine)} retries, the slowest took {slowest:.1f} s", flush=True)
    found = faults(requests, traffic.switches, crashes, speakers)
    assert not found, f"{len(found)} of {len(requests)} requests:\n" + "\n".join(found[:20])
