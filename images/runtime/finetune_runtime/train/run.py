"""State of one run: what is trained with which micro-batch, how far it is, what of it is safe in storage."""

import logging
import os
import shlex
import shutil
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import ADAPTER_DIR, VALIDATION_FILE, Kind, Manifest
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import Exit, Reason, StepError, TrainSummary
from finetune_runtime.report.data import State
from finetune_runtime.s3.store import Store

from . import adapter, answers, command, events, fast, leftover, microbatch, report
from .checkpoints import Staged, Uploader, best
from .divergence import Divergence
from .events import Event
from .inputs import Start
from .metrics import Metrics
from .progress import Phase, Reporter

log = logging.getLogger(__name__)
REPORT_SECONDS = 30.0  # between two uploads of the report while steps are made
KEPT = "kept"  # below scratch: the newest checkpoint, for the adapter and for going on after an out-of-memory error


class Run:
    """One pod's part of a training. Driven by the supervisor's thread."""

    def __init__(self, config: JobConfig, store: Store, scratch: Path, start: Start, reporter: Reporter) -> None:
        self._config, self._store, self._scratch, self._start, self._reporter = config, store, scratch, start, reporter
        self._output = scratch / "output"
        self._staging = scratch / "staged"
        for directory in (self._output, self._staging, scratch / "home"):
            directory.mkdir(parents=True, exist_ok=True)
        self._tokens_per_step = _tokens_per_step(config, start.dataset)
        self._metrics = Metrics(self._tokens_per_step)
        self._metrics_file = scratch / "metrics.jsonl"
        self._answers = scratch / "answers"
        self._page = report.Page(config, store, scratch / "dataset/report.json", self._metrics_file, self._answers / answers.ANSWERS, str(start.hardware))
        self._report_lock = Lock()  # so that of two uploads the newer one comes last
        self._failure = ""
        self._reported = 0.0  # time of a monotonic clock
        self._begun: tuple[int, float] | None = None  # step and time at which the current process began to train
        self._too_large: list[int] = []
        self.uploader = Uploader(store, config.prefix, config.checkpoints.keep, before=self.upload_report, committed=self._on_committed)
        self.checkpoint: Path | None = None  # local, the newest
        self._finished = self._only_evaluates = False
        self.diverged = ""
        self._divergence = Divergence(loss_scaling=command.dtype(config.tuning, start.hardware) == "float16")
        candidate, self.checkpoint = start.resume or (None, None)
        micro = microbatch.initial(
            config.training.micro_batch_size, config.rows_per_gpu, cpu_only=start.hardware.cpu_only, proven=candidate.micro_batch if candidate else 0
        )
        details = candidate.manifest.details if candidate else None
        self._fast = fast.FastPath(config, start.hardware, start.inputs.model, start.inputs.dataset, start.dataset, details)
        self._usual_micro_batch = micro
        self.declined = False  # the process cannot take the fast path: another one takes its place
        self.summary = TrainSummary(micro_batch=self._fast.plan.micro_batch if self._fast.plan else micro, fast_path=self._fast.status)
        if candidate:
            self._finished, self._only_evaluates = candidate.finished, candidate.only_evaluated
            self._update(stopped_early=candidate.manifest.final and candidate.step < candidate.manifest.total_steps)
            self.uploader.committed_step = candidate.step
            self._metrics.restore(start.metrics, candidate.step, self.summary.micro_batch)
            self._update(step=candidate.step, total_steps=candidate.manifest.total_steps, resumed_from=candidate.step)
            self._update(committed_step=candidate.step, loss=self._metrics.last("loss"), eval_loss=self._metrics.last("evalLoss"))
        reporter.update(checkpoint_step=self.summary.committed_step, resumed_from=self.summary.resumed_from)

    def is_finished(self) -> bool:
        """Whether the last step's checkpoint is there, and evaluated if there was time."""
        return self._finished

    def command(self, *, resume: bool = True) -> list[str]:
        """Arguments for ms-swift that go on from the newest local checkpoint; without `resume`, as for a run in one piece."""
        return command.arguments(
            self._config,
            self._start.inputs,
            self._start.hardware,
            micro_batch=self.summary.micro_batch,
            output=self._output,
            resume_from=self.checkpoint if resume else None,
            plan=self._fast.plan,
        )

    def environments(self, base: Mapping[str, str], events_fd: int) -> list[dict[str, str]]:
        """Environment of each training process."""
        prompts = answers.offer(self._start.inputs.dataset / VALIDATION_FILE, self._config.training.seed, self._answers)
        found = command.environment(self._config, base, self._scratch, events_fd=events_fd, staging=self._staging)
        only = {"CUDA_VISIBLE_DEVICES": self._start.hardware.only} if self._start.hardware.only else {}
        found |= prompts | self._fast.offer(self._scratch) | only
        return [found | rank for rank in command.ranks(self._config.gpus, _free_port())]

    def loading(self) -> None:
        """A new training process starts."""
        self._begun, self.declined = None, False
        self._record_command()
        self._reporter.update(phase=Phase.LOADING, step=self.summary.step, total_steps=self.summary.total_steps)

    def on_event(self, event: Event) -> None:
        """Takes in what the callback reports."""
        now = time.monotonic()
        self._update(step=event.step, total_steps=event.total_steps)
        self._fast.look()
        match event.kind:
            case events.Kind.BEGIN:
                if reason := self._fast.declined():
                    self._without_fast_path(reason)
                    return
                self._begun = (event.step, now)
                self._metrics.begin(now)
                self._reporter.update(phase=Phase.TRAINING)
            case events.Kind.LOG:
                self._on_log(event, now)
            case events.Kind.EVALUATING:
                self._reporter.update(phase=Phase.EVALUATING)
            case events.Kind.SAVING:
                self._reporter.update(phase=Phase.SAVING)
            case events.Kind.SAVED:
                self._on_saved(event)
            case events.Kind.ANSWERING:
                log.info("the training is over: the model answers validation prompts for the report")
            case events.Kind.EVALUATED | events.Kind.END:
                self._reporter.update(phase=Phase.TRAINING)
                self._finished = self._finished or (self._only_evaluates and event.kind is events.Kind.END)
        if event.kind in {events.Kind.BEGIN, events.Kind.EVALUATED, events.Kind.SAVED}:
            self._metrics.time_from(event.step, now)
        self._update(fast_path=self._fast.status)
        self._reporter.update(
            step=event.step, total_steps=event.total_steps, epoch=event.epoch, gpu_memory_gib=event.memory_gib or None, fast_path=self._fast.in_short
        )

    def fall_back(self, failure: str) -> bool:
        """After a crash before the first step of the fast path was over: whether another process is to try without it."""
        self._fast.look()
        status = self._fast.status
        if not self._fast.may_be_left or (status and status.measured) or (self._begun and self.summary.step > self._begun[0]):
            return False
        self._without_fast_path(f"failed: {failure}"[:512])
        return True

    def _without_fast_path(self, reason: str) -> None:
        self._fast.give_up(reason)
        self.declined = True
        self._update(micro_batch=self._usual_micro_batch, fast_path=self._fast.status)

    def shrink(self) -> None:
        """Less at a time after an out-of-memory error: the fast path's next plan, or half the rows. Raises StepError OutOfMemory when nothing can help."""
        micro, part = self.summary.micro_batch, self._config.rows_per_gpu
        self._too_large.append(micro)
        if self._fast.plan and (following := self._fast.shrink(loading=self._begun is None)):
            log.warning("out of memory: going on with less (%s)", self._fast.status)
            self._go_on_with(following.micro_batch)
            return
        if self._begun is None:
            raise self._out_of_memory("The model does not fit into memory", "use a smaller model or a GPU with more memory")
        half = None if self._fast.plan else microbatch.smaller(micro, part)
        if half is None:
            raise self._out_of_memory(
                f"One row of at most {self._config.training.max_length} tokens does not fit into memory beside the model (tried micro-batches: "
                f"{', '.join(map(str, self._too_large))})",
                "lower training.maxLength or tuning.lora.rank, set training.gradientCheckpointing to On, or use a GPU with more memory",
            )
        log.warning("out of memory with %d rows at a time: going on with %d rows, %d times a step", micro, half, part // half)
        self._go_on_with(half)

    def _go_on_with(self, micro_batch: int) -> None:
        step = int(self.checkpoint.name.rpartition("-")[2]) if self.checkpoint else 0
        self._metrics.rewind(step, "OutOfMemory", micro_batch)
        self._update(micro_batch=micro_batch, step=step, fast_path=self._fast.status)

    def upload_report(self) -> None:
        """Metrics and TensorBoard's files, as they are on disk, and the page that shows them. Called by two threads. Raises StepError."""
        with self._report_lock:
            report.upload(self._store, self._config.prefix, self._metrics_file, self._output / "runs")
            state = State.FAILED if self._failure else State.COMPLETED if self.summary.adapter else State.TRAINING
            self._page.upload(self.summary, state, self._failure)

    def give_up(self, patience: float, failure: str) -> None:
        """Saves what can be saved of a run that failed. Errors are logged: the run's own error is the news."""
        self._failure = failure
        self._metrics.write(self._metrics_file)
        try:
            self.drain(patience)
            self.upload_report()
        except StepError as error:
            log.warning("the last metrics or checkpoint could not be uploaded: %s", error.message)

    def drain(self, patience: float) -> None:
        """Waits until all checkpoints are committed. Raises StepError after `patience` seconds, with what could not be committed left for the next pod."""
        self._reporter.update(phase=Phase.UPLOADING)
        try:
            self.uploader.drain(patience)
        except StepError:
            if staged := self.uploader.waiting:
                leftover.keep(staged)
            raise
        finally:
            self._update(committed_step=self.uploader.committed_step)

    def commit_adapter(self) -> None:
        """Commits the last or the best checkpoint as the job's result. Raises StepError."""
        if self.checkpoint is None:
            raise ValueError("there is no checkpoint: the run is not finished")
        config, dataset, inputs = self._config, self._start.dataset, self._start.inputs
        adapter.prove_end(self.checkpoint, stopped_early=self.summary.stopped_early)
        step, chosen = self._chosen(self.checkpoint)
        self._update(loss=adapter.last_loss(chosen), eval_loss=self._metrics.at(step, "evalLoss"))  # None: SIGTERM came in its evaluation, twice
        self._record_command()
        self._metrics.write(self._metrics_file)
        self.upload_report()
        adapter.assemble(chosen, inputs.dataset, self._scratch / "adapter", config.model.source)
        details = {
            "loraRank": config.tuning.lora.rank,
            "modelType": inputs.model_type,
            "template": inputs.template,
            "reasons": dataset.details.get("reasons"),
            "system": config.dataset.system,
            "maxLength": config.training.max_length,
            "computeDtype": command.dtype(config.tuning, self._start.hardware),
            "quantization": adapter.quantization(config.tuning),
            "trainLoss": self.summary.loss,
            "evalLoss": self.summary.eval_loss,
            "bestStep": self._metrics.best_step(),
            "microBatch": self.summary.micro_batch,
            "fastPath": self.summary.fast_path.dump() if self.summary.fast_path else None,
            "lastStep": self.summary.step,
            "stoppedEarly": self.summary.stopped_early,
            "versions": self.summary.versions,
            "command": shlex.split(self.summary.command),
        }
        manifest = self._manifest(Kind.ADAPTER, step, self.summary.eval_loss, {name: value for name, value in details.items() if value is not None})
        ref = artefacts.commit(self._store, self._scratch / "adapter", f"{config.prefix}/{ADAPTER_DIR}", manifest)
        log.info("adapter committed to %s (%s base)", ref.uri, dataset.base_model)
        self._update(adapter=ref, adapter_step=step)
        try:
            self.upload_report()
        except StepError as error:
            log.warning("the last report page could not be uploaded: %s", error.message)

    def _chosen(self, last: Path) -> tuple[int, Path]:
        """Step and local directory of the checkpoint that becomes the adapter. The best one may be of an earlier pod, so it comes from storage."""
        step = int(last.name.rpartition("-")[2])
        if self._config.checkpoints.use == "Last":
            return step, last
        complete = {number: (uri, manifest) for number, uri, manifest in artefacts.checkpoints(self._store, self._config.prefix)}
        # The last one may have been evaluated by a later process than the one that saved it.
        chosen = best({number: manifest.eval_loss for number, (_, manifest) in complete.items()} | {step: self._metrics.at(step, "evalLoss")})
        if chosen is None:
            log.warning("no checkpoint was taken at an evaluated step: the last one becomes the adapter")
        if chosen in (None, step):
            return step, last
        path = self._scratch / "best" / f"checkpoint-{chosen}"
        artefacts.fetch(self._store, complete[chosen][0], path)
        log.info("checkpoint %d has the lowest evaluation loss: it becomes the adapter", chosen)
        return chosen, path

    def _record_command(self) -> None:
        self._update(command=shlex.join(command.shown(self._config, self.command(resume=False))), versions=adapter.versions())

    def _on_log(self, event: Event, now: float) -> None:
        if what := self._divergence.seen(event.values):
            self.diverged = f"The {what} at step {event.step} of {event.total_steps}: lower training.learningRate" + (
                ", or set tuning.quantization.computeDtype to bfloat16." if self._config.tuning.quantization.compute_dtype == "float16" else "."
            )
            return
        self._metrics.add(event.step, event.epoch, event.values, event.memory_gib, now=now, time=datetime.now(UTC))
        self._update(loss=self._metrics.last("loss"), eval_loss=self._metrics.last("evalLoss"))
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self._metrics.write(self._metrics_file)
            self.uploader.report()
        self._reporter.update(
            phase=Phase.TRAINING,
            loss=self.summary.loss,
            eval_loss=self.summary.eval_loss,
            learning_rate=self._metrics.last("learningRate"),
            tokens_per_second=self._tokens_per_second(event.step, now),
        )

    def _on_saved(self, event: Event) -> None:
        if self.diverged:
            return  # it was saved before the process could be ended
        staged = Path(event.path)
        # Links of our own: the trainer's rotation may take the original away, and the uploader removes the staged files.
        kept = self._scratch / KEPT
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(staged, kept / staged.name, copy_function=os.link)
        self.checkpoint = kept / staged.name
        self._finished = event.final
        self._update(stopped_early=event.final and event.step < event.total_steps)
        self._metrics.write(self._metrics_file)
        details: dict[str, object] = {"microBatch": self.summary.micro_batch, **self._fast.details}
        self._fast.saved()
        manifest = self._manifest(Kind.CHECKPOINT, event.step, self._metrics.at(event.step, "evalLoss"), details)
        self.uploader.submit(Staged(staged, manifest.model_copy(update={"final": event.final})))
        self._reporter.update(phase=Phase.TRAINING)

    def _on_committed(self, step: int) -> None:
        """Called by the uploader's thread."""
        self._reporter.update(checkpoint_step=step)

    def _manifest(self, kind: Kind, step: int, eval_loss: float | None, details: dict[str, object]) -> Manifest:
        dataset = self._start.dataset
        return Manifest(
            kind=kind,
            files=[],
            config_hash=self._config.config_hash(),
            base_model=self._config.model.source,
            base_revision=dataset.base_revision,
            dataset_sha256=dataset.dataset_sha256,
            step=step,
            total_steps=self.summary.total_steps,
            eval_loss=eval_loss,
            details=details,
        )

    def _tokens_per_second(self, step: int, now: float) -> float | None:
        """Average since the process began to train, evaluations included; rows are counted as prepare measured them."""
        if not (self._tokens_per_step and self._begun and step > self._begun[0]):
            return None
        return self._tokens_per_step * (step - self._begun[0]) / (now - self._begun[1])

    def _out_of_memory(self, cause: str, cure: str) -> StepError:
        return StepError(Exit.OUT_OF_MEMORY, Reason.OUT_OF_MEMORY, f"{cause} of {self._start.hardware}: {cure}.")

    def _update(self, **fields: object) -> None:
        self.summary = self.summary.model_copy(update=fields)


def _free_port() -> int:
    """For the meeting of several processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tokens_per_step(config: JobConfig, dataset: Manifest) -> float:
    """On average, as prepare measured the rows; 0: not known."""
    tokens, rows = dataset.details.get("summary", {}).get("tokens", 0), dataset.details.get("trainRows", 0)
    return float(tokens / rows * config.training.effective_batch_size) if rows else 0.0
