"""Which live models take the fast path, and how the reason reads when one does not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from finetune_runtime.contract.fast_path import LINEAR
from finetune_runtime.fastpath.support import unsupported
from tests.runtime.fast_models import SHAPES, make

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def llama(lora: dict[str, Any] | None = None, **config: Any) -> Any:
    model = LlamaForCausalLM(LlamaConfig(**TINY | config))
    return get_peft_model(model, LoraConfig(**{"r": 8, "target_modules": list(LINEAR)} | (lora or {})))


def with_trained_norm() -> Any:
    model = llama()
    model.base_model.model.model.norm.weight.requires_grad = True
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_models_that_take_it(shape: str) -> None:
    assert unsupported(make(shape)) == ""


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64)), "no decoder of Llama's shape"),
        (lambda: LlamaForCausalLM(LlamaConfig(**TINY)), "no LoRA adapter on q_proj"),
        (lambda: llama(attention_bias=True), "bias in o_proj"),
        (lambda: llama(mlp_bias=True), "bias in gate_proj"),
        (lambda: llama(hidden_act="gelu"), "activation GELUActivation"),
        (lambda: llama({"target_modules": ["q_proj", "v_proj"]}), "k_proj without an adapter"),
        (lambda: llama({"r": 12}), "rank 12 (a multiple of 8 is)"),
        (lambda: llama({"use_dora": True}), "an adapter on q_proj that is no plain LoRA"),
        (lambda: llama({"rank_pattern": {"up_proj": 16}}), "another rank, alpha or dropout on up_proj"),
        (lambda: llama({"modules_to_save": ["lm_head"]}), "base_model.model.lm_head.modules_to_save.default.weight is trained"),
        (with_trained_norm, "base_model.model.model.norm.weight is trained"),
        (lambda: llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), "rotary embedding dynamic"),
        (lambda: llama().to(torch.float16), "adapters of torch.float16"),
        (lambda: llama(attention_dropout=0.1), "dropout in the attention"),
        (lambda: llama(head_dim=24), "heads of 24 numbers"),
    ],
)
def test_models_that_do_not(model: Callable[[], Any], reason: str) -> None:
    assert unsupported(model()) == f"unsupported: {reason}"
