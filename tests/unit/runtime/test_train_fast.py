"""The trainer's side of the fast path: who gets a plan, what follows from its answer, and how it comes down and goes on."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.artefact import Kind, Manifest
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.fast_path import FAST_PLAN, KEEP_ALL, FastOutcome, FastPlan, outcome_path
from finetune_runtime.contract.fast_sizing import FULL, SMALL, Numbers, RowLengths, numbers_of, usable
from finetune_runtime.contract.result import Exit, StepError
from finetune_runtime.hardware import Gpu, Hardware
from finetune_runtime.train.fast import FastPath, row_lengths

GIB = 2**30
QWEN3_8B = {
    "model_type": "qwen3", "num_hidden_layers": 36, "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "hidden_act": "silu",
}  # fmt: skip
H100 = Hardware((Gpu("NVIDIA H100 80GB HBM3", 79 * GIB, 78 * GIB),))
RTX_4060 = Hardware((Gpu("NVIDIA GeForce RTX 4060", 8 * GIB, int(7.45 * GIB)),))
T4 = Hardware((Gpu("Tesla T4", 16 * GIB, 15 * GIB),), bfloat16=False)
TWO = Hardware((Gpu("NVIDIA L4", 24 * GIB, 23 * GIB), Gpu("NVIDIA L4", 24 * GIB, 12 * GIB)))
CPU = Hardware()
FULL_ROWS = {"trainRows": 100, "summary": {"tokens": 102400, "longest": 1024}}


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """Makes a FastPath of a pod that finds Qwen3-8B and rows of 1024 tokens, unless it is told otherwise."""

    def make(
        hardware: Hardware = H100,
        *,
        wanted: str = "Auto",
        earlier: dict[str, Any] | None = None,
        model: dict[str, Any] | None = None,
        gpus: int = 1,
        **training: Any,
    ) -> FastPath:
        (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B if model is None else model))
        (tmp_path / "report.json").write_text(json.dumps({"tokens": {"histogram": [{"upTo": 1024, "rows": 100}]}}))
        config = JobConfig.model_validate(
            {
                "job": {"namespace": "n", "name": "j", "uid": "u"}, "model": {"source": "s3://m/q"}, "dataset": {"train": [{"source": "s3://d/t.json"}]},
                "tuning": {"lora": {"dropout": "0"}}, "training": {"fastPath": wanted, **training}, "checkpoints": {}, "storage": {"uri": "s3://models/x"},
                "gpus": gpus,
            }
        )  # fmt: skip
        prepared = Manifest(
            kind=Kind.DATASET, files=[], config_hash="c", base_model="m", base_revision="", dataset_sha256="d", details=FULL_ROWS
        )  # fmt: skip
        return FastPath(config, hardware, tmp_path, tmp_path, prepared, earlier)

    return make


def answer(fast: FastPath, directory: Path, **fields: Any) -> Path:
    """What the plugin leaves beside the plan that it was offered."""
    plan = Path(fast.offer(directory)[FAST_PLAN])
    outcome_path(plan).write_text(FastOutcome(**fields).model_dump_json(by_alias=True))
    return plan


UNUSED = [
    pytest.param(CPU, "Auto", QWEN3_8B, "no CUDA GPU", id="a CPU, where the fast path is not the faster one"),
    pytest.param(T4, "Auto", QWEN3_8B, "unsupported: a GPU without bfloat16 (Tesla T4 with 16.0 GiB)", id="an old GPU"),
    pytest.param(H100, "Auto", QWEN3_8B | {"attention_bias": True}, "unsupported: bias in o_proj", id="a model with a bias too many"),
    pytest.param(H100, "Auto", {"model_type": "qwen3"}, "unsupported: config.json without the model's sizes", id="a config without sizes"),
]


@pytest.mark.parametrize(("hardware", "wanted", "model", "reason"), UNUSED)
def test_who_gets_no_plan_is_told_why(start: Any, tmp_path: Path, hardware: Hardware, wanted: str, model: dict[str, Any], reason: str) -> None:
    fast = start(hardware, wanted=wanted, model=model)
    assert (fast.plan, fast.status.used, fast.status.reason, fast.in_short) == (None, False, reason, reason)
    assert (fast.offer(tmp_path), fast.declined(), fast.details) == ({}, "", {})


@pytest.mark.parametrize(("hardware", "wanted", "model", "reason"), UNUSED[1:])
def test_a_job_that_requires_it_ends_with_the_reason(start: Any, hardware: Hardware, wanted: str, model: dict[str, Any], reason: str) -> None:
    with pytest.raises(StepError) as error:
        start(hardware, wanted="Required", model=model)
    assert (error.value.code, reason in error.value.message, "Auto" in error.value.message) == (Exit.INVALID_CONFIG, True, True)


def test_off_is_not_worth_a_word(start: Any, tmp_path: Path) -> None:
    fast = start(wanted="Off")
    assert (fast.plan, fast.status, fast.in_short, fast.offer(tmp_path)) == (None, None, None, {})


def test_required_takes_a_cpu_that_the_job_may_use(start: Any) -> None:
    plan = start(CPU, wanted="Required").plan
    assert (plan.micro_batch, plan.accumulation, plan.keep, plan.graph_tokens, plan.embedding_on_cpu) == (4, 4, [KEEP_ALL] * 36, 0, False)
    assert numbers_of(plan) == FULL


PLANS = [
    pytest.param(H100, (16, 1), FULL, id="80 GB"),
    pytest.param(RTX_4060, (1, 16), SMALL, id="8 GB"),
    pytest.param(Hardware((Gpu("A40", 46 * GIB),)), (8, 2), FULL, id="a GPU that does not say what is free"),
    pytest.param(Hardware((Gpu("NVIDIA H100 80GB HBM3", 79 * GIB, 40 * GIB),)), (8, 2), FULL, id="a GPU that somebody shares"),
]


@pytest.mark.parametrize(("hardware", "batch", "numbers"), PLANS)
def test_the_plan_follows_from_what_is_free(start: Any, hardware: Hardware, batch: tuple[int, int], numbers: Numbers) -> None:
    plan = start(hardware).plan
    assert ((plan.micro_batch, plan.accumulation), numbers_of(plan)) == (batch, numbers)


def test_several_gpus_share_a_step_by_the_plan_of_the_fullest_one(start: Any) -> None:
    plan = start(TWO, gpus=2).plan
    assert (plan.micro_batch * plan.accumulation, plan.budget_bytes) == (8, usable(12 * GIB, 2))
    on_cpu = start(CPU, wanted="Required", gpus=2, effectiveBatchSize=6).plan
    assert (on_cpu.micro_batch, on_cpu.accumulation) == (3, 1)


def test_the_process_is_given_the_plan_and_no_earlier_answer(start: Any, tmp_path: Path) -> None:
    fast = start()
    plan = answer(fast, tmp_path, used=True)
    assert FastPlan.model_validate_json(plan.read_bytes()) == fast.plan
    fast.offer(tmp_path)
    assert not outcome_path(plan).exists()
    assert fast.declined() == "the plugin did not answer"


def test_what_was_measured_is_shown_beside_what_was_predicted(start: Any, tmp_path: Path) -> None:
    fast = start()
    plan = answer(fast, tmp_path, used=True, device="NVIDIA H100 80GB HBM3")
    assert (fast.declined(), fast.status.used, fast.status.measured, fast.in_short) == ("", True, None, "used")
    outcome_path(plan).write_text(FastOutcome(used=True, measured_bytes=58 * GIB, keep=[1] * 30 + [2] * 6).model_dump_json(by_alias=True))
    fast.look()
    assert (fast.status.measured, fast.status.layers) == (f"{58 * 1024}Mi", "30 keep input and attention, 6 all")
    assert str(fast.status).startswith("used: 16 x 1 rows, 30 keep input and attention, 6 all, float32 adapter, adamw_torch_fused, ")
    assert str(fast.status).endswith(f"{58 * 1024}Mi measured")


def test_layers_that_give_way_at_a_later_step_are_shown_and_remembered(start: Any, tmp_path: Path) -> None:
    fast = start()
    plan = answer(fast, tmp_path, used=True, measured_bytes=58 * GIB, keep=[2] * 36)
    fast.look()
    assert (fast.status.layers, fast.details["fastPath"]["steppedDown"]) == ("36 keep all", False)
    outcome_path(plan).write_text(FastOutcome(used=True, measured_bytes=70 * GIB, keep=[0] * 9 + [2] * 27).model_dump_json(by_alias=True))
    fast.look()
    assert (fast.status.layers, fast.status.measured) == ("9 keep their input, 27 all", f"{70 * 1024}Mi")
    assert fast.details["fastPath"]["steppedDown"] is True


def test_a_process_that_declines_is_followed_by_one_without_a_plan(start: Any, tmp_path: Path) -> None:
    fast = start()
    answer(fast, tmp_path, used=False, reason="unsupported: DoRA")
    assert fast.declined() == "unsupported: DoRA"
    fast.give_up(fast.declined())
    assert (fast.plan, fast.status.used, fast.status.reason, fast.offer(tmp_path)) == (None, False, "unsupported: DoRA", {})


def test_declining_ends_a_job_that_requires_it(start: Any, tmp_path: Path) -> None:
    fast = start(wanted="Required")
    answer(fast, tmp_path, used=False, reason="unsupported: DoRA")
    with pytest.raises(StepError, match=r"unsupported: DoRA") as error:
        fast.give_up(fast.declined())
    assert error.value.code == Exit.INVALID_CONFIG


def test_after_an_out_of_memory_error_plans_come_down_until_there_is_none(start: Any) -> None:
    fast, found = start(), []
    while plan := fast.shrink(loading=False):
        found.append(plan)
    assert found[0].micro_batch == 8
    assert (found[-1].micro_batch, numbers_of(found[-1]), sum(found[-1].keep)) == (1, SMALL, 0)


def test_a_model_that_does_not_even_load_gets_the_smallest_plan_at_once(start: Any) -> None:
    fast = start()
    assert numbers_of(fast.shrink(loading=True)) == SMALL
    assert fast.shrink(loading=True) is None


def test_from_the_first_checkpoint_on_types_stay_whatever_happens(start: Any, tmp_path: Path) -> None:
    fast = start()
    answer(fast, tmp_path, used=True)
    fast.look()
    fast.saved()
    while plan := fast.shrink(loading=False):
        assert numbers_of(plan) == FULL
    assert numbers_of(fast.plan) == FULL


def test_a_peak_above_its_prediction_makes_the_next_plans_smaller(start: Any, tmp_path: Path) -> None:
    fast, other = start(), start()
    answer(fast, tmp_path, used=True, measured_bytes=int(1.2 * fast.plan.predicted_bytes))
    fast.look()
    assert fast.shrink(loading=False).predicted_bytes == pytest.approx(1.2 * other.shrink(loading=False).predicted_bytes, rel=0.001)


def details(fast: FastPath) -> dict[str, Any]:
    """As they come back from a checkpoint's manifest."""
    found: dict[str, Any] = json.loads(json.dumps({"microBatch": 1, **fast.details}))
    return found


