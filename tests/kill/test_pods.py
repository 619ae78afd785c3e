"""Training pods killed at any moment of their life: the job finishes with what an unbroken run learns.

make test-kill [KILLS=40] [SEED=1] [ONLY=k]
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from finetune_runtime.contract.config import JobConfig
from finetune_runtime.s3.store import Store
from tests.kill.moments import Kill, kills
from tests.kill.rig import Learned, MissedError, Rig, Tally
from tests.runtime.support import MakeConfig, Server

TOLERANCE = 1e-4  # between losses; training in float32 on the CPU gives 0
SIDE_BY_SIDE = 2
# 40 rows in steps of 12: an epoch ends with a smaller step. Checkpoints and evaluations fall on different steps, and on the same one (12).
JOB = {
    "tuning": {"quantization": {"computeDtype": "float32"}},
    "training": {"epochs": 4, "effectiveBatchSize": 12, "evalSteps": 6},
    "checkpoints": {"everySteps": 4, "keep": 2},
}


@pytest.fixture
def rig(job_config: MakeConfig, commit_dataset: Callable[[JobConfig], None], store: Store, s3_server: Server, tmp_path: Path, tally: Tally) -> Rig:
    def make_job(uid: str) -> JobConfig:
        config = job_config(**JOB, job={"uid": uid})
        commit_dataset(config)
        return config

    return Rig(make_job, store, s3_server, tmp_path / "jobs", tally)


@pytest.mark.timeout(1500)
def test_killed_pods_lose_nothing(rig: Rig, request: pytest.FixtureRequest, tally: Tally) -> None:
    count, seed, only = (request.config.getoption(name) for name in ("kills", "seed", "only"))
    unbroken, timeline, end = rig.unbroken()
    print(f"\nunbroken run: {len(unbroken.losses)} steps in {end:.1f} s")
    print("\n".join(f"  {landmark.seconds:6.2f} s  {landmark.words}" for landmark in timeline), flush=True)
    planned = [kill for kill in kills(timeline, end, count, seed) if only in (None, kill.number)]
    failures: list[str] = []

    def carry_out(kill: Kill) -> None:
        tally.kills += 1
        try:
            learned = _survive(rig, kill)
            differences = {step: abs(learned.losses.get(step, math.inf) - loss) for step, loss in unbroken.losses.items()}
            difference = max(differences.values())
            tally.max_loss_diff = max(tally.max_loss_diff, difference)
            where = f"resumed from {learned.resumed_from}; losses differ at { ({step: found for step, found in differences.items() if found}) }"
            assert difference <= TOLERANCE, where
            assert learned.adapter_sha256 == unbroken.adapter_sha256, f"another adapter; {where}"
        except Exception as error:  # noqa: BLE001  the others go on; all failures are shown at the end
            failures.append(f"{kill}: {error}\n  replay: make test-kill KILLS={count} SEED={seed} ONLY={kill.number}")
            print(failures[-1], flush=True)
        else:
            tally.finished += 1
            print(f"{kill}: resumed from {learned.resumed_from}, finished, loss difference {difference:g}", flush=True)

    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        list(pool.map(carry_out, planned))
    assert not failures, "\n".join(failures)
    assert not tally.partial


def _survive(rig: Rig, kill: Kill) -> Learned:
    """A pod that is faster than the one that was measured may be done before its moment: then the moment comes earlier."""
    for _ in range(5):
        try:
            return rig.survive(kill)
        except MissedError:
            kill = replace(kill, delay=kill.delay / 2)
    raise TimeoutError(f"{kill}: the pod was done each time")
