"""Which checkpoint becomes the adapter, when training ends, and what storage that is down at the end costs."""

from collections.abc import Callable

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import Manifest
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.extra_args import ALLOWED
from finetune_runtime.contract.result import Exit, Reason, TrainSummary
from finetune_runtime.s3.store import Store
from tests.runtime.support import CommitRows, MakeConfig, Pods, Proxy, Server, metrics, opening_hours, steps

# What is learned is not what is asked for, so that the evaluation loss soon rises.
OVERSHOOTING = {"learningRate": "0.1", "epochs": 2, "evalSteps": 5}
ROWS = {
    "train": [opening_hours(3)] * 40,
    "val": [[{"role": "user", "content": "Tell me."}, {"role": "assistant", "content": "Please ask at the desk about your appointment."}]] * 2,
}


def weights(manifest: Manifest | None) -> str:
    assert manifest is not None
    [digest] = [entry.sha256 for entry in manifest.files if entry.path == "adapter_model.safetensors"]
    return digest


def adapter(store: Store, summary: TrainSummary | None) -> Manifest:
    assert summary is not None
    assert summary.adapter is not None
    found = artefacts.load(store, summary.adapter.uri)
    assert found is not None
    return found


def test_the_last_checkpoint_becomes_the_adapter_although_an_earlier_one_was_better_and_the_best_one_on_request(
    pods: Pods,
    job_config: MakeConfig,
    commit_rows: CommitRows,
    store: Store,
) -> None:
    # transformers removes the last checkpoint at the end of a training whose best one is another, before anybody is told.
    config = job_config(training=OVERSHOOTING, checkpoints={"keep": 1})
    commit_rows(config, **ROWS)
    last = pods.start(config).end(Exit.DONE)
    losses = {record["step"]: record["evalLoss"] for record in metrics(store, config) if "evalLoss" in record}
    best = min(losses, key=lambda step: losses[step])
    assert best < 20, f"the case needs an evaluation loss that rises again: {losses}"
    assert steps(store, config) == [20, best]
    made = adapter(store, last.train)
    assert (made.step, made.eval_loss) == (20, losses[20])
    assert weights(made) == weights(artefacts.load(store, f"{config.prefix}/checkpoints/checkpoint-20"))

    artefacts.delete(store, f"{config.prefix}/adapter")
    wanted = pods.start(config.model_copy(update={"checkpoints": config.checkpoints.model_copy(update={"use": "Best"})})).end(Exit.DONE)
    assert wanted.train is not None
    assert (wanted.train.step, wanted.train.adapter_step) == (20, best)
    made = adapter(store, wanted.train)
    assert (made.step, made.eval_loss) == (best, losses[best])
    assert weights(made) == weights(artefacts.load(store, f"{config.prefix}/checkpoints/checkpoint-{best}"))
    assert "swift.cli.sft" not in pods.started[1].text().replace(wanted.train.command, "")


def test_training_stops_early_and_stays_stopped(
    pods: Pods,
    job_config: MakeConfig,
    commit_rows: CommitRows,
    store: Store,
) -> None:
    config = job_config(training=OVERSHOOTING | {"epochs": 4, "earlyStopping": {"patience": 1}}, checkpoints={"everySteps": 7})
    commit_rows(config, **ROWS)
    first = pods.start(config).end(Exit.DONE)
    assert first.train is not None
    stopped = first.train.step
    assert (first.train.stopped_early, first.train.total_steps, first.train.committed_step) == (True, 40, stopped)
    assert stopped < 40
    assert stopped % 5 == 0
    assert "stopped early" in first.message
    assert steps(store, config)[0] == stopped
    assert adapter(store, first.train).details["stoppedEarly"] is True

    artefacts.delete(store, f"{config.prefix}/adapter")
    again = pods.start(config).end(Exit.DONE)
    assert again.train is not None
    assert (again.train.step, again.train.stopped_early) == (stopped, True)
    assert "starting " not in pods.started[1].text()


def test_what_storage_did_not_take_is_committed_by_the_next_pod_when_the_scratch_volume_outlives_pods(
    pods: Pods,
    config: JobConfig,
    store: Store,
    s3_server: Server,
) -> None:
    proxy = Proxy(s3_server.endpoint)
    storage = config.storage.model_copy(update={"endpoint": proxy.endpoint})
    broken = config.model_copy(update={"storage": storage, "storage_timeout_seconds": 10})
    pod = pods.start(broken)
    pod.wait_for("checkpoint 10 committed")
    proxy.down = True
    result = pod.end(Exit.STORAGE_UNAVAILABLE)
    assert result.reason == Reason.STORAGE_UNAVAILABLE
    assert result.train is not None
    assert result.train.step == 20
    assert steps(store, config)[0] < 20
    proxy.close()

    completed = pods.start(config, FINETUNE_SCRATCH=str(pod.scratch)).end(Exit.DONE)
    assert completed.train is not None
    assert (completed.train.step, completed.train.resumed_from) == (20, 20)
    assert "checkpoint 20, left by an earlier pod, is committed" in pods.started[1].text()
    assert "starting " not in pods.started[1].text()
    assert [record["step"] for record in metrics(store, config)] == list(range(1, 21))


def test_every_accepted_argument_is_one_that_the_trainer_knows() -> None:
    from swift.arguments import SftArguments

    assert set(ALLOWED) <= set(SftArguments.__dataclass_fields__)


def test_further_arguments_take_effect(
    pods: Pods,
    job_config: MakeConfig,
    commit_dataset: Callable[[JobConfig], None],
    store: Store,
) -> None:
    config = job_config(training={"epochs": 1, "extraArgs": {"lr_scheduler_type": "constant", "optim": "adamw_torch", "weight_decay": "0"}})
    commit_dataset(config)
    result = pods.start(config).end(Exit.DONE)
    assert result.train is not None
    assert "--lr_scheduler_type constant" in result.train.command
    assert result.train.versions["ms-swift"]
    assert {record["learningRate"] for record in metrics(store, config)} == {0.001}
