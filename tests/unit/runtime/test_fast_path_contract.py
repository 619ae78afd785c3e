"""Which models and jobs the fast path is for, and the files in which trainer and plugin speak of it."""

from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.fast_path import FastOutcome, FastPlan, outcome_path, unsupported
from finetune_runtime.contract.spec import Training, Tuning

LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu", "attention_bias": False,
    "mlp_bias": False, "attention_dropout": 0.0,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
}  # fmt: skip
QWEN3 = LLAMA | {"model_type": "qwen3", "head_dim": 128, "rope_scaling": None, "sliding_window": None, "use_sliding_window": False}
QWEN2 = QWEN3 | {"model_type": "qwen2", "sliding_window": 131072}
MISTRAL = LLAMA | {"model_type": "mistral", "sliding_window": None, "rope_scaling": None}
SMOLLM2 = LLAMA | {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "rope_scaling": None}

MODELS = [
    pytest.param(QWEN3, "", id="Qwen3"),
    pytest.param(QWEN2, "", id="Qwen2 with its bias in q, k and v, and a window that it does not use"),
    pytest.param(LLAMA, "", id="Llama 3"),
    pytest.param(MISTRAL, "", id="Mistral without a window"),
    pytest.param(SMOLLM2, "", id="SmolLM2 with tied embeddings"),
    pytest.param(MISTRAL | {"sliding_window": 4096}, "", id="a window that no row reaches"),
    pytest.param(QWEN3 | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "", id="rope as transformers 5 writes it"),
    pytest.param(MISTRAL | {"sliding_window": 512}, "a sliding window of 512 tokens", id="a window that rows reach"),
    pytest.param(QWEN2 | {"use_sliding_window": True, "sliding_window": 512}, "a sliding window of 512 tokens", id="a window that is switched on"),
    pytest.param(
        QWEN3 | {"sliding_window": 512, "layer_types": ["full_attention", "sliding_attention"]}, "a sliding window of 512 tokens", id="a window by layer"
    ),
    pytest.param(LLAMA | {"model_type": "gemma2"}, "model type gemma2 (supported are qwen3, qwen2, llama, mistral)", id="another family"),
    pytest.param({}, "model type unknown (supported are qwen3, qwen2, llama, mistral)", id="nothing said"),
    pytest.param(QWEN3 | {"attention_bias": True}, "bias in o_proj", id="bias in the attention's output"),
    pytest.param(LLAMA | {"mlp_bias": True}, "bias in gate_proj", id="bias in the MLP"),
    pytest.param(LLAMA | {"hidden_act": "gelu"}, "activation gelu", id="another activation"),
    pytest.param(LLAMA | {"attention_dropout": 0.1}, "dropout in the attention", id="dropout in the attention"),
    pytest.param(
        LLAMA | {"head_dim": 80}, "heads of 80 numbers (supported are 16, 32, 64, 128 and 256)", id="heads whose width is no power of two"
    ),
    pytest.param(LLAMA | {"num_key_value_heads": 5}, "key heads that do not divide the query heads", id="odd groups"),
    pytest.param(LLAMA | {"hidden_size": None}, "config.json without num_attention_heads or hidden_size", id="no sizes"),
    pytest.param(LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rotary embedding dynamic", id="angles that depend on the batch"),
    pytest.param(LLAMA | {"quantization_config": {"quant_method": "bitsandbytes"}}, "weights that are quantised already", id="quantised weights"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "reason"), MODELS)
def test_models(config: dict[str, Any], reason: str) -> None:
    assert unsupported(config, Tuning(), Training()) == (f"unsupported: {reason}" if reason else "")


JOBS = [
    pytest.param({}, {}, "", id="the defaults"),
    pytest.param({"method": "LoRA"}, {}, "", id="16-bit base"),
    pytest.param({"quantization": {"bits": 8, "type": "nf4"}}, {}, "", id="8-bit base"),
    pytest.param({"quantization": {"type": "fp4"}}, {}, "", id="the other 4-bit format"),
    pytest.param({"quantization": {"computeDtype": "float16"}}, {}, "computeDtype float16", id="float16"),
    pytest.param({"method": "LoRA", "quantization": {"computeDtype": "float16"}}, {}, "", id="a quantisation that is not used"),
    pytest.param({"lora": {"rank": 12}}, {}, "rank 12 is not a multiple of 8", id="an odd rank"),
    pytest.param(
        {"lora": {"targetModules": ["q_proj", "v_proj"]}},
        {},
        "k_proj without an adapter (all of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj need one)",
        id="few adapters",
    ),
    pytest.param(
        {"lora": {"targetModules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "mlp.down_proj"]}}, {}, "", id="all by their names"
    ),
    pytest.param({}, {"neftune_noise_alpha": "5"}, "extra argument neftune_noise_alpha", id="noise"),
    pytest.param({}, {"label_smoothing_factor": "0.1"}, "extra argument label_smoothing_factor", id="another loss"),
    pytest.param({}, {"label_smoothing_factor": "0", "enable_dft_loss": "false", "attn_impl": "sdpa", "use_rslora": "true"}, "", id="harmless ones"),
    pytest.param({}, {"enable_dft_loss": "true"}, "extra argument enable_dft_loss", id="weighted tokens"),
    pytest.param({}, {"attn_impl": "eager"}, "extra argument attn_impl", id="another attention"),
]


@pytest.mark.parametrize(("tuning", "extra", "reason"), JOBS)
def test_jobs(tuning: dict[str, Any], extra: dict[str, str], reason: str) -> None:
    found = unsupported(QWEN3, Tuning.model_validate(tuning), Training.model_validate({"extraArgs": extra}))
    assert found == (f"unsupported: {reason}" if reason else "")


def test_a_window_counts_while_nobody_says_how_long_the_rows_are() -> None:
    assert unsupported(MISTRAL | {"sliding_window": 4096}, Tuning()) == "unsupported: a sliding window of 4096 tokens"


def test_plan_and_outcome_are_read_as_they_were_written(tmp_path: Path) -> None:
    plan = FastPlan(micro_batch=4, accumulation=4, keep=[0, 2], row_tokens=1024, predicted_bytes=5, budget_bytes=6)
    outcome = FastOutcome(used=False, reason="unsupported: bias in o_proj", device="cpu")
    assert FastPlan.model_validate_json(plan.model_dump_json(by_alias=True)) == plan
    assert FastOutcome.model_validate_json(outcome.model_dump_json(by_alias=True)) == outcome
    assert outcome_path(tmp_path / "plan.json") == tmp_path / "plan.json.outcome"
