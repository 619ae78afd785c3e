"""How a training takes the fast path: against measured peaks, by card, by the plan's laws, and step by step down after an out-of-memory error."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_runtime.contract.fast_path import KEEP_ALL, KEEP_ATTENTION, KEEP_INPUT, FastPlan
from finetune_runtime.contract.fast_sizing import (
    EIGHT_BIT,
    FULL,
    SMALL,
    Job,
    Numbers,
    RowLengths,
    Setting,
    estimate,
    loss_tokens,
    numbers_of,
    plan,
    predicted,
    required,
    smaller,
    smallest,
    usable,
)
from finetune_runtime.contract.model_shape import ModelShape, from_config
from finetune_runtime.contract.sizing import CONTEXT, GIB, NCCL
from finetune_runtime.contract.spec import Training, Tuning

QWEN3_8B: dict[str, Any] = {
    "num_hidden_layers": 36, "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "vocab_size": 151936, "tie_word_embeddings": False,
}  # fmt: skip
SMOLLM2_135M: dict[str, Any] = {
    "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "tie_word_embeddings": True,
}  # fmt: skip
LAYERS = 36
FULL_ROWS = RowLengths(1024, 1024, 0)
CHAT = RowLengths(1024, 225, 90)


def shape_of(config: dict[str, Any]) -> ModelShape:
    shape = from_config(config)
    assert shape is not None
    return shape


def job(
    *, rows: RowLengths = FULL_ROWS, rank: int = 64, dropout: str = "0", bits: int = 4, config: dict[str, Any] = QWEN3_8B, numbers: Numbers | None = None,
    correction: float = 1.0, gpus: int = 1, **training: Any,
) -> Job:  # fmt: skip
    tuning = Tuning.model_validate({"lora": {"rank": rank, "dropout": dropout}, "quantization": {"bits": bits}})
    return Job(shape_of(config), tuning, Training.model_validate(training), rows, gpus=gpus, numbers=numbers, correction=correction)


ALL, ATTENTION, INPUT = ([level] * LAYERS for level in (KEEP_ALL, KEEP_ATTENTION, KEEP_INPUT))
ADAPTED = 174_587_904  # parameters of rank 64 on all linear layers
BFLOAT16 = Numbers("bfloat16", "adamw_8bit")
# One H100, 1024-token rows, rank 64, peaks of the allocator in GiB. The measured code held bfloat16 copies of all float32 adapters, except where the embedding
# was on the CPU; ours holds those of one layer. Most runs were without expandable segments. 16 rows that keep their input only are not here: 18.8 GiB
# reserved, but 15.1 of them in use.
MEASURED = [
    pytest.param(16, ALL, FULL, {}, 59.8, id="sixteen rows, all kept"),
    pytest.param(16, ALL, FULL, {"dropout": "0.05"}, 60.5, id="sixteen rows, all kept, dropout"),
    pytest.param(16, [2] * 18 + [0] * 18, FULL, {}, 38.1, id="sixteen rows, half of the layers keep their input only"),
    pytest.param(16, ATTENTION, FULL, {}, 33.9, id="sixteen rows, attention kept"),
    pytest.param(16, INPUT, FULL, {"dropout": "0.05"}, 18.3, id="sixteen rows, inputs kept, dropout"),
    pytest.param(8, ALL, FULL, {}, 35.5, id="eight rows, all kept"),
    pytest.param(8, ATTENTION, FULL, {}, 22.4, id="eight rows, attention kept"),
    pytest.param(4, ALL, FULL, {}, 22.3, id="four rows, all kept"),
    pytest.param(4, ATTENTION, FULL, {}, 15.5, id="four rows, attention kept"),
    pytest.param(4, INPUT, FULL, {}, 11.4, id="four rows, inputs kept"),
    pytest.param(4, ALL, EIGHT_BIT, {}, 21.4, id="four rows, all kept, 8-bit optimizer"),
    pytest.param(4, ATTENTION, EIGHT_BIT, {}, 15.0, id="four rows, attention kept, 8-bit optimizer"),
    pytest.param(4, INPUT, EIGHT_BIT, {}, 10.6, id="four rows, inputs kept, 8-bit optimizer"),
    pytest.param(2, ALL, FULL, {}, 15.8, id="two rows, all kept"),
    pytest.param(2, ATTENTION, FULL, {}, 12.7, id="two rows, attention kept"),
    pytest.param(2, INPUT, FULL, {}, 10.4, id="two rows, inputs kept"),
    pytest.param(1, ALL, FULL, {}, 12.6, id="one row, all kept"),
    pytest.param(1, ATTENTION, FULL, {}, 11.1, id="one row, attention kept"),
    pytest.param(1, INPUT, FULL, {}, 10.1, id="one row, inputs kept"),
    pytest.param(1, ALL, FULL, {"dropout": "0.05"}, 13.0, id="one row, all kept, dropout"),
    pytest.param(1, ALL, EIGHT_BIT, {"on_cpu": True}, 10.2, id="embedding on the CPU, all kept"),
    pytest.param(1, ATTENTION, EIGHT_BIT, {"on_cpu": True}, 8.65, id="embedding on the CPU, attention kept"),
    pytest.param(1, INPUT, EIGHT_BIT, {"on_cpu": True}, 7.22, id="embedding on the CPU, inputs kept"),
    pytest.param(1, ATTENTION, BFLOAT16, {"on_cpu": True}, 7.71, id="bfloat16 adapter, attention kept"),
    pytest.param(1, INPUT, BFLOAT16, {"on_cpu": True}, 6.55, id="bfloat16 adapter, inputs kept"),
    pytest.param(1, INPUT, EIGHT_BIT, {"on_cpu": True, "bits": 8}, 11.0, id="8-bit base, inputs kept"),
    pytest.param(1, ALL, EIGHT_BIT, {"on_cpu": True, "bits": 8}, 14.2, id="8-bit base, all kept"),
]


# The fast path itself, through the product's command and with expandable segments.
OURS = [
    pytest.param(16, ALL, FULL, {}, 58.69, id="80 GB"),
    pytest.param(4, ALL, EIGHT_BIT, {}, 20.62, id="24 GB"),
    pytest.param(1, ALL, EIGHT_BIT, {"on_cpu": True}, 9.93, id="12 GB"),
    pytest.param(1, INPUT, SMALL, {"on_cpu": True}, 6.66, id="8 GB"),
]


@pytest.mark.parametrize(("rows", "keep", "numbers", "options", "measured"), OURS)
def test_estimate_is_near_to_what_the_fast_path_took(rows: int, keep: list[int], numbers: Numbers, options: dict[str, Any], measured: float) -> None:
    found = predicted(job(), Setting(rows, tuple(keep), numbers, options.get("on_cpu", False)))
    assert found / GIB == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize(("rows", "keep", "numbers", "options", "measured"), MEASURED)
def test_estimate_is_near_to_what_was_measured(rows: int, keep: list[int], numbers: Numbers, options: dict[str, Any], measured: float) -> None:
    on_cpu = options.get("on_cpu", False)
    of = job(dropout=options.get("dropout", "0"), bits=options.get("bits", 4))
    copies = 0 if on_cpu else 2 * ADAPTED
    found = predicted(of, Setting(rows, tuple(keep), numbers, on_cpu)) + copies
    assert found / GIB == pytest.approx(measured, rel=0.07)


def test_what_is_in_use_was_measured_too() -> None:
    found = estimate(job(), Setting(16, tuple(INPUT), FULL, embedding_on_cpu=False))
    assert (found.reserved - found.overhead + 2 * ADAPTED) / GIB == pytest.approx(15.1, rel=0.01)


def test_a_layer_keeps_what_its_tensors_take() -> None:
    kept = [estimate(job(), Setting(1, (level,) * LAYERS, FULL, embedding_on_cpu=False)).hidden_states / LAYERS / 1024 for level in (0, 1, 2)]
    # hidden state; q, k, v, attention's output and hidden state with the adapters' inner results; gate and up with theirs
    assert kept == [8192, 8192 + 2 * (6144 + 4096 + 4096 + 256) + 4 * 32, 8192 + 2 * (6144 + 4096 + 4096 + 256) + 4 * 32 + 2 * (24576 + 320)]


def test_tensors_of_the_adapter_follow_its_type_and_its_optimizer() -> None:
    parts = {numbers: estimate(job(), Setting(1, tuple(ALL), numbers, embedding_on_cpu=False)) for numbers in (FULL, EIGHT_BIT, SMALL)}
    assert [found.gradients for found in parts.values()] == [4 * ADAPTED, 4 * ADAPTED, 2 * ADAPTED]
    assert [found.adapter for found in parts.values()] == [4 * ADAPTED + 2 * ADAPTED // LAYERS] * 2 + [2 * ADAPTED]
    assert [round(found.optimizer / ADAPTED, 2) for found in parts.values()] == [8, 2.03, 2.03]


def test_embedding_on_the_cpu_leaves_the_gpu_its_head() -> None:
    on_gpu, on_cpu = (estimate(job(), Setting(1, tuple(ALL), FULL, embedding_on_cpu=place)) for place in (False, True))
    assert on_gpu.embeddings - on_cpu.embeddings == 151936 * 4096 * 2
    assert all(not plan(job(config=SMOLLM2_135M), gib * GIB // 8).embedding_on_cpu for gib in range(1, 16))  # there it is the head


def test_loading_counts_where_it_needs_more_than_a_step() -> None:
    tiny_rows = RowLengths(16, 16, 0)
    least = Setting(1, tuple(INPUT), SMALL, embedding_on_cpu=True)
    whole = estimate(job(), Setting(1, tuple(INPUT), SMALL, embedding_on_cpu=False))
    assert estimate(job(rows=tiny_rows), least).reserved > whole.base + whole.embeddings + whole.adapter


# What a card's memory leaves for torch once the context is there, and what is planned for 16 rows of 1024 tokens a step.
CARDS = [
    pytest.param(6.85, (1, 16), (36, 0, 0), SMALL, True, True, id="8 GB"),
    pytest.param(10.8, (1, 16), (0, 0, 36), EIGHT_BIT, True, True, id="12 GB"),
    pytest.param(14.8, (2, 8), (0, 0, 36), EIGHT_BIT, True, True, id="16 GB"),
    pytest.param(22.8, (4, 4), (0, 0, 36), EIGHT_BIT, False, False, id="24 GB"),
    pytest.param(38.8, (8, 2), (0, 0, 36), FULL, False, False, id="40 GB"),
    pytest.param(78.2, (16, 1), (0, 0, 36), FULL, False, False, id="80 GB"),
]


@pytest.mark.parametrize(("gib", "batch", "layers", "numbers", "on_cpu", "graph"), CARDS)
def test_each_card_gets_its_plan(gib: float, batch: tuple[int, int], layers: tuple[int, ...], numbers: Numbers, on_cpu: bool, graph: bool) -> None:
    found = plan(job(), int(gib * GIB))
    assert (found.micro_batch, found.accumulation) == batch
    assert tuple(found.keep.count(level) for level in (0, 1, 2)) == layers
    assert (numbers_of(found), found.embedding_on_cpu, found.graph_tokens > 0) == (numbers, on_cpu, graph)
    assert found.predicted_bytes <= found.budget_bytes


def test_between_two_cards_layers_keep_what_fits_and_the_last_ones_most() -> None:
    found = plan(job(), 9 * GIB)
    assert (found.micro_batch, numbers_of(found)) == (1, EIGHT_BIT)
    assert found.keep == sorted(found.keep)
    assert {KEEP_INPUT, KEEP_ALL} <= set(found.keep)
    one_more = [*found.keep]
    one_more[found.keep.index(KEEP_ALL) - 1] = KEEP_ALL
    assert predicted(job(), Setting(1, tuple(one_more), EIGHT_BIT, embedding_on_cpu=True)) > 0.95 * 9 * GIB


def test_short_rows_leave_room_for_more_of_them() -> None:
    assert CHAT.tokens(16) < 16 * 1024
    assert (plan(job(), 30 * GIB).micro_batch, plan(job(rows=CHAT), 30 * GIB).micro_batch) == (4, 16)


LENGTHS = [
    pytest.param(FULL_ROWS, 4, 4096, id="even rows are all as long as the longest"),
    pytest.param(RowLengths(1024, 225, 0), 4, 1024 + 3 * 225, id="the longest one may always be among them"),
    pytest.param(RowLengths(1024, 225, 90), 16, 16 * 225 + 4 * 4 * 90, id="of many rows the sum hardly varies"),
    pytest.param(RowLengths(100, 50), 64, 64 * 50 + 4 * 8 * 50, id="a spread that nobody knows is the largest there can be"),
    pytest.param(RowLengths(100, 50), 1, 100, id="one row is never longer than the longest"),
]


@pytest.mark.parametrize(("rows", "count", "tokens"), LENGTHS)
def test_tokens_of_a_micro_batch(rows: RowLengths, count: int, tokens: int) -> None:
    assert rows.tokens(count) == tokens


def test_graphs_are_for_small_micro_batches_and_few_shapes() -> None:
    even, chat, large = plan(job(), 11 * GIB), plan(job(rows=CHAT), 11 * GIB), plan(job(), 78 * GIB)
    assert [(found.graph_tokens, found.max_graphs) for found in (even, chat, large)] == [(2048, 1), (2048, 4), (0, 0)]


def test_logits_exist_for_a_quarter_of_a_micro_batch_within_limits() -> None:
    assert [loss_tokens(tokens) for tokens in (1, 1024, 1025, 4096, 8192, 65536)] == [256, 256, 512, 1024, 2048, 2048]


def test_a_job_gets_the_rows_that_it_asks_for_and_layers_give_way() -> None:
    found = plan(job(microBatchSize=4), 16 * GIB)
    assert (found.micro_batch, found.accumulation) == (4, 4)
    assert KEEP_INPUT in found.keep
    assert plan(job(microBatchSize=5), 78 * GIB).micro_batch == 4
    assert plan(job(microBatchSize=16), 7 * GIB).micro_batch < 16


def test_a_micro_batch_whose_tokens_are_known_is_counted_by_them() -> None:
    setting = Setting(16, tuple(ALL), FULL, embedding_on_cpu=False)
    assert estimate(job(rows=CHAT), setting, tokens=16 * 1024) == estimate(job(), setting)


def test_without_checkpointing_every_layer_keeps_all() -> None:
    down: FastPlan | None = plan(job(gradientCheckpointing="Off"), 78 * GIB)
    while down:
        assert down.keep == ALL
        down = smaller(job(gradientCheckpointing="Off"), down)


OPTIMIZERS = [
    pytest.param("adamw_torch", {Numbers("float32", "adamw_torch")}, id="one that the fast path has no small form of"),
    pytest.param("adamw_8bit", {EIGHT_BIT, SMALL}, id="the 8-bit one"),
    pytest.param("sgd", {Numbers("float32", "sgd")}, id="one without states"),
]


@pytest.mark.parametrize(("optim", "expected"), OPTIMIZERS)
def test_the_job_s_optimizer_stays(optim: str, expected: set[Numbers]) -> None:
    found = {numbers_of(plan(job(extraArgs={"optim": optim}), gib * GIB)) for gib in (5, 7, 9, 12, 24, 40, 80)}
    assert found == expected


@pytest.mark.parametrize("numbers", [FULL, EIGHT_BIT, SMALL])
def test_a_run_that_goes_on_keeps_its_checkpoint_s_types(numbers: Numbers) -> None:
    assert {numbers_of(plan(job(numbers=numbers), gib * GIB)) for gib in (5, 7, 9, 12, 24, 40, 80)} == {numbers}


def test_two_gpus_share_the_rows_of_a_step() -> None:
    found = plan(job(gpus=2), 78 * GIB)
    assert (found.micro_batch, found.accumulation) == (8, 1)


def test_several_gpus_need_what_nccl_takes_and_no_second_gradient() -> None:
    assert required(job(gpus=2)) - required(job()) == NCCL
    assert usable(10 * GIB, 1) - usable(10 * GIB, 2) == NCCL
    assert predicted(job(gpus=2), smallest(job(gpus=2))) == predicted(job(), smallest(job()))


def test_what_was_measured_corrects_what_is_predicted() -> None:
    assert plan(job(correction=1.4), 78 * GIB).micro_batch == 8
    assert plan(job(correction=1.1), 78 * GIB).predicted_bytes == int(estimate(job(), Setting(16, tuple(ALL), FULL, embedding_on_cpu=False)).reserved * 1.1)


@pytest.mark.parametrize("rows", [FULL_ROWS, CHAT])
def test_after_an_out_of_memory_error_each_plan_needs_less_until_nothing_smaller_exists(rows: RowLengths) -> None:
    start = plan(job(rows=rows), 78 * GIB)
    plans = [start]
    while following := smaller(job(rows=rows), plans[-1]):
        plans.append(following)
    assert len(plans) > 5
    assert all(after.predicted_bytes < before.predicted_bytes for before, after in pairwise(plans))
    assert plans[-1].predicted_bytes == predicted(job(rows=rows), smallest(job(rows=rows)))
    assert (plans[-1].micro_batch, plans[-1].masters) == (1, "stochastic")


def test_too_little_memory_gets_the_smallest_plan() -> None:
    assert plan(job(), GIB).predicted_bytes == predicted(job(), smallest(job()))
    assert smaller(job(), plan(job(), GIB)) is None


def test_a_card_of_8_gb_is_enough_for_8_billion_parameters() -> None:
    assert required(job()) == int(predicted(job(), smallest(job()))) + CONTEXT
    assert required(job()) < 8188 * 2**20
    assert required(job(microBatchSize=16)) > required(job())


def test_kernels_are_loaded_into_what_is_free() -> None:
    assert usable(10 * GIB) / GIB == pytest.approx(9.6)
    assert usable(0) == 0


@given(
    gib=st.integers(1, 160),
    micro=st.sampled_from(["Auto", 1, 3, 8]),
    effective=st.sampled_from([1, 6, 16, 64]),
    longest=st.sampled_from([64, 1024, 8192]),
    share=st.floats(0.05, 1),
    config=st.sampled_from([QWEN3_8B, SMOLLM2_135M]),
)
def test_every_plan_keeps_the_step_whole_and_stays_in_its_budget_if_anything_can(
    gib: int, micro: int | str, effective: int, longest: int, share: float, config: dict[str, Any]
) -> None:
    of = job(rows=RowLengths(longest, longest * share), config=config, microBatchSize=micro, effectiveBatchSize=effective)
    found = plan(of, gib * GIB)
    assert found.micro_batch * found.accumulation == effective
    assert len(found.keep) == of.shape.layers
    assert found.predicted_bytes <= 0.95 * found.budget_bytes or found.predicted_bytes == predicted(of, smallest(of))
    more = plan(of, (gib + 8) * GIB)
    assert more.micro_batch >= found.micro_batch
