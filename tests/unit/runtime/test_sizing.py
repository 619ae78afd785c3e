"""How much GPU memory a training needs: against measured runs, by the formulas' laws, and what to change when it is too much."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_runtime.contract.extra_args import ALLOWED
from finetune_runtime.contract.model_shape import ModelShape, from_config
from finetune_runtime.contract.sizing import CONTEXT, GIB, NCCL, Estimate, estimate, largest_micro_batch, rows, smallest_change
from finetune_runtime.contract.spec import Training, Tuning

QWEN3_8B: dict[str, Any] = {
    "num_hidden_layers": 36, "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "vocab_size": 151936, "tie_word_embeddings": False,
}  # fmt: skip


def shape_of(**changes: Any) -> ModelShape:
    """Qwen3-8B's, or that of a relative."""
    shape = from_config(QWEN3_8B | changes)
    assert shape is not None
    return shape


SHAPE = shape_of()


def tuning(method: str = "QLoRA", *, rank: int = 64, dropout: str = "0.05", targets: list[str] | None = None, **quantization: Any) -> Tuning:
    lora = {"rank": rank, "dropout": dropout} | ({"targetModules": targets} if targets else {})
    return Tuning.model_validate({"method": method, "lora": lora, "quantization": quantization})


def training(**fields: Any) -> Training:
    return Training.model_validate(fields)


# One H100, 1024 tokens, rank 64; the allocator's peak in GiB, of two runs where there were two.
MEASURED = [
    pytest.param(1, "0.05", "On", (9.7, 10.9), id="one row"),
    pytest.param(8, "0", "On", (12.7,), id="eight rows"),
    pytest.param(16, "0", "On", (17.0, 17.9), id="sixteen rows"),
    pytest.param(16, "0.05", "On", (17.2,), id="sixteen rows with dropout"),
    pytest.param(8, "0", "Off", (47.8,), id="eight rows without checkpointing"),
]


@pytest.mark.parametrize(("size", "dropout", "checkpointing", "measured"), MEASURED)
def test_estimate_is_near_to_what_was_measured(size: int, dropout: str, checkpointing: str, measured: tuple[float, ...]) -> None:
    found = estimate(SHAPE, tuning(dropout=dropout), training(gradientCheckpointing=checkpointing), micro_batch=size)
    assert min(measured) * 0.93 <= found.reserved / GIB <= max(measured) * 1.07
    assert found.required == found.reserved + CONTEXT


def base(job: Tuning) -> float:
    """Bytes for each weight of a linear layer."""
    return estimate(SHAPE, job, training(), micro_batch=1).base / SHAPE.linear_parameters


def test_weights_take_what_their_format_and_its_scales_take() -> None:
    assert base(tuning()) == pytest.approx(0.5 + 1 / 64 + 4 / 64 / 256)
    assert base(tuning(doubleQuant=False)) == pytest.approx(0.5 + 4 / 64)
    assert base(tuning(type="fp4")) == base(tuning())
    assert base(tuning(bits=8)) == pytest.approx(1, rel=0.002)
    assert base(tuning("LoRA")) == 2


def test_embedding_and_head_stay_in_the_type_that_is_computed_in() -> None:
    tied = shape_of(tie_word_embeddings=True)
    both = 2 * 151936 * 4096 + SHAPE.other_parameters
    assert estimate(SHAPE, tuning(), training(), micro_batch=1).embeddings == 2 * both
    assert estimate(SHAPE, tuning(computeDtype="float32"), training(), micro_batch=1).embeddings == 4 * both
    assert estimate(tied, tuning(), training(), micro_batch=1).embeddings == 2 * (both - 151936 * 4096)


