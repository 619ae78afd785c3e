"""What runs in the pods of a job: the prepare and the train step, as the operator and storage see them.

A training starts from the newest checkpoint that is committed, commits a checkpoint every CHUNK steps and on SIGTERM, and
ends with exit code 0 only when the manifest of the adapter is committed.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from finetune_operator import names
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.model_shape import ModelShape
from finetune_runtime.contract.result import DataSummary, Exit, Metric, Reason, StepResult, TrainerStatus, TrainSummary

from .api import Api, Raw
from .kubelet import EXIT, Container, Program, config_of
from .storage import Artefacts, Storage, digest
from .world import World

if TYPE_CHECKING:
    from .faults import Weather

# Eight billion parameters: more than a GPU of 8 GiB takes.
SHAPE = ModelShape(
    parameters=8_190_735_360, linear_parameters=6_946_816_000, embedding_parameters=1_244_659_712, largest_linear=50_331_648,
    adapter_widths={"q_proj": 294_912, "k_proj": 184_320, "v_proj": 184_320, "o_proj": 294_912, "gate_proj": 589_824, "up_proj": 589_824, "down_proj": 589_824},
    layers=36, hidden_size=4096, intermediate_size=12288, attention_heads=32, key_value_heads=8, head_dim=128, vocabulary_size=151_936,
)  # fmt: skip
TOTAL, CHUNK = 30, 10  # steps of a training, steps from checkpoint to checkpoint
Reports = Callable[[Raw, TrainerStatus], None]

_FAULTS: list[tuple[int, str, Reason | None]] = [
    (1, "Error", Reason.TRAINING_CRASHED), (1, "Error", None), (134, "Error", None), (137, "OOMKilled", None), (139, "Error", None),
    (Exit.STORAGE_UNAVAILABLE, "Error", Reason.STORAGE_UNAVAILABLE), (Exit.STORAGE_UNAVAILABLE, "Error", Reason.STORAGE_UNAVAILABLE),
    (Exit.INVALID_CONFIG, "Error", Reason.INVALID_CONFIG), (Exit.DATA_INVALID, "Error", Reason.DATA_INVALID),
    (Exit.MODEL_INVALID, "Error", Reason.MODEL_INVALID), (Exit.OUT_OF_MEMORY, "Error", Reason.OUT_OF_MEMORY),
]  # fmt: skip


@lru_cache(maxsize=64)
def parsed(text: str) -> JobConfig:
    """The document that a pod reads at its start."""
    return JobConfig.model_validate_json(text)


@lru_cache(maxsize=64)
def config_hash(text: str) -> str:
    """Hash of what decides the result."""
    return parsed(text).config_hash()


@lru_cache(maxsize=512)
def _train_message(reason: Reason, step: int, start: int, committed: int, adapter: tuple[str, str] | None) -> str:
    ref: Any = {"uri": adapter[0], "manifestSha256": adapter[1]} if adapter else None
    train = TrainSummary(
        step=step, total_steps=TOTAL, resumed_from=start, committed_step=committed, loss=1.5 - step / TOTAL, micro_batch=4,
        adapter=ref, adapter_step=step if adapter else 0, versions={"ms-swift": "4.6.0"}, command="python3 -m swift.cli.sft",
    )  # fmt: skip
    return StepResult(step="train", reason=reason, message=f"Step {step} of {TOTAL}", train=train).encode()


@lru_cache(maxsize=64)
def _prepare_message(reason: Reason, shaped: bool) -> str:
    shape = SHAPE if shaped else None
    data = DataSummary(train_rows=120, validation_rows=6, tokens=9000, longest=80, sha256="b" * 64, shape=shape) if reason is Reason.COMPLETED else None
    return StepResult(step="prepare", reason=reason, message=f"prepare: {reason}", data=data).encode()


class Runs:
    """All steps that run. `start` is the kubelets' way to begin one."""

    def __init__(self, world: World, api: Api, storage: Storage, conditions: "Weather", reports: Reports, begun: Callable[[Raw, str, int], None]) -> None:
        """`begun(pod, uid, step)` is told of every training that begins, with its job's UID and the step it starts from."""
        self.world, self.api, self.storage, self.weather = world, api, storage, conditions
        self.reports, self.begun = reports, begun
        self.shaped = world.chance(0.4)  # whether the model's files say how large it is

    def start(self, pod: Raw, here: Container, leave: EXIT) -> Program:
        """The container starts with the configuration that is mounted now."""
        labels = pod["metadata"]["labels"]
        config = self.api.get("ConfigMap", (here.key[0], config_of(pod)))
        text = config["data"].get("config.json", "") if config else ""
        kind = Training if labels[names.LABEL_STEP] == names.Step.TRAIN else Preparation
        return kind(self, pod, leave, text)


