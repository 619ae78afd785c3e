"""Jobs whose pods are watched, killed and followed by others until they are done."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL

from finetune_runtime import artefacts
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import Exit, StepResult
from finetune_runtime.s3.store import Store
from finetune_runtime.train.resume import candidates
from tests.kill.moments import LANDMARK, Kill, Landmark
from tests.runtime.support import Proxy, Server, Step, metrics

GRACE_SECONDS = 60  # from SIGTERM to the end of the pod
# Makes the upload of this small checkpoint last a second, so that kills hit uploads too.
LINE_BYTES_PER_SECOND = 400_000


@dataclass(frozen=True)
class Learned:
    """What a finished job is judged by: loss by step, and the digest of its adapter's weights. `resumed_from`: by its last pod, 0: not at all."""

    losses: dict[int, float]
    adapter_sha256: str
    resumed_from: int


@dataclass
class Tally:
    """What the last line of `make test-kill` says."""

    kills: int = 0
    finished: int = 0
    max_loss_diff: float = 0.0
    partial: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"kills={self.kills} finished={self.finished} max_loss_diff={self.max_loss_diff:g} partial_checkpoints_chosen={len(self.partial)}"


class MissedError(Exception):
    """The pod was done before its moment came."""


class Rig:
    """Runs jobs of one configuration, each with a uid and a slow line to storage of its own."""

    def __init__(self, make_job: Callable[[str], JobConfig], store: Store, server: Server, directory: Path, tally: Tally) -> None:
        """`make_job` gives the configuration for a uid, with its dataset prepared."""
        self._make_job, self._store, self._server, self._directory, self.tally = make_job, store, server, directory, tally

    def unbroken(self) -> tuple[Learned, list[Landmark], float]:
        """What a job learns that nobody disturbs, with the landmarks of its pod and the seconds that it lived."""
        config = self._make_job(str(uuid.uuid4()))
        pod, began, timeline = self._start(config, 0), time.monotonic(), dict[str, float]()
        while pod.process.poll() is None:
            for words in LANDMARK.findall(pod.text()):
                timeline.setdefault(words, time.monotonic() - began)
            time.sleep(0.02)
        end = time.monotonic() - began
        pod.end(Exit.DONE)
        return self._learned(config, 0), [Landmark(words, seconds) for words, seconds in timeline.items()], end

    def survive(self, kill: Kill) -> Learned:
        """What a job learns whose first pod is killed. Asserts that it ends as promised and that nothing partial is gone on from. Raises MissedError."""
        config = self._make_job(str(uuid.uuid4()))
        pod = self._start(config, 0)
        self._strike(pod, kill)
        code = pod.process.wait(GRACE_SECONDS)
        assert code in ([-SIGKILL] if kill.signal is SIGKILL else [Exit.INTERRUPTED, Exit.DONE]), f"exit code {code}: {pod.text()[-3000:]}"
        if code == Exit.INTERRUPTED:
            train = StepResult.model_validate_json(pod.message.read_text()).train
            assert train is None or train.committed_step == train.step, f"of {train.step} steps only {train.committed_step} are safe"
        newest = self._newest(config, str(kill))
        complete = artefacts.load(self._store, f"{config.prefix}/adapter") is not None
        result = self._start(config, 1).end(Exit.DONE).train
        assert result is not None
        assert complete or result.resumed_from == newest, f"resumed from {result.resumed_from}, the newest complete checkpoint was {newest}"
        return self._learned(config, result.resumed_from)

    def _newest(self, config: JobConfig, case: str) -> int:
        """Step of the checkpoint that the next pod will go on from, 0: none. Every byte of it is compared with its manifest."""
        found = artefacts.checkpoints(self._store, config.prefix)
        if not found:
            return 0
        newest = candidates(found, config.config_hash(), found[0][2].dataset_sha256)[0]
        try:
            artefacts.fetch(self._store, newest.uri, self._directory / f"chosen-{uuid.uuid4()}")
        except artefacts.ArtefactCorruptError as error:
            self.tally.partial.append(f"{case}: {error.message}")
        return newest.step

    def _start(self, config: JobConfig, number: int) -> Step:
        line = Proxy(self._server.endpoint)
        line.bytes_per_second = LINE_BYTES_PER_SECOND
        slow = config.model_copy(update={"storage": config.storage.model_copy(update={"endpoint": line.endpoint})})
        return Step("train", slow, self._directory / f"{config.job.uid}/pod-{number}", self._server.environment)

    def _strike(self, pod: Step, kill: Kill) -> None:
        while kill.words not in pod.text():
            if pod.process.poll() is not None:
                raise MissedError
            time.sleep(0.02)
        time.sleep(kill.delay)
        if pod.process.poll() is not None:
            raise MissedError
        pod.process.send_signal(kill.signal)

    def _learned(self, config: JobConfig, resumed_from: int) -> Learned:
        records = metrics(self._store, config)
        steps = [record["step"] for record in records]
        assert steps == list(range(1, len(steps) + 1)), f"steps are missing or twice: {steps}"
        adapter = artefacts.load(self._store, f"{config.prefix}/adapter")
        assert adapter is not None
        [weights] = [entry.sha256 for entry in adapter.files if entry.path == "adapter_model.safetensors"]
        return Learned({record["step"]: record["loss"] for record in records}, weights, resumed_from)