ADAPTED = 174_587_904  # parameters of rank 64 on all linear layers
ADAPTERS = [
    pytest.param({}, {}, 4 * ADAPTED, 8 * ADAPTED, id="two float32 moments"),
    pytest.param({}, {"optim": "adamw_8bit"}, 4 * ADAPTED, 2.03125 * ADAPTED, id="two moments of one byte"),
    pytest.param({}, {"optim": "paged_adamw_8bit"}, 4 * ADAPTED, 0, id="states that may leave the GPU"),
    pytest.param({"rank": 32}, {}, 2 * ADAPTED, 4 * ADAPTED, id="half the rank"),
    pytest.param({"targets": ["q_proj", "v_proj"]}, {}, 4 * 64 * 36 * (8192 + 5120), 8 * 64 * 36 * (8192 + 5120), id="two kinds of layers"),
    pytest.param({"targets": ["self_attn.q_proj"]}, {}, 4 * 64 * 36 * 8192, 8 * 64 * 36 * 8192, id="a layer by the end of its path"),
    pytest.param({"targets": ["query_key_value"]}, {}, 4 * ADAPTED, 8 * ADAPTED, id="names that the model does not have count as all"),
]


@pytest.mark.parametrize(("lora", "extra", "adapter", "states"), ADAPTERS)
def test_adapter_gradients_and_optimizer(lora: dict[str, Any], extra: dict[str, str], adapter: int, states: float) -> None:
    found = estimate(SHAPE, tuning(**lora), training(extraArgs=extra), micro_batch=1)
    assert (found.adapter, found.gradients) == (adapter, adapter)
    assert found.optimizer == pytest.approx(states)


def test_every_optimizer_that_a_job_may_name_has_a_size() -> None:
    for name in ALLOWED["optim"].values.split("|"):
        assert estimate(SHAPE, tuning(), training(extraArgs={"optim": name}), micro_batch=1).optimizer >= 0


def test_hidden_states_are_kept_between_all_layers_and_insides_of_one() -> None:
    on, off = (estimate(SHAPE, tuning(), training(gradientCheckpointing=value), micro_batch=1) for value in ("On", "Off"))
    assert on.hidden_states == off.hidden_states == 36 * 1024 * 4096 * 2
    assert off.layer > 25 * on.layer
    assert estimate(SHAPE, tuning(), training(), micro_batch=1) == estimate(SHAPE, tuning(), training(gradientCheckpointing="On"), micro_batch=1)


def reserved(job: Training, *, micro_batch: int = 4, **options: bool) -> int:
    return estimate(SHAPE, tuning(), job, micro_batch=micro_batch, **options).reserved


def test_losses_that_need_all_logits_take_gigabytes_more() -> None:
    fused = reserved(training())
    for extra in ({"label_smoothing_factor": "0.1"}, {"enable_dft_loss": "true"}):
        assert reserved(training(extraArgs=extra)) > fused + 4 * GIB
    assert reserved(training(), liger=False) > fused + 4 * GIB
    assert reserved(training(extraArgs={"label_smoothing_factor": "0", "enable_dft_loss": "false"})) == fused


def test_attention_that_writes_its_scores_grows_with_the_square_of_the_length() -> None:
    def scores(length: int) -> int:
        eager = reserved(training(maxLength=length, extraArgs={"attn_impl": "eager"}), micro_batch=1)
        return eager - reserved(training(maxLength=length), micro_batch=1)

    assert scores(4096) > 3.5 * scores(2048) > 0


def test_a_longest_row_below_the_limit_is_what_counts() -> None:
    short = estimate(SHAPE, tuning(), training(maxLength=512), micro_batch=2)
    assert estimate(SHAPE, tuning(), training(maxLength=4096), micro_batch=2, longest=512) == short
    assert estimate(SHAPE, tuning(), training(maxLength=512), micro_batch=2, longest=4096) == short


METHODS = st.sampled_from([tuning, lambda **fields: tuning("LoRA", **fields), lambda **fields: tuning(bits=8, **fields)])
LAWFUL = {
    "make": METHODS,
    "size": st.integers(1, 64),
    "length": st.integers(16, 8192),
    "rank": st.integers(1, 256),
    "layers": st.integers(1, 80),
    "dropout": st.sampled_from(["0", "0.05"]),
    "checkpointing": st.sampled_from(["On", "Off"]),
    "extra": st.sampled_from([{}, {"attn_impl": "eager"}, {"enable_dft_loss": "true"}, {"optim": "adamw_8bit"}]),
    "liger": st.booleans(),
    "more": st.sampled_from(["size", "length", "rank", "layers"]),
    "by": st.integers(1, 64),
}


