"""Whether a live model can take the fast path. What config.json and the job say has been judged before (contract.fast_path.unsupported); this looks at what
ms-swift, PEFT and bitsandbytes have really made of it, and trusts nothing that it cannot see.
"""

from typing import Any

import torch

from finetune_runtime.contract.fast_path import UNSUPPORTED

from .adapters import GROUPS

_ROPE = ("default", "linear", "llama3", "yarn")
_BASES = ("Linear", "Linear4bit", "Linear8bitLt")


def language_model(model: Any) -> Any | None:
    """The causal language model inside whatever is wrapped around it: layers of Llama's shape, a norm, an output head."""
    for module in model.modules():
        base = getattr(module, "model", None)
        if hasattr(module, "lm_head") and all(hasattr(base, name) for name in ("layers", "norm", "embed_tokens", "rotary_emb")):
            return module
    return None


def unsupported(model: Any) -> str:
    """Why this model, with its adapters in place, cannot take the fast path; empty when it can."""
    language = language_model(model)
    if language is None:
        return UNSUPPORTED + "no decoder of Llama's shape"
    reason = _of_adapters(model, language) or _of_language_model(language) or next(filter(None, map(_of_layer, language.model.layers)), "")
    return reason and UNSUPPORTED + reason


def adapter_name(layer: Any) -> str:
    """The active adapter of PEFT's linear layer. Raises ValueError unless there is exactly one."""
    (name,) = layer.active_adapters
    return str(name)


def _of_adapters(model: Any, language: Any) -> str:
    first: Any = getattr(language.model.layers[0].self_attn, "q_proj", None)
    if not hasattr(first, "lora_A") or len(first.active_adapters) != 1:
        return "no LoRA adapter on q_proj"
    name = adapter_name(first)
    linear = {
        id(getattr(part, member)): member for layer in language.model.layers for part, members in _parts(layer) for member in members if hasattr(part, member)
    }
    ours: set[int] = set()
    for module in model.modules():
        if not hasattr(module, "lora_A"):
            continue
        if id(module) not in linear:
            return "an adapter on a layer that is none of the decoder's linear layers"
        if module.merged or module.active_adapters != first.active_adapters or getattr(module, "lora_variant", None):
            return f"an adapter on {linear[id(module)]} that is no plain LoRA"
        if module.r[name] != first.r[name] or module.scaling[name] != first.scaling[name] or _dropout(module, name) != _dropout(first, name):
            return f"another rank, alpha or dropout on {linear[id(module)]}"
        if module.lora_B[name].bias is not None:
            return "adapters with bias"
        ours |= {id(module.lora_A[name].weight), id(module.lora_B[name].weight)}
    if first.r[name] % 8:
        return f"rank {first.r[name]} (a multiple of 8 is)"
    dtypes = {parameter.dtype for parameter in model.parameters() if id(parameter) in ours}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.bfloat16, torch.float64}:
        return "adapters of " + " and ".join(sorted(map(str, dtypes)))
    trained = next((path for path, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in ours), None)
    return f"{trained} is trained" if trained else ""


def _of_language_model(language: Any) -> str:
    base, head = language.model, language.lm_head
    if type(head).__name__ != "Linear" or head.bias is not None or head.weight.dtype not in (torch.bfloat16, torch.float32, torch.float64):
        return f"an output head of {type(head).__name__}"
    if head.weight.dtype != base.embed_tokens.weight.dtype or type(base.embed_tokens).__name__ != "Embedding":
        return f"an embedding of {type(base.embed_tokens).__name__}"
    if len({parameter.device for parameter in language.parameters()}) != 1:
        return "a model that lies on several devices"
    if (kind := getattr(base.rotary_emb, "rope_type", "default")) not in _ROPE:
        return f"rotary embedding {kind}"
    scales = {name: getattr(language.config, name, 1.0) for name in ("embedding_multiplier", "residual_multiplier", "logits_scaling", "attention_multiplier")}
    return next((f"{name} of {value}" for name, value in scales.items() if value not in (None, 1.0)), "")


def _of_layer(layer: Any) -> str:
    return _of_linear(layer) or _of_norms(layer) or _of_attention(layer.self_attn)


def _of_linear(layer: Any) -> str:
    for part, members in _parts(layer):
        for member in members:
            module: Any = getattr(part, member, None)
            if not hasattr(module, "lora_A"):
                return f"{member} without an adapter"
            base = module.get_base_layer()
            if type(base).__name__ not in _BASES:
                return f"{member} of {type(base).__name__}"
            if base.bias is not None and member not in GROUPS[0]:
                return f"bias in {member}"
    if len({getattr(layer.self_attn, member).get_base_layer().bias is None for member in GROUPS[0]}) != 1:
        return "bias in some of q_proj, k_proj, v_proj"
    activation = type(layer.mlp.act_fn).__name__
    return "" if activation in ("SiLU", "SiLUActivation") else f"activation {activation}"


def _of_norms(layer: Any) -> str:
    attention = layer.self_attn
    norms = [layer.input_layernorm, layer.post_attention_layernorm, *(getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name))]
    if any(not type(norm).__name__.endswith("RMSNorm") or not hasattr(norm, "variance_epsilon") or getattr(norm, "offset", 0) for norm in norms):
        return "norms that are no RMSNorm of Llama's"
    if len({norm.variance_epsilon for norm in norms}) != 1:
        return "norms with several epsilons"
    if hasattr(attention, "q_norm") and attention.q_norm.weight.shape != (attention.head_dim,):
        return "a norm over all heads"
    return "norms after the MLP" if any("feedforward_layernorm" in name for name, _ in layer.named_children()) else ""


def _of_attention(attention: Any) -> str:
    dim = attention.head_dim
    if dim not in (16, 32, 64, 128, 256) or getattr(attention, "scaling", dim**-0.5) != dim**-0.5:
        return f"heads of {dim} numbers"
    return "dropout in the attention" if getattr(attention, "attention_dropout", 0.0) else ""


def _parts(layer: Any) -> list[tuple[Any, tuple[str, ...]]]:
    return [(layer.self_attn, GROUPS[0] + GROUPS[1]), (getattr(layer, "mlp", None), GROUPS[2] + GROUPS[3])]


def _dropout(module: Any, name: str) -> float:
    return float(getattr(module.lora_dropout[name], "p", 0.0))
