"""Tiny random models of every shape that the fast path takes, with adapters that are not zero, and what plain torch makes of a batch."""

from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from finetune_runtime.contract.fast_path import LINEAR, FastPlan
from finetune_runtime.fastpath import batch as batches
from finetune_runtime.fastpath.adapters import GROUPS
from finetune_runtime.fastpath.attention import Attention
from finetune_runtime.fastpath.model import FastModel
from finetune_runtime.fastpath.ops.dropout import kept
from finetune_runtime.fastpath.support import language_model

WORD = 0xC0FFEE  # of the one micro-batch that there is
_SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHAPES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 32}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "llama3": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": _LLAMA3}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None, "head_dim": 16}),
    # Three key heads of nine, and the head is the embedding.
    "smollm2": (LlamaConfig, LlamaForCausalLM, {"hidden_size": 144, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}),
}


def make(
    shape: str,
    dtype: torch.dtype = torch.float32,
    *,
    dropout: float = 0.0,
    lora: torch.dtype = torch.float32,
    device: str = "cpu",
    bits: int = 16,
    as_if: int = 16,
    **sizes: Any,
) -> Any:
    """A model in training mode with LoRA of rank 8 on all linear layers; weights, norms, biases and both matrices of every adapter are random.

    bits: 4 or 8 for a base that bitsandbytes has quantised; as_if: 4 or 8 for plain numbers that are those of such a base.
    """
    config, kind, special = SHAPES[shape]
    torch.manual_seed(0)
    model = kind(config(**_SIZES | special | sizes, attn_implementation="sdpa"))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
        elif name.endswith("bias"):
            parameter.data.normal_(0, 0.1)
    if bits < 16 or as_if < 16:
        _quantize(model, min(bits, as_if), device, keep=bits < 16)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, lora_dropout=dropout, target_modules=list(LINEAR)))
    for name, parameter in model.named_parameters():
        adapter = "lora_" in name
        if adapter:
            parameter.data.normal_(0, 0.05)
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(device, lora if adapter else dtype)
    return model.to(device).train()


def _quantize(model: Any, bits: int, device: str, *, keep: bool) -> None:
    """Replaces the decoder's linear layers by bitsandbytes' (keep), or their weights by what such layers hold. All weights come from bfloat16."""
    for layer in model.model.layers:
        for name in LINEAR:
            owner = layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp
            old = getattr(owner, name)
            weight, bias = old.weight.data.bfloat16(), old.bias
            if bits == 4:
                new = bnb.nn.Linear4bit(old.in_features, old.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
                new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
                new = new.to(device)
                held = bnb.functional.dequantize_4bit(new.weight.data, new.weight.quant_state)
            else:
                new = bnb.nn.Linear8bitLt(old.in_features, old.out_features, bias=False, has_fp16_weights=False)
                new.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
                new = new.to(device)
                held = new.weight.data.float() * new.weight.SCB[:, None] / 127
            if keep:
                new.bias = bias
                setattr(owner, name, new)
            else:
                old.weight.data = held.float().cpu()


@dataclass(frozen=True)
class Result:
    loss: float
    gradients: dict[str, torch.Tensor]  # float64 on the CPU


def rows(lengths: list[int], vocabulary: int = 320) -> dict[str, torch.Tensor]:
    """A batch as ms-swift collates it: padded at the right, the first third of every row not trained."""
    generator, longest = torch.Generator().manual_seed(1), max(lengths)
    ids = torch.randint(3, vocabulary, (len(lengths), longest), generator=generator)
    mask = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    prompt = torch.arange(longest)[None] < torch.tensor(lengths)[:, None] // 3
    return {"input_ids": torch.where(mask, ids, 0), "labels": torch.where(mask & ~prompt, ids, -100), "attention_mask": mask.long()}


def plain(model: Any, batch: dict[str, torch.Tensor], scale: float = 1.0, *, autocast: bool = False) -> Result:
    """What the model itself makes of a batch; autocast: as ms-swift trains in bfloat16."""
    device = next(model.parameters()).device
    model.zero_grad()
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        loss = model(**{name: value.to(device) for name, value in batch.items()}).loss
    (loss * scale).backward()
    return Result(loss.item(), gradients(model))


def fast_model(model: Any, **plan: Any) -> FastModel:
    values = {"micro_batch": 1, "accumulation": 1, "keep": [2], "row_tokens": 64, "loss_tokens": 16, "predicted_bytes": 0, "budget_bytes": 0}
    return FastModel(language_model(model), FastPlan.model_validate(values | plan), "default")


def fast(
    model: Any,
    batch: dict[str, torch.Tensor],
    *,
    scale: float = 1.0,
    times: int = 1,
    graphs: batches.Shapes | None = None,
    attention: Attention | None = None,
    **plan: Any,
) -> Result:
    """What the fast path makes of it, `times` times over; the model is as before afterwards."""
    made = fast_model(model, **plan)
    made.attention = attention or made.attention
    made.adapters.begin_step()
    device = made.adapters.flat.device
    prepared = batches.prepare(batch, graphs, None)
    prepared = {name: value.to(device) if torch.is_tensor(value) else value for name, value in prepared.items()}
    for _ in range(times):
        made.word.fill_(WORD)
        loss, tape = made.forward(prepared)
        made.backward(tape, torch.tensor([scale], device=device))
    result = Result(loss.item(), gradients(model))
    made.adapters.release()
    return result


class FixedDropout(torch.nn.Module):  # type: ignore[misc]  # torch is untyped
    """In the place of an adapter's dropout: the fast path's mask of one micro-batch, for rows without padding."""

    def __init__(self, site: int, probability: float) -> None:
        super().__init__()
        self.site, self.probability = site, probability

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        word = torch.tensor([WORD], dtype=torch.int64, device=x.device)
        mask = kept(word, self.site, x[..., 0].numel(), x.shape[-1], round(self.probability * 2**24))
        return x * mask.view(x.shape) / (1 - self.probability)


def fix_dropout(model: Any, probability: float) -> None:
    """Makes the model itself draw the fast path's masks."""
    for index, layer in enumerate(language_model(model).model.layers):  # type: ignore[union-attr]
        for group, names in enumerate(GROUPS):
            for name in names:
                owner = layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp
                getattr(owner, name).lora_dropout["default"] = FixedDropout(index * len(GROUPS) + group, probability)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.detach().double().cpu() for name, parameter in model.named_parameters() if parameter.grad is not None}


def error(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Relative error of all gradients as one vector, and of the worst tensor."""
    assert set(found) == set(wanted)
    norm = {name: (found[name] - wanted[name]).norm().item() for name in wanted}
    whole = sum(value**2 for value in norm.values()) ** 0.5 / sum(value.norm().item() ** 2 for value in wanted.values()) ** 0.5
    return whole, max(norm[name] / wanted[name].norm().item() for name in wanted)