@given(**LAWFUL)
def test_more_rows_longer_rows_a_higher_rank_and_more_layers_never_need_less(more: str, by: int, **drawn: Any) -> None:
    def needed(values: dict[str, Any]) -> Estimate:
        job = training(maxLength=values["length"], gradientCheckpointing=values["checkpointing"], extraArgs=values["extra"])
        shape = shape_of(num_hidden_layers=values["layers"])
        made = values["make"](rank=values["rank"], dropout=values["dropout"])
        return estimate(shape, made, job, micro_batch=values["size"], liger=values["liger"])

    less, enough = needed(drawn), needed(drawn | {more: drawn[more] + by})
    assert enough.required >= less.required
    assert min(less.parts.values()) >= 0


@pytest.mark.parametrize(
    ("wanted", "effective", "gpus", "planned"),
    [("Auto", 16, 1, 1), (8, 16, 1, 8), (6, 16, 1, 4), (32, 16, 1, 16), (1, 16, 1, 1), (8, 16, 2, 8), (8, 16, 4, 4), (8, 24, 8, 3), ("Auto", 16, 8, 1)],
)
def test_rows_that_must_fit_divide_a_gpus_part_of_the_effective_batch(wanted: int | str, effective: int, gpus: int, planned: int) -> None:
    assert rows(training(microBatchSize=wanted, effectiveBatchSize=effective), gpus) == planned


def test_several_gpus_need_a_second_copy_of_the_gradients_and_what_nccl_takes() -> None:
    one, two, eight = (estimate(SHAPE, tuning(), training(), micro_batch=1, gpus=gpus) for gpus in (1, 2, 8))
    assert (two.gradients, two.required - one.required, eight) == (2 * one.gradients, one.gradients + NCCL, two)
    assert two.reserved == two.required - NCCL - CONTEXT


def test_largest_micro_batch_fits_and_the_next_one_does_not() -> None:
    job = training(effectiveBatchSize=12)
    for gib in (11, 14, 20, 40):
        found = largest_micro_batch(SHAPE, tuning(), job, gib * GIB)
        assert found in (1, 2, 3, 4, 6, 12)
        assert estimate(SHAPE, tuning(), job, micro_batch=found).required <= gib * GIB
        following = next((size for size in (1, 2, 3, 4, 6, 12) if size > found), None)
        assert following is None or estimate(SHAPE, tuning(), job, micro_batch=following).required > gib * GIB
    assert largest_micro_batch(SHAPE, tuning(), job, 4 * GIB) == 0


AUTO, CHECKPOINTING, OPTIM = "spec.training.microBatchSize", "spec.training.gradientCheckpointing", "spec.training.extraArgs.optim"
METHOD, BITS, DOUBLE = "spec.tuning.method", "spec.tuning.quantization.bits", "spec.tuning.quantization.doubleQuant"
LENGTH, RANK = "spec.training.maxLength", "spec.tuning.lora.rank"
CHANGES = [
    pytest.param(tuning(), {"microBatchSize": 16}, 16, [(AUTO, "16", "Auto")], id="fewer rows at a time"),
    pytest.param(tuning(), {"gradientCheckpointing": "Off"}, 12, [(CHECKPOINTING, "Off", "On")], id="recomputing"),
    pytest.param(tuning(rank=256), {}, 16, [(OPTIM, "", "adamw_8bit")], id="a smaller optimizer"),
    pytest.param(tuning("LoRA"), {}, 14, [(METHOD, "LoRA", "QLoRA")], id="4 bits instead of 16"),
    pytest.param(tuning(bits=8, rank=8), {}, 9, [(BITS, "8", "4")], id="4 bits instead of 8"),
    pytest.param(tuning(rank=1, doubleQuant=False), {"maxLength": 256, "extraArgs": {"optim": "sgd"}}, 7, [(DOUBLE, "false", "true")], id="quantised scales"),
    pytest.param(tuning(rank=1), {"maxLength": 8192, "extraArgs": {"optim": "sgd"}}, 11, [(LENGTH, "8192", None)], id="shorter rows"),
    pytest.param(tuning(rank=512), {"maxLength": 256}, 10, [(RANK, "512", "64")], id="a lower rank"),
    pytest.param(tuning(), {"microBatchSize": 16, "gradientCheckpointing": "Off"}, 11, [(AUTO, "16", "Auto"), (CHECKPOINTING, "Off", "On")], id="two changes"),
    pytest.param(tuning("LoRA", bits=8), {}, 11, [(METHOD, "LoRA", "QLoRA"), (BITS, "8", "4")], id="quantised, and in 4 bits"),
    pytest.param(
        tuning("LoRA"),
        {"microBatchSize": 16, "gradientCheckpointing": "Off"},
        12,
        [(AUTO, "16", "Auto"), (CHECKPOINTING, "Off", "On"), (METHOD, "LoRA", "QLoRA")],
        id="three changes where two are not enough",
    ),
]


