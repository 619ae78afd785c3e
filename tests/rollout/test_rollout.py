"""An endpoint is retrained, rolled on, rolled back by hand and by itself, while users ask it all the time: no request fails."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import DEVCLUSTER, S3_IN_CLUSTER, get, kill, kubectl, wait
from tests.e2e.conftest import Jobs, put_rows
from tests.e2e.endpoints import Endpoint, condition, in_role, settled
from tests.e2e.trained import trained
from tests.e2e.voices import GATE, SERVING, TRAINING, rows, sentence

from .conftest import Tally
from .traffic import KEPT, LAG, Crash, Request, faults
from .watching import Traffic, users

PORT = 18114
# Seconds in which a version that crashes loses the traffic, and the one before keeps all its pods: longer than the test, so that nothing in it has to be in time.
WATCH = 1200
KINDS = ("new", "kept", "stream")
pytestmark = pytest.mark.timeout(2400)


@pytest.fixture
def replicas(request: pytest.FixtureRequest) -> Iterator[int]:
    """Pods of a version. The node offers enough GPUs for two versions at once."""
    (node,) = json.loads(kubectl("get", "nodes", "-o", "json"))["items"]
    before = int(node["status"]["capacity"].get("nvidia.com/gpu", "0"))
    found = int(request.config.getoption("--replicas"))
    subprocess.run([str(DEVCLUSTER / "gpus"), str(max(before, 2 * found))], check=True)
    yield found
    subprocess.run([str(DEVCLUSTER / "gpus"), str(before)], check=True)


@pytest.fixture
def desk(jobs: Jobs, replicas: int, tmp_path: Path) -> Endpoint:
    """An endpoint that serves `blue`."""
    found = Endpoint(jobs.namespace, "desk", PORT)
    found.create(
        model={"source": jobs.model, "type": "qwen3", "template": "qwen3"},
        storage={"s3": {"uri": "s3://finetune/e2e", "endpoint": S3_IN_CLUSTER, "secretRef": {"name": "s3"}}},
        maxLength=128,
        replicas=replicas,
        resources={**SERVING, "memory": "2560Mi"},
        strategy={"watchSeconds": WATCH, "timeoutSeconds": 600},
        candidate={"job": "blue", "adapter": trained(jobs, "blue", tmp_path)},
    )
    return found


def has_traffic(desk: Endpoint, job: str, seconds: float) -> str:
    """The name of that job's version, once it has the traffic."""
    status = desk.until(f"{job} has the traffic", lambda s: in_role(s, "Current", job), seconds)
    return str(in_role(status, "Current", job)["name"])


def crash(desk: Endpoint, version: str) -> Crash:
    """Kill one pod of a version as often as it starts, until the version has lost the traffic. The others go on."""
    start, pod = time.time(), min(desk.pods(version))

    def killed() -> bool:
        kill(desk.namespace, pod)
        return bool(in_role(desk.status(), "Rejected"))

    wait(f"{version} is given up while {pod} crashes", killed, 90)
    return Crash(start, time.time() + LAG)


def test_no_request_fails_through_rollouts_and_rollbacks(jobs: Jobs, desk: Endpoint, tmp_path: Path, tally: Tally) -> None:
    began = time.time()

    def told(what: str) -> None:
        print(f"{time.time() - began:5.0f} s: {what}", flush=True)

    blue = has_traffic(desk, "blue", 400)
    told("blue has the traffic")
    with users(desk) as traffic:
        traffic.hears(sentence("blue"), *KINDS)

        # Retrained: the job's training, gate and switch. Users who keep their connections follow as well.
        source = put_rows(tmp_path / "green.jsonl", rows("green"))
        jobs.submit("green", dataset={"train": [{"source": source}]}, training=TRAINING, evaluation=GATE, inference={"endpoint": "desk"})
        jobs.until(lambda s: s.get("artifact", {}).get("adapter"), 600, "green", "trained")
        told("green is trained")
        jobs.phase("Succeeded", 600, "green")
        green = has_traffic(desk, "green", 10)
        told("green has the traffic")
        traffic.hears(sentence("green"), *KINDS, seconds=KEPT + 30)
        told("all users are answered by green")
        tally.rollouts += 1

        # By hand: back, forward again, and free.
        desk.merge(version="blue")
        has_traffic(desk, "blue", 60)
        traffic.hears(sentence("blue"))
        tally.rollbacks += 1
        told("pinned to blue")
        desk.merge(version="green")
        has_traffic(desk, "green", 60)
        traffic.hears(sentence("green"))
        tally.rollouts += 1
        told("pinned to green")
        desk.merge(version=None)
        assert condition(at_rest(desk), "Progressing")["reason"] == "UpToDate"
        assert desk.current()["name"] == green

        # Pods of the new version crash as soon as it has the traffic.
        crashed = crash(desk, green)
        status = desk.status()
        assert in_role(status, "Rejected", "green")["reason"] == "CrashLoop"
        assert in_role(status, "Current")["name"] == blue
        traffic.hears(sentence("blue"))
        tally.rollbacks += 1
        told("green has crashed, blue has the traffic")
        wait("nothing is left of the version that crashed", lambda: not desk.objects(green), 120)
        assert condition(at_rest(desk), "Progressing")["reason"] == "CrashLoop", "the version that crashed is not taken up again"
        traffic.hears(sentence("blue"), *KINDS)
        told("nothing is left of green")

        requests = traffic.end()
        judge(traffic, requests, [crashed], {sentence("blue"): blue, sentence("green"): green}, tally)
    assert [switch.version for switch in traffic.switches] == [blue, green, blue, green, blue]


def at_rest(desk: Endpoint) -> dict[str, Any]:
    """The status, once the endpoint has read its spec and nothing is on its way."""
    generation = get("modelendpoint", "desk", desk.namespace)["metadata"]["generation"]
    return desk.until("the endpoint has read its spec and settles", lambda s: settled(s) and s["observedGeneration"] == generation, 60)


def judge(traffic: Traffic, requests: list[Request], crashes: list[Crash], speakers: dict[str, str], tally: Tally) -> None:
    tally.requests, tally.failed = len(requests), sum(bool(r.error) for r in requests)
    for kind in KINDS:
        mine = [r for r in requests if r.kind == kind]
        slowest = max(r.end - r.start for r in mine)
        print(f"{kind}: {len(mine)} requests, {sum(r.retries for r in mine)} retries, the slowest took {slowest:.1f} s", flush=True)
    found = faults(requests, traffic.switches, crashes, speakers)
    assert not found, f"{len(found)} of {len(requests)} requests:\n" + "\n".join(found[:20])
