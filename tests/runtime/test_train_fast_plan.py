"""The fast path under the supervisor: planned, answered, remembered by checkpoints and gone on from by the next pod. On a CPU, in plain torch."""

from collections.abc import Callable

from finetune_runtime import artefacts
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import Exit
from finetune_runtime.s3.store import Store
from tests.runtime.support import MakeConfig, Pods


def test_a_job_that_requires_the_fast_path_takes_it_and_goes_on_with_it(
    pods: Pods, job_config: MakeConfig, commit_dataset: Callable[[JobConfig], None], store: Store
) -> None:
    config = job_config(training={"fastPath": "Required", "gradientCheckpointing": "Off"})
    commit_dataset(config)
    first = pods.start(config)
    first.wait_for("'global_step/max_steps': '6/20'")
    first.process.terminate()
    interrupted = first.end(Exit.INTERRUPTED).train
    assert interrupted is not None
    assert 0 < interrupted.committed_step < 20
    checkpoint = artefacts.checkpoints(store, config.prefix)[0][2]
    remembered = checkpoint.details["fastPath"]
    assert (remembered["loraDtype"], remembered["optimizer"], remembered["steppedDown"]) == ("float32", "adamw_torch_fused", False)

    train = pods.start(config).end(Exit.DONE).train
    assert train is not None
    assert train.fast_path is not None
    assert (train.step, train.resumed_from, train.micro_batch) == (20, interrupted.committed_step, 4)
    assert (train.fast_path.used, train.fast_path.reason, train.fast_path.micro_batch_size) == (True, "", 4)
    assert "fast_path.py --callbacks fast_path finetune" in train.command