@pytest.mark.parametrize(("job", "fields", "gib", "edits"), CHANGES)
def test_smallest_change_makes_a_job_fit(job: Tuning, fields: dict[str, Any], gib: float, edits: list[tuple[str, str, str | None]]) -> None:
    assert estimate(SHAPE, job, training(**fields), micro_batch=rows(training(**fields))).required > gib * GIB
    change = smallest_change(SHAPE, job, training(**fields), int(gib * GIB))
    assert change is not None
    assert [(edit.path, edit.old, edit.new if new else None) for edit, (*_, new) in zip(change.edits, edits, strict=True)] == edits
    assert change.required <= gib * GIB


def test_shorter_rows_are_the_longest_that_fit() -> None:
    job = training(maxLength=8192, extraArgs={"optim": "sgd"})
    change = smallest_change(SHAPE, tuning(rank=1), job, 11 * GIB)
    assert change is not None
    length = int(change.edits[0].new)
    assert length % 64 == 0
    assert change.required == estimate(SHAPE, tuning(rank=1), training(maxLength=length, extraArgs={"optim": "sgd"}), micro_batch=1).required
    assert estimate(SHAPE, tuning(rank=1), training(maxLength=length + 64, extraArgs={"optim": "sgd"}), micro_batch=1).required > 11 * GIB
    assert str(change) == f"set spec.training.maxLength to {length} (needs {change.required / GIB:.1f} GiB)"


def test_several_changes_read_as_one_sentence() -> None:
    fields = {"microBatchSize": 16, "gradientCheckpointing": "Off"}
    change = smallest_change(SHAPE, tuning("LoRA"), training(**fields), 12 * GIB)
    assert str(change).startswith(f"set {AUTO} to Auto, {CHECKPOINTING} to On and {METHOD} to QLoRA (needs ")


def test_no_change_makes_a_large_model_fit_a_small_gpu() -> None:
    assert smallest_change(SHAPE, tuning(), training(), 5 * GIB) is None


@given(**{name: LAWFUL[name] for name in ("make", "size", "length", "rank", "checkpointing")}, gib=st.integers(5, 80))
def test_a_change_is_found_exactly_when_the_most_frugal_job_fits(make: Any, size: int, length: int, rank: int, checkpointing: str, gib: int) -> None:
    job = training(microBatchSize=size, effectiveBatchSize=size, maxLength=length, gradientCheckpointing=checkpointing)
    frugal = training(maxLength=min(length, 256), extraArgs={"optim": "adamw_8bit"})
    fits = estimate(SHAPE, tuning(rank=min(rank, 8)), frugal, micro_batch=1).required <= gib * GIB
    if estimate(SHAPE, make(rank=rank), job, micro_batch=size).required > gib * GIB:
        assert (smallest_change(SHAPE, make(rank=rank), job, gib * GIB) is not None) == fits
