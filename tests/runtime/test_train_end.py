"""What the supervisor makes of a training process's end: another program in the place of ms-swift, everything else as in a pod."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import Exit, Reason
from finetune_runtime.s3.store import Store
from tests.runtime.support import ROOT, MakeConfig, Pods, Step, steps

OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB."
PROGRAM = """
import os, pathlib, signal, sys, time
from finetune_runtime.handled import told
from finetune_runtime.train.events import EVENTS_FD, STAGING, Event, Kind

def tell(kind, step=0, **fields):
    os.write(int(os.environ[EVENTS_FD]), f"{Event(kind, step, 20, **fields).encode()}\\n".encode())

def rows():
    return sys.argv[sys.argv.index("--per_device_train_batch_size") + 1]
"""

Train = Callable[..., Step]


@pytest.fixture
def train(pods: Pods, job_config: MakeConfig, commit_dataset: Callable[[JobConfig], None], tmp_path: Path) -> Train:
    """Starts a pod of the job with these lines of a program where ms-swift would be."""

    def start(config: JobConfig, *lines: str) -> Step:
        commit_dataset(config)
        for package in ("swift", "swift/cli"):
            (tmp_path / "programs" / package).mkdir(parents=True)
            (tmp_path / "programs" / package / "__init__.py").touch()
        (tmp_path / "programs/swift/cli/sft.py").write_text("\n".join([PROGRAM, *lines]))
        return pods.start(config, PYTHONPATH=os.pathsep.join([str(tmp_path / "programs"), str(ROOT / "images/runtime")]))

    return start


@pytest.fixture
def usual(job_config: MakeConfig) -> JobConfig:
    return job_config(training={"fastPath": "Off", "microBatchSize": 4})


def test_a_process_that_runs_out_of_memory_is_followed_by_smaller_ones_until_there_are_none(train: Train, usual: JobConfig) -> None:
    pod = train(usual, "tell(Kind.BEGIN)", "print('rows', rows())", f"raise SystemExit('{OUT_OF_MEMORY}')")
    result = pod.end(Exit.OUT_OF_MEMORY)
    assert (result.reason, "tried micro-batches: 4, 2, 1" in result.message) == (Reason.OUT_OF_MEMORY, True), result.message
    assert [line for line in pod.text().splitlines() if line.startswith("rows ")] == ["rows 4", "rows 2", "rows 1"]


def test_memory_that_is_short_before_the_first_step_is_the_models(train: Train, usual: JobConfig) -> None:
    result = train(usual, "print('[rank1]: Failed to CUDA calloc async 8 bytes')", "raise SystemExit(1)").end(Exit.OUT_OF_MEMORY)
    assert "The model does not fit into memory" in result.message


def test_who_is_killed_has_not_run_out_of_gpu_memory_whatever_he_said_before(train: Train, usual: JobConfig) -> None:
    result = train(usual, "tell(Kind.BEGIN)", f"print('{OUT_OF_MEMORY}', flush=True)", "os.kill(os.getpid(), signal.SIGKILL)").end(Exit.CRASH)
    assert (result.reason, "resources.memory" in result.message) == (Reason.TRAINING_CRASHED, True)


def test_memory_that_a_process_came_to_terms_with_is_not_why_it_crashed_later(train: Train, usual: JobConfig) -> None:
    lines = ["try:", f"    raise MemoryError('{OUT_OF_MEMORY}')", "except MemoryError as error:", "    print(f'no CUDA graphs\\n{told(error)}')"]
    result = train(usual, *lines, "raise ValueError('a broken row')").end(Exit.CRASH)
    assert (result.reason, result.message) == (Reason.TRAINING_CRASHED, "The training process ended with code 1: ValueError: a broken row")


def test_a_crash_on_the_fast_path_that_is_required_is_not_tried_without_it(train: Train, job_config: MakeConfig) -> None:
    pod = train(job_config(training={"fastPath": "Required", "gradientCheckpointing": "Off"}), "print('started')", "raise ValueError('the fast path')")
    assert pod.end(Exit.CRASH).message.endswith("ValueError: the fast path")
    assert pod.text().splitlines().count("started") == 1


def test_a_checkpoint_that_waits_is_saved_also_where_the_training_is_refused(train: Train, job_config: MakeConfig, store: Store) -> None:
    config = job_config(training={"fastPath": "Required", "gradientCheckpointing": "Off"})
    lines = [
        "staged = pathlib.Path(os.environ[STAGING]) / 'checkpoint-5'",
        "staged.mkdir()",
        "(staged / 'adapter_model.safetensors').write_bytes(b'weights')",
        "tell(Kind.SAVED, 5, path=str(staged))",
        "tell(Kind.BEGIN, 5)",
        "time.sleep(60)",
    ]
    result = train(config, *lines).end(Exit.INVALID_CONFIG)
    assert "fastPath is Required" in result.message
    assert steps(store, config) == [5]