def test_the_next_pod_goes_on_with_the_same_types_on_a_larger_gpu(start: Any, tmp_path: Path) -> None:
    small = start(RTX_4060)
    answer(small, tmp_path, used=True, measured_bytes=small.plan.predicted_bytes)
    small.look()
    plan = start(H100, earlier=details(small)).plan
    assert (plan.micro_batch, numbers_of(plan)) == (16, SMALL)


def test_the_next_pod_stays_below_what_did_not_fit(start: Any, tmp_path: Path) -> None:
    fast = start()
    fast.shrink(loading=False)
    answer(fast, tmp_path, used=True)
    fast.look()
    assert start(H100, earlier=details(fast)).plan.predicted_bytes <= fast.plan.predicted_bytes


def test_the_next_pod_knows_that_layers_gave_way_in_the_process(start: Any, tmp_path: Path) -> None:
    fast = start()
    answer(fast, tmp_path, used=True, keep=[0] * 36)
    fast.look()
    assert start(H100, earlier=details(fast)).plan.predicted_bytes < fast.plan.predicted_bytes


def test_the_next_pod_corrects_its_prediction(start: Any, tmp_path: Path) -> None:
    fast = start()
    answer(fast, tmp_path, used=True, measured_bytes=int(0.95 * fast.plan.predicted_bytes))
    fast.look()
    assert start(H100, earlier=details(fast)).plan.predicted_bytes == pytest.approx(0.95 * fast.plan.predicted_bytes, rel=0.001)


