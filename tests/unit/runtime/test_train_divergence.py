"""What is no number ends a training, and nothing of it is kept."""

import json
from collections.abc import Callable
from math import inf, nan
from pathlib import Path

import pytest

from finetune_runtime.contract.artefact import Kind, Manifest
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.hardware import Gpu, Hardware
from finetune_runtime.s3.store import Store
from finetune_runtime.train import events
from finetune_runtime.train.adapter import prove_end
from finetune_runtime.train.command import Inputs
from finetune_runtime.train.divergence import WEIGHTS, Divergence, broken
from finetune_runtime.train.events import Event
from finetune_runtime.train.inputs import Start
from finetune_runtime.train.progress import Reporter
from finetune_runtime.train.run import Run

CASES = [
    pytest.param({"loss": 2.5, "grad_norm": 0.5, "learning_rate": 1e-4}, "", id="a step as it should be"),
    pytest.param({"eval_loss": 2.5, "eval_runtime": nan}, "", id="nobody asks how long it took"),
    pytest.param({}, "", id="nothing is logged"),
    pytest.param({"loss": nan, "grad_norm": nan}, "loss became nan", id="the loss, which is named first"),
    pytest.param({"loss": inf}, "loss became inf", id="a loss without end"),
    pytest.param({"loss": 2.5, "grad_norm": nan}, "", id="gradients of one step, which ms-swift leaves out"),
    pytest.param({"eval_loss": nan}, "evaluation loss became nan", id="the evaluation after the step that went wrong"),
    pytest.param({WEIGHTS: nan}, "largest weight of the adapter became nan", id="weights that are to be saved"),
]


@pytest.mark.parametrize(("values", "wanted"), CASES)
def test_what_has_to_be_a_number(values: dict[str, float], wanted: str) -> None:
    assert broken(values) == Divergence(loss_scaling=False).seen(values) == wanted


@pytest.mark.parametrize(
    ("norms", "loss_scaling", "ends"),
    [
        pytest.param([0.5, nan, 0.5, nan, nan, 0.5, nan], False, False, id="a bad row now and then"),
        pytest.param([0.5, nan, nan, inf], False, True, id="every step from one on"),
        pytest.param([inf, inf, inf, inf], True, False, id="the loss scale of float16 is found"),
    ],
)
def test_steps_that_taught_nothing_end_a_training_when_they_do_not_end(norms: list[float], loss_scaling: bool, ends: bool) -> None:
    divergence = Divergence(loss_scaling=loss_scaling)
    told = [divergence.seen({"loss": 2.5, "grad_norm": norm}) for norm in norms]
    assert (any(told[:-1]), bool(told[-1])) == (False, ends)
    assert divergence.seen({"loss": nan}), "whatever the gradients are"


@pytest.mark.parametrize(
    ("history", "wanted"),
    [
        pytest.param([{"loss": 2.5, "grad_norm": 0.5, "step": 20}, {"eval_loss": 2.0, "step": 20}], "", id="it went well"),
        pytest.param([{"loss": 2.5, "step": 10}, {"loss": nan, "step": 20}], "loss became nan", id="the last loss"),
        pytest.param([{"loss": 2.5, "step": 20}, {"eval_loss": nan, "step": 20}], "evaluation loss became nan", id="the last evaluation"),
    ],
)
def test_an_end_is_proven_by_the_newest_of_each_value(history: list[dict[str, float]], wanted: str, tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 20, "max_steps": 20, "log_history": history}))
    if not wanted:
        prove_end(tmp_path, stopped_early=False)
        return
    with pytest.raises(StepError, match=wanted) as caught:
        prove_end(tmp_path, stopped_early=False)
    assert (caught.value.code, caught.value.reason) == (Exit.CRASH, Reason.TRAINING_CRASHED)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Makes a Run of 20 steps whose storage is down."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "unused")

    def make(compute_dtype: str = "bfloat16") -> Run:
        config = JobConfig.model_validate(
            {
                "job": {"namespace": "n", "name": "j", "uid": "u"}, "model": {"source": "s3://m/q"}, "dataset": {"train": [{"source": "s3://d/t.json"}]},
                "tuning": {"quantization": {"computeDtype": compute_dtype}}, "training": {"fastPath": "Off"}, "checkpoints": {},
                "storage": {"uri": "s3://models/x", "endpoint": "http://127.0.0.1:9"}, "gpus": 1,
            }
        )  # fmt: skip
        dataset = Manifest(kind=Kind.DATASET, files=[], config_hash="c", base_model="m", dataset_sha256="d")
        inputs = Inputs(tmp_path, tmp_path, "qwen3", "qwen3", validation=True)
        hardware = Hardware((Gpu("NVIDIA L4", 24 * 2**30, 23 * 2**30),))
        return Run(config, Store(config.storage), tmp_path / "scratch", Start(hardware, inputs, dataset, None, ""), Reporter(config.reporting))

    return make


def log(step: int, **values: float) -> Event:
    return Event(events.Kind.LOG, step, 20, values=values)


def saved(run_directory: Path, step: int) -> Event:
    staged = run_directory / f"scratch/staged/checkpoint-{step}"
    staged.mkdir()
    (staged / "adapter_model.safetensors").write_bytes(b"weights")
    return Event(events.Kind.SAVED, step, 20, path=str(staged), final=step == 20)


@pytest.mark.parametrize("values", [{"loss": nan}, {"eval_loss": nan}, {WEIGHTS: nan}], ids=["loss", "evaluation", "weights"])
def test_what_was_saved_before_the_process_could_be_ended_is_not_taken(start: Callable[..., Run], tmp_path: Path, values: dict[str, float]) -> None:
    run = start()
    for event in (log(10, loss=2.5), saved(tmp_path, 10), log(20, **values), saved(tmp_path, 20)):
        run.on_event(event)
    assert "lower training.learningRate" in run.diverged
    assert (run.is_finished(), run.checkpoint and run.checkpoint.name) == (False, "checkpoint-10")


def test_a_float16_training_whose_gradients_overflow_goes_on(start: Callable[..., Run], tmp_path: Path) -> None:
    run = start("float16")
    for event in (log(20, loss=2.5, grad_norm=inf), saved(tmp_path, 20)):
        run.on_event(event)
    assert (run.diverged, run.is_finished()) == ("", True)
