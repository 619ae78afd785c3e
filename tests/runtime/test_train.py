"""The train step as a pod runs it: real ms-swift, real S3, real signals."""

import ctypes
import os
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import Kind, Manifest
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.fast_path import FastPathStatus
from finetune_runtime.contract.result import Exit, Reason
from finetune_runtime.s3.store import Store
from tests.runtime.support import CommitRows, MakeConfig, Pods, Proxy, Server, free_port, metrics, opening_hours, steps, wait_for

TGKILL = 234  # system call of x86-64: a signal for one thread


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def sigterm_is_blocked(pid: int) -> bool:
    [blocked] = [line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk:")]
    return bool(int(blocked, 16) >> (signal.SIGTERM - 1) & 1)


def alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_a_job_trains_to_the_end_and_commits_everything(pods: Pods, config: JobConfig, store: Store, tmp_path: Path) -> None:
    result = pods.start(config).end(Exit.DONE)

    assert (result.step, result.reason) == ("train", Reason.COMPLETED)
    train = result.train
    assert train is not None
    assert train.adapter is not None
    assert (train.step, train.total_steps, train.committed_step, train.resumed_from, train.micro_batch) == (20, 20, 20, 0, 4)

    assert train.fast_path == FastPathStatus(used=False, reason="no CUDA GPU")

    adapter = artefacts.fetch(store, train.adapter.uri, tmp_path / "adapter", train.adapter.manifest_sha256)
    assert (adapter.kind, adapter.step, adapter.total_steps, adapter.base_model) == (Kind.ADAPTER, 20, 20, config.model.source)
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert files >= {"adapter_model.safetensors", "adapter_config.json", "args.json", "chat_template.jinja", "parity.json"}
    assert not files & {"optimizer.pt", "training_args.bin", "rng_state.pth"}
    details = adapter.details
    assert (details["loraRank"], details["modelType"], details["template"], details["reasons"]) == (8, "qwen3", "qwen3", False)
    assert details["quantization"] == {"method": "bnb", "bits": 4, "type": "nf4", "doubleQuant": True, "computeDtype": "bfloat16"}
    assert details["trainLoss"] == pytest.approx(train.loss)
    assert details["versions"]["ms-swift"]
    assert "--resume_from_checkpoint" not in details["command"]

    assert steps(store, config) == [20, 15]  # keep: 2
    assert {item.uri.split("/")[-2] for item in store.list(f"{config.prefix}/checkpoints/")} == {"checkpoint-15", "checkpoint-20"}

    records = metrics(store, config)
    assert [record["step"] for record in records] == list(range(1, 21))
    assert [record["step"] for record in records if "evalLoss" in record] == [10, 20]
    assert all({"epoch", "loss", "learningRate", "gradNorm", "tokenAccuracy", "seconds", "time"} <= set(record) for record in records)
    assert not [record for record in records if "resumedFrom" in record]
    assert [item for item in store.list(f"{config.prefix}/report/tensorboard/events.out.tfevents.") if item.size > 1000]

    started = time.monotonic()
    again = pods.start(config).end(Exit.DONE)
    assert again.train is not None
    assert (again.train.adapter, again.train.step, again.train.loss) == (train.adapter, 20, train.loss)
    assert "starting" not in pods.started[1].text()
    assert time.monotonic() - started < 30


def test_a_checkpoint_at_the_last_step_is_committed_without_training(pods: Pods, config: JobConfig, store: Store) -> None:
    first = pods.start(config).end(Exit.DONE)
    artefacts.delete(store, f"{config.prefix}/adapter")  # as if the pod had ended between the two commits
    second = pods.start(config).end(Exit.DONE)
    assert first.train is not None
    assert second.train is not None
    assert second.train.adapter is not None
    assert second.train.loss == first.train.loss
    assert "swift.cli.sft" not in pods.started[1].text()
    manifest = artefacts.load(store, second.train.adapter.uri)
    assert manifest is not None
    assert manifest.details["evalLoss"] == first.train.eval_loss


def test_sigterm_saves_and_the_next_pod_goes_on_where_it_stopped(pods: Pods, config: JobConfig, store: Store) -> None:
    pod = pods.start(config)
    pod.wait_for("'global_step/max_steps': '7/20'")
    started = time.monotonic()
    pod.process.terminate()
    time.sleep(0.2)
    pod.process.terminate()  # a second one changes nothing
    interrupted = pod.end(Exit.INTERRUPTED)
    assert time.monotonic() - started < 60
    assert (interrupted.reason, interrupted.train is not None) == (Reason.INTERRUPTED, True)
    assert interrupted.train is not None
    stopped = interrupted.train.step
    assert 7 <= stopped < 20
    assert interrupted.train.committed_step == stopped
    assert steps(store, config)[0] == stopped
    assert [record["step"] for record in metrics(store, config)] == list(range(1, stopped + 1))

    completed = pods.start(config).end(Exit.DONE)
    assert completed.train is not None
    assert (completed.train.step, completed.train.resumed_from) == (20, stopped)
    records = metrics(store, config)
    assert [record["step"] for record in records] == list(range(1, 21))
    assert [record["step"] for record in records if record.get("resumedFrom") == stopped] == [stopped + 1]
    assert all(earlier["seconds"] <= later["seconds"] for earlier, later in pairwise(records))
    # The schedule went on too: it is a cosine that has come down to nothing at the end.
    assert records[-1]["learningRate"] == 0
    assert len({item.uri for item in store.list(f"{config.prefix}/report/tensorboard/")}) == 2


def test_a_resumed_run_learns_what_an_unbroken_one_learns(pods: Pods, config: JobConfig, job_config: MakeConfig, store: Store) -> None:
    unbroken = pods.start(config).end(Exit.DONE)
    losses = {record["step"]: record["loss"] for record in metrics(store, config)}

    broken = job_config(job={"uid": "0b7c6c1e-0000-4000-8000-000000000002"})
    directory, manifest = pods.directory / "dataset", artefacts.load(store, f"{config.prefix}/dataset")
    assert manifest is not None
    artefacts.fetch(store, f"{config.prefix}/dataset", directory)
    artefacts.commit(store, directory, f"{broken.prefix}/dataset", manifest)
    pod = pods.start(broken)
    pod.wait_for("'global_step/max_steps': '12/20'")  # in the middle of the second epoch
    pod.process.terminate()
    pod.end(Exit.INTERRUPTED)
    resumed = pods.start(broken).end(Exit.DONE)

    assert unbroken.train is not None
    assert resumed.train is not None
    assert resumed.train.resumed_from >= 12
    assert resumed.train.loss == pytest.approx(unbroken.train.loss, abs=1e-3)
    assert {record["step"]: record["loss"] for record in metrics(store, broken)} == pytest.approx(losses, abs=1e-3)


def test_a_killed_pod_takes_its_trainer_along_and_loses_only_what_was_not_committed(pods: Pods, config: JobConfig, store: Store) -> None:
    pod = pods.start(config)
    pod.wait_for("checkpoint 5 committed")
    trainer = children(pod.process.pid)[0]
    pod.kill()
    wait_for("the trainer's end", lambda: not alive(trainer), 10)
    committed = steps(store, config)[0]

    completed = pods.start(config).end(Exit.DONE)
    assert completed.train is not None
    assert completed.train.resumed_from == committed
    assert [record["step"] for record in metrics(store, config)] == list(range(1, 21))


def test_a_pod_killed_in_the_middle_of_an_upload_leaves_nothing_that_is_trusted(pods: Pods, config: JobConfig, store: Store, s3_server: Server) -> None:
    proxy = Proxy(s3_server.endpoint)
    proxy.stall_on = b"checkpoint-10/optimizer.pt"
    storage = config.storage.model_copy(update={"endpoint": proxy.endpoint})
    pod = pods.start(config.model_copy(update={"storage": storage}))
    wait_for("the upload of checkpoint 10", proxy.stalled.is_set, 240)
    wait_for("the upload of its other files", lambda: store.exists(f"{config.prefix}/checkpoints/checkpoint-10/adapter_model.safetensors"))
    pod.kill()
    proxy.close()
    assert steps(store, config) == [5]

    completed = pods.start(config).end(Exit.DONE)
    assert completed.train is not None
    assert completed.train.resumed_from == 5
    assert [record["step"] for record in metrics(store, config)] == list(range(1, 21))
    assert steps(store, config) == [20, 15]
    assert {item.uri.split("/")[-2] for item in store.list(f"{config.prefix}/checkpoints/")} == {"checkpoint-15", "checkpoint-20"}


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(pods: Pods, config: JobConfig, store: Store) -> None:
    pod = pods.start(config)
    pod.wait_for("checkpoint 10 committed")
    pod.kill()
    newest, before = steps(store, config)[:2]
    store.put(f"{config.prefix}/checkpoints/checkpoint-{newest}/optimizer.pt", b"not what the manifest says")
    completed = pods.start(config).end(Exit.DONE)
    assert completed.train is not None
    assert completed.train.resumed_from == before
    assert [record["step"] for record in metrics(store, config)] == list(range(1, 21))


def test_sigterm_before_anything_is_imported_is_an_interruption_too(pods: Pods, config: JobConfig) -> None:
    pod = pods.start(config)
    wait_for("the first lines of the step", lambda: pod.process.poll() is not None or sigterm_is_blocked(pod.process.pid), 30)
    pod.process.terminate()
    assert pod.end(Exit.INTERRUPTED).reason == Reason.INTERRUPTED


def test_sigterm_while_the_model_loads_ends_at_once(pods: Pods, config: JobConfig, store: Store) -> None:
    pod = pods.start(config)
    pod.wait_for("starting ")
    time.sleep(1)
    started = time.monotonic()
    pod.process.terminate()
    result = pod.end(Exit.INTERRUPTED)
    assert time.monotonic() - started < 20
    assert result.train is not None
    assert (result.train.committed_step, steps(store, config)) == (0, [])


@pytest.mark.long
def test_sigterm_in_a_long_evaluation_saves_the_step_before_it(pods: Pods, job_config: MakeConfig, commit_rows: CommitRows, store: Store) -> None:
    config = job_config(training={"epochs": 2, "effectiveBatchSize": 20, "microBatchSize": 1, "maxLength": 4096, "evalSteps": 2}, checkpoints={"everySteps": 4})
    commit_rows(config, val=[opening_hours(800)] * 20)

    pod = pods.start(config, FINETUNE_EVALUATION_PATIENCE="1")
    pod.wait_for("'global_step/max_steps': '2/4'")
    pod.process.terminate()
    result = pod.end(Exit.INTERRUPTED)
    assert result.train is not None
    assert (result.train.step, result.train.committed_step) == (2, 2)
    assert "eval_runtime" not in pod.text(), "the case needs an evaluation that takes longer than the patience"

    completed = pods.start(config).end(Exit.DONE)
    assert completed.train is not None
    assert (completed.train.resumed_from, completed.train.step) == (2, 4)
    records = metrics(store, config)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert [record["step"] for record in records if "evalLoss" in record] == [4]


def test_sigterm_while_inputs_are_fetched_ends_at_once(pods: Pods, config: JobConfig, s3_server: Server) -> None:
    proxy = Proxy(s3_server.endpoint)
    proxy.stall_on = b"/dataset/train.jsonl"
    storage = config.storage.model_copy(update={"endpoint": proxy.endpoint})
    pod = pods.start(config.model_copy(update={"storage": storage}))
    wait_for("the download of the dataset", proxy.stalled.is_set, 120)
    started = time.monotonic()
    pod.process.terminate()
    pod.end(Exit.INTERRUPTED)
    assert time.monotonic() - started < 20
    proxy.close()


def test_sigterm_that_the_kernel_gives_to_another_thread_is_noticed_too(pods: Pods, config: JobConfig, s3_server: Server) -> None:
    proxy = Proxy(s3_server.endpoint)
    proxy.stall_on = b"/dataset/train.jsonl"
    storage = config.storage.model_copy(update={"endpoint": proxy.endpoint})
    pod = pods.start(config.model_copy(update={"storage": storage}))
    wait_for("the download of the dataset", proxy.stalled.is_set, 120)
    started, pid = time.monotonic(), pod.process.pid
    other = next(thread.name for thread in Path(f"/proc/{pid}/task").iterdir() if thread.name != str(pid))
    assert ctypes.CDLL(None).syscall(TGKILL, pid, int(other), int(signal.SIGTERM)) == 0
    pod.end(Exit.INTERRUPTED)
    assert time.monotonic() - started < 20
    proxy.close()


def test_a_trainer_that_the_kernel_kills_is_a_crash_with_the_likely_cause(pods: Pods, config: JobConfig, store: Store) -> None:
    pod = pods.start(config)
    pod.wait_for("checkpoint 5 committed")
    os.kill(children(pod.process.pid)[0], signal.SIGKILL)
    result = pod.end(Exit.CRASH)
    assert result.reason == Reason.TRAINING_CRASHED
    assert "resources.memory" in result.message
    assert result.train is not None
    assert result.train.committed_step >= 5
    assert metrics(store, config)[-1]["step"] >= 5


def test_out_of_memory_goes_on_from_the_last_checkpoint_with_smaller_micro_batches(
    pods: Pods, job_config: MakeConfig, commit_rows: CommitRows, store: Store
) -> None:
    config = job_config(
        training={"epochs": 2, "effectiveBatchSize": 32, "microBatchSize": 32, "maxLength": 4096, "evalSteps": 2}, checkpoints={"everySteps": 1}
    )
    # Memory runs out in the evaluation of the second step, when the first step's checkpoint is there: only validation rows are long.
    commit_rows(config, train=[opening_hours(3)] * 64, val=[opening_hours(800)] * 32)

    pod = pods.start(config, wrapper=["prlimit", f"--as={3600 * 2**20}"])
    result = pod.end(Exit.DONE, 400)

    assert result.train is not None
    assert (result.train.step, result.train.total_steps) == (4, 4)
    assert result.train.micro_batch < 32
    assert "out of memory with 32 rows at a time: going on with 16 rows, 2 times a step" in pod.text()
    records = metrics(store, config)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert [record["step"] for record in records if record.get("resumedFrom") == 1] == [2]
    checkpoint = artefacts.load(store, f"{config.prefix}/checkpoints/checkpoint-4")
    assert checkpoint is not None
    assert checkpoint.details["microBatch"] == result.train.micro_batch


def test_a_trainer_that_fails_says_why(pods: Pods, config: JobConfig, sources: Path) -> None:
    weights = sources / "pvc/models/tiny-qwen3/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = pods.start(config).end(Exit.CRASH)
    assert result.reason == Reason.TRAINING_CRASHED
    assert "SafetensorError" in result.message


def test_a_loss_that_is_no_number_ends_the_run_at_once(pods: Pods, job_config: MakeConfig, commit_dataset: Callable[[JobConfig], None]) -> None:
    config = job_config(training={"learningRate": "1e30"})
    commit_dataset(config)
    result = pods.start(config).end(Exit.CRASH)
    assert result.reason == Reason.TRAINING_CRASHED
    assert "lower training.learningRate" in result.message
    assert result.train is not None
    assert result.train.step < 20


@pytest.mark.parametrize(
    ("overrides", "case"),
    [
        ({"tuning": {"method": "LoRA"}}, "LoRA"),
        ({"tuning": {"quantization": {"bits": 8}}}, "8 bits"),
        pytest.param(
            {"tuning": {"quantization": {"type": "fp4", "doubleQuant": False, "computeDtype": "float32"}}, "training": {"effectiveBatchSize": 20}},
            "fp4 in float32",
            marks=pytest.mark.long,
        ),
        pytest.param(
            {"tuning": {"quantization": {"computeDtype": "float16"}, "lora": {"targetModules": ["q_proj", "v_proj"]}}},
            "float16, some modules",
            marks=pytest.mark.long,
        ),
    ],
)
def test_other_kinds_of_tuning_train_too(
    pods: Pods, job_config: MakeConfig, commit_dataset: Callable[[JobConfig], None], store: Store, overrides: dict[str, Any], case: str
) -> None:
    config = job_config(**{"training": {"epochs": 1, "effectiveBatchSize": 20}} | overrides)
    commit_dataset(config)
    result = pods.start(config).end(Exit.DONE)
    assert result.train is not None
    assert result.train.adapter is not None, case
    manifest = artefacts.load(store, result.train.adapter.uri)
    assert manifest is not None
    assert (manifest.details.get("quantization") is None) == (config.tuning.method == "LoRA")


def test_without_a_gpu_nothing_starts_unless_the_cpu_is_allowed(pods: Pods, config: JobConfig) -> None:
    result = pods.start(config.model_copy(update={"allow_cpu": False})).end(Exit.CRASH)
    assert result.reason == Reason.GPU_NOT_VISIBLE
    assert "driver" in result.message


def test_without_a_prepared_dataset_nothing_starts(pods: Pods, job_config: MakeConfig) -> None:
    result = pods.start(job_config()).end(Exit.DATA_INVALID)
    assert result.reason == Reason.DATASET_NOT_FOUND
    assert "prepare" in result.message


def test_a_dataset_of_another_configuration_is_refused(pods: Pods, config: JobConfig, job_config: MakeConfig) -> None:
    result = pods.start(job_config(training={"epochs": 3})).end(Exit.DATA_INVALID)
    assert "another configuration" in result.message


@pytest.mark.parametrize("kind", [Kind.CHECKPOINT, Kind.ADAPTER])
def test_what_another_configuration_left_is_never_taken_over(pods: Pods, config: JobConfig, store: Store, tmp_path: Path, kind: Kind) -> None:
    (tmp_path / "left").mkdir()
    (tmp_path / "left/adapter_model.safetensors").write_bytes(b"weights")
    name = "adapter" if kind is Kind.ADAPTER else "checkpoints/checkpoint-5"
    other = Manifest(kind=kind, files=[], config_hash="other", base_model=config.model.source, step=5, total_steps=20)
    artefacts.commit(store, tmp_path / "left", f"{config.prefix}/{name}", other)
    result = pods.start(config).end(Exit.INVALID_CONFIG)
    assert result.reason == Reason.CHECKPOINT_MISMATCH
    assert name in result.message


def test_storage_faults_have_their_reasons(pods: Pods, config: JobConfig) -> None:
    def storage(**changes: str) -> JobConfig:
        return config.model_copy(update={"storage": config.storage.model_copy(update=changes)})

    cases = [
        (config, {"AWS_SECRET_ACCESS_KEY": "wrong"}, Reason.ACCESS_DENIED),
        (config, {"AWS_ACCESS_KEY_ID": ""}, Reason.ACCESS_DENIED),
        (storage(uri="s3://no-such-bucket/models"), {}, Reason.BUCKET_NOT_FOUND),
        (storage(endpoint=f"http://127.0.0.1:{free_port()}"), {}, Reason.STORAGE_UNAVAILABLE),
    ]
    running = [(pods.start(case, **environment), reason) for case, environment, reason in cases]
    for pod, reason in running:
        assert pod.end(Exit.STORAGE_UNAVAILABLE).reason == reason