def test_a_checkpoint_made_without_is_gone_on_from_with_its_types(start: Any) -> None:
    assert numbers_of(start(RTX_4060, earlier={"microBatch": 1}).plan) == FULL
    assert numbers_of(start(RTX_4060, earlier={"microBatch": 1}, extraArgs={"optim": "adamw_8bit"}).plan) == Numbers("float32", "adamw_8bit")


def test_what_only_the_fast_path_can_go_on_from_is_never_gone_on_from_without(start: Any, tmp_path: Path) -> None:
    small = start(RTX_4060)
    answer(small, tmp_path, used=True)
    small.look()
    small.saved()
    with pytest.raises(StepError, match="Off in a new job"):
        small.give_up("failed: a kernel")
    exact = start()
    answer(exact, tmp_path, used=True)
    exact.look()
    exact.saved()
    exact.give_up("failed: a kernel")
    assert exact.status.reason == "failed: a kernel"


def test_a_crash_is_a_reason_to_go_on_without_only_where_that_can_work(start: Any, tmp_path: Path) -> None:
    small = start(RTX_4060)
    assert [fast.may_be_left for fast in (start(), small, start(wanted="Required"), start(CPU), start(wanted="Off"))] == [True, True, False, False, False]
    answer(small, tmp_path, used=True)
    small.look()
    small.saved()
    assert not small.may_be_left


LENGTHS = [
    pytest.param({}, {}, RowLengths(1024, 1024, 0), id="nothing known"),
    pytest.param({"trainRows": 10, "summary": {"tokens": 1000, "longest": 200}}, {}, RowLengths(200, 100), id="no histogram"),
    pytest.param({"trainRows": 10, "summary": {"tokens": 20480, "longest": 2048}}, None, RowLengths(1024, 1024), id="never longer than the job allows"),
    pytest.param(
        {"trainRows": 4, "summary": {"tokens": 400, "longest": 120}},
        {"tokens": {"histogram": [{"upTo": 96, "rows": 2}, {"upTo": 128, "rows": 2}]}},
        RowLengths(120, 100, ((2 * 16 + 2 * 400) / 4) ** 0.5),
        id="spread of the buckets",
    ),
]


@pytest.mark.parametrize(("manifest", "report", "expected"), LENGTHS)
def test_lengths_of_rows(manifest: dict[str, Any], report: Any, expected: RowLengths) -> None:
    assert row_lengths(manifest, report, 1024) == expected