class Step:
    """One container."""

    trains = False
    container = names.CONTAINER

    def __init__(self, runs: Runs, pod: Raw, leave: EXIT, config: str) -> None:
        self.runs, self.pod, self._leave, self.config = runs, pod, leave, config
        self.ended = self.terminating = False
        self.start = self.step = self.committed = 0
        try:
            self.uid = parsed(config).job.uid
        except ValueError:
            self.uid = ""
        self.artefacts: Artefacts = runs.storage.of(self.uid)
        self.fault = runs.world.random.choice(_FAULTS) if runs.world.chance(runs.weather.pod_failure) else None
        if not self.uid:
            self._after(1, lambda: self.leave(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG))
        elif self.artefacts.config_hash not in {"", config_hash(config)}:
            if self.trains:  # from the start, as what is committed belongs to another configuration
                runs.begun(pod, self.uid, 0)
            self._after(1, lambda: self.leave(Exit.INVALID_CONFIG, Reason.CHECKPOINT_MISMATCH))
        else:
            self.begin()

    def begin(self) -> None:
        """Start working."""
        raise NotImplementedError

    def message(self, reason: Reason) -> str:
        """Termination message."""
        raise NotImplementedError

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        self.runs.world.after(seconds, self._unless_ended, call)

    def _unless_ended(self, call: Callable[[], None]) -> None:
        if not self.ended:
            call()

    def leave(self, code: int, reason: Reason | None, why: str = "Error") -> None:
        """End with an exit code and, unless it crashed, a message."""
        if code and reason:
            self.runs.world.hits.add(f"exit {code}")
        elif code:
            self.runs.world.hits.add(f"crash {code} {why}")
        self._leave(code, why if code else "Completed", self.message(reason) if reason else "Traceback (most recent call last)")

    def fail(self) -> None:
        """The fault that was drawn for this pod."""
        if self.fault:
            code, why, reason = self.fault
            self.leave(code, reason, why)

    def stop(self) -> None:
        """Nothing of it happens any more."""
        self.ended = True


class Preparation(Step):
    """Checks the data."""

    def begin(self) -> None:
        self._after(self.runs.world.delay(3, 60), self.fail if self.fault else self._done)

    def _done(self) -> None:
        self.artefacts.dataset, self.artefacts.config_hash = True, config_hash(self.config)
        self.leave(0, Reason.COMPLETED)

    def message(self, reason: Reason) -> str:
        return _prepare_message(reason, self.runs.shaped)

    def terminate(self) -> None:
        """SIGTERM: there is nothing to save."""
        self._after(self.runs.world.delay(0.1, 2), lambda: self.leave(Exit.INTERRUPTED, Reason.INTERRUPTED))


class Training(Step):
    """Trains."""

    trains = True

    def begin(self) -> None:
        world, artefacts = self.runs.world, self.artefacts
        self.start = self.step = self.committed = artefacts.checkpoint
        self.pace = world.delay(20, 120)
        self.runs.begun(self.pod, self.uid, self.start)
        world.note("trainer", f"{self.pod['metadata']['name']} starts from step {self.start}")
        if artefacts.adapter:
            self.step = self.committed = artefacts.adapter_step
            self._after(world.delay(1, 5), lambda: self.leave(0, Reason.COMPLETED))
        elif self.fault and world.chance(0.3):
            self._after(world.delay(0.5, 10), self.fail)
        else:
            self._report()
            self._after(self.pace, self._chunk)

    def _chunk(self) -> None:
        """The next checkpoint is there."""
        if self.terminating:
            return
        self.step = min(TOTAL, self.step + CHUNK)
        if self.fault and self.runs.world.chance(0.4):
            self.fail()
            return
        self._commit()
        self._report()
        if self.step >= TOTAL:
            self._after(self.runs.world.delay(0.5, 5), self._finish)
        else:
            self._after(self.pace, self._chunk)

    def _commit(self) -> None:
        self.artefacts.config_hash = config_hash(self.config)
        self.artefacts.checkpoint = self.committed = max(self.artefacts.checkpoint, self.step)

    def _finish(self) -> None:
        self.artefacts.adapter, self.artefacts.adapter_step = digest(f"{self.uid} {self.step}"), self.step
        if self.fault:
            self._after(self.runs.world.delay(0.1, 2), self.fail)  # committed, but nobody is told
        else:
            self._after(self.runs.world.delay(0.1, 3), lambda: self.leave(0, Reason.COMPLETED))

    def message(self, reason: Reason) -> str:
        adapter = (f"{parsed(self.config).prefix}/adapter", self.artefacts.adapter) if reason is Reason.COMPLETED else None
        return _train_message(reason, self.step, self.start, self.committed, adapter)

    def terminate(self) -> None:
        """SIGTERM: save at the end of the step, unless what is left is only the adapter."""
        if self.terminating or self.step >= TOTAL or self.artefacts.adapter:
            return
        self.terminating = True
        slow = self.runs.world.chance(self.runs.weather.storm * 0.1)
        self._after(self.runs.world.delay(700, 900) if slow else self.runs.world.delay(1, 90), self._save)

    def _save(self) -> None:
        self.step = min(TOTAL - 1, self.step + self.runs.world.random.randrange(0, CHUNK))
        self._commit()
        self.leave(Exit.INTERRUPTED, Reason.INTERRUPTED)

    def _report(self) -> None:
        if not self.runs.world.chance(self.runs.weather.report_loss):
            values = {"step": self.step, "totalSteps": TOTAL, "loss": 1.5 - self.step / TOTAL, "checkpointStep": self.committed, "resumedFrom": self.start}
            metrics = [Metric.model_construct(name=name, value=str(value)) for name, value in values.items()]
            status = TrainerStatus.model_construct(metrics=metrics, last_updated_time="")
            self.runs.reports(self.pod, status)
