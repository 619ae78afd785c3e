"""The fast path of a training: what the trainer decides for it, what came of it, and which models and jobs it is for.

The trainer writes a FastPlan as JSON and names the file in the training process's environment; the plugin in that process answers with a FastOutcome in
a file beside it. Both are read and written whole: a writer makes another file and renames it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from .base import Model
from .spec import Training, Tuning

FAST_PLAN = "FINETUNE_FAST_PLAN"  # environment variable: path of the plan; the fast path is off where it is not set
CALLBACK = "fast_path"  # name of the plugin's callback, which comes before "finetune": its outcome is there when the training begins
UNSUPPORTED = "unsupported: "  # how every reason begins for which this model or job never takes the fast path

# What is kept of a decoder layer between its forward and its backward pass; the rest is computed once more.
KEEP_INPUT = 0  # its input only
KEEP_ATTENTION = 1  # also the projections of query, key and value, the attention's output and the hidden state after it
KEEP_ALL = 2  # also gate and up. Norms, rotary embedding and the gate's activation are always redone, the down projection never is

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_FAMILIES = ("qwen3", "qwen2", "llama", "mistral")
_ROPE = ("default", "linear", "llama3", "yarn")  # whose angles do not depend on how long the rows of a step happen to be


class FastPlan(Model):
    """What the trainer has decided for one start of the training process. Numbers of one GPU."""

    micro_batch: int = Field(ge=1, description="Rows per forward pass.")
    accumulation: int = Field(ge=1, description="Forward passes of an optimizer step.")
    keep: list[int] = Field(min_length=1, description="For each decoder layer, from the first: KEEP_INPUT, KEEP_ATTENTION or KEEP_ALL.")
    row_tokens: int = Field(ge=1, description="Tokens of the longest row that the plan counts with.")
    graph_tokens: int = Field(default=0, ge=0, description="Micro-batches of at most so many tokens run as CUDA graphs; 0: none do.")
    max_graphs: int = Field(default=0, ge=0, description="Shapes that are captured; micro-batches of further shapes run without a graph.")
    lora_dtype: Literal["float32", "bfloat16"] = "float32"
    optimizer: str = Field(
        default="adamw_torch_fused", description="ms-swift's --optim: adamw_torch_fused or adamw_8bit, or what the job sets in its extra arguments."
    )
    masters: Literal["none", "stochastic"] = Field(
        default="none",
        description="How updates smaller than bfloat16's spacing are kept where the adapter is bfloat16. stochastic: rounded up or down by chance.",
    )
    embedding_on_cpu: bool = Field(default=False, description="The embedding is in the host's memory; never where the head is the same tensor.")
    evaluation_batch: int = Field(default=1, ge=1, description="Rows at a time in evaluations, which are not on the fast path.")
    loss_tokens: int = Field(default=2048, ge=1, description="Most tokens whose logits exist at once.")
    predicted_bytes: int = Field(ge=0, description="What torch will have reserved at the peak of a step.")
    budget_bytes: int = Field(ge=0, description="What it may reserve.")


class FastOutcome(Model):
    """What the plugin found. Written when the training begins, again after the first optimizer step with `measured_bytes`, and whenever less is kept since."""

    used: bool = Field(description="Whether the steps take the fast path.")
    reason: str = Field(default="", max_length=512, description="Why not, for the user: unsupported: bias in q_proj.")
    device: str = Field(default="", max_length=128, description="Name of the device: NVIDIA H100 80GB HBM3, or cpu.")
    measured_bytes: int = Field(default=0, ge=0, description="What torch had reserved at most when this was written; 0: not known yet, or the CPU.")
    graphs: int = Field(default=0, ge=0, description="CUDA graphs captured in the first step.")
    keep: list[int] = Field(default=[], description="What is kept of each layer now, where the process came down from the plan's; empty: the plan's.")


class FastPathStatus(Model):
    """What became of the fast path, for status and report."""

    used: bool | None = Field(default=None, description="Whether training takes the fast path; absent: it is not known yet.")
    reason: str = Field(default="", max_length=512, description="Why not, for example unsupported: bias in o_proj.")
    micro_batch_size: int | None = Field(default=None, description="Rows per forward pass.")
    accumulation: int | None = Field(default=None, description="Forward passes of an optimizer step.")
    layers: str = Field(default="", max_length=128, description="What layers keep for the backward pass; the rest is computed once more.")
    graph_tokens: int | None = Field(default=None, description="Micro-batches of at most so many tokens run as CUDA graphs.")
    lora_dtype: str = Field(default="", max_length=16, description="Type of the adapter while it is trained.")
    optimizer: str = Field(default="", max_length=64, description="Optimizer, as ms-swift names it.")
    masters: str = Field(default="", max_length=16, description="How a bfloat16 adapter takes updates smaller than its spacing.")
    embedding_on_cpu: bool | None = Field(default=None, description="Whether the embedding is in the pod's memory instead of the GPU's.")
    predicted: str | None = Field(default=None, max_length=32, description="GPU memory that torch was to reserve, for example 21258Mi.")
    measured: str | None = Field(default=None, max_length=32, description="GPU memory that torch had reserved after the first step.")
    budget: str | None = Field(default=None, max_length=32, description="GPU memory that it may reserve.")

    def __str__(self) -> str:
        """For the report page."""
        if self.used is False or self.reason:
            return f"not used ({self.reason})"
        if not self.layers:
            return "used" if self.used else ""
        parts = [f"{self.micro_batch_size} x {self.accumulation} rows", self.layers, f"{self.lora_dtype} adapter", self.optimizer]
        parts += [f"{self.masters} masters"] if self.masters not in ("", "none") else []
        parts += ["embedding on the CPU"] if self.embedding_on_cpu else []
        parts += [f"CUDA graphs up to {self.graph_tokens} tokens"] if self.graph_tokens else []
        parts += [f"{self.predicted} of GPU memory predicted"] if self.predicted else []
        parts += [f"{self.measured} measured"] if self.measured else []
        return f"{'used' if self.used else 'planned'}: {', '.join(parts)}"


def layers_in_words(keep: Sequence[int]) -> str:
    """For example: 13 keep their input, 2 also the attention, 21 all."""
    words = {KEEP_INPUT: "keep their input", KEEP_ATTENTION: "also the attention", KEEP_ALL: "all"}
    present = [level for level in words if level in keep]
    first = {KEEP_ATTENTION: "keep input and attention", KEEP_ALL: "keep all"}
    return ", ".join(f"{list(keep).count(level)} {first.get(level, words[level]) if level == present[0] else words[level]}" for level in present)


def described(plan: FastPlan, outcome: FastOutcome | None = None) -> FastPathStatus:
    """A plan, and what came of it, as status and report show it."""
    kept = (outcome.keep if outcome else None) or plan.keep
    return FastPathStatus(
        used=outcome.used if outcome else None,
        reason=outcome.reason if outcome and not outcome.used else "",
        micro_batch_size=plan.micro_batch,
        accumulation=plan.accumulation,
        layers=layers_in_words(kept),
        graph_tokens=plan.graph_tokens,
        lora_dtype=plan.lora_dtype,
        optimizer=plan.optimizer,
        masters=plan.masters,
        embedding_on_cpu=plan.embedding_on_cpu,
        predicted=_mebibytes(plan.predicted_bytes),
        measured=_mebibytes(outcome.measured_bytes) if outcome else None,
        budget=_mebibytes(plan.budget_bytes),
    )


def _mebibytes(size: int) -> str | None:
    return f"{round(size / 2**20)}Mi" if size else None


def outcome_path(plan: Path) -> Path:
    """Where the plugin answers a plan."""
    return plan.with_name(plan.name + ".outcome")


def unsupported(config: Mapping[str, Any], tuning: Tuning, training: Training | None = None) -> str:
    """Why this model or job cannot take the fast path, as a reason for the user; empty when it can. `config`: the model's config.json.

    Looks at nothing but its arguments, so the prepare step, the operator and the plugin come to one answer.
    """
    reason = _of_model(config, training) or _of_tuning(tuning) or (_of_arguments(training.extra_args) if training else "")
    return reason and UNSUPPORTED + reason


def _of_model(config: Mapping[str, Any], training: Training | None) -> str:
    family = config.get("model_type")
    if family not in _FAMILIES:
        return f"model type {family or 'unknown'} (supported are {', '.join(_FAMILIES)})"
    if config.get("quantization_config"):
        return "weights that are quantised already"
    if config.get("attention_bias") and family in ("llama", "qwen3"):
        return "bias in o_proj"  # Qwen2's bias is in q_proj, k_proj and v_proj only
    if config.get("mlp_bias") and family == "llama":
        return "bias in gate_proj"
    if (activation := config.get("hidden_act", "silu")) not in ("silu", "swish"):
        return f"activation {activation}"
    if config.get("attention_dropout"):
        return "dropout in the attention"
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    if type(heads) is not int or type(hidden) is not int or heads < 1 or hidden < 1:
        return "config.json without num_attention_heads or hidden_size"
    head_dim = config.get("head_dim") or hidden // heads
    if head_dim not in (16, 32, 64, 128, 256):
        return f"heads of {head_dim} numbers (supported are 16, 32, 64, 128 and 256)"
    key_heads = config.get("num_key_value_heads") or heads
    if type(key_heads) is not int or heads % key_heads:
        return "key heads that do not divide the query heads"
    return _of_positions(config, training)


def _of_positions(config: Mapping[str, Any], training: Training | None) -> str:
    """A window that is as long as the longest row changes nothing."""
    window = config.get("sliding_window")
    slides = config.get("use_sliding_window", config["model_type"] == "mistral") or "sliding_attention" in (config.get("layer_types") or [])
    if slides and type(window) is int and not (training and window >= training.max_length):
        return f"a sliding window of {window} tokens"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    return "" if kind in _ROPE else f"rotary embedding {kind}"


def _of_tuning(tuning: Tuning) -> str:
    if tuning.method == "QLoRA" and tuning.quantization.compute_dtype != "bfloat16":
        return f"computeDtype {tuning.quantization.compute_dtype}"
    if tuning.lora.rank % 8:
        return f"rank {tuning.lora.rank} is not a multiple of 8"
    names = {target.rpartition(".")[2] for target in tuning.lora.target_modules}
    if "all-linear" not in names and (missing := [name for name in LINEAR if name not in names]):
        return f"{missing[0]} without an adapter (all of {', '.join(LINEAR)} need one)"
    return ""


def _of_arguments(arguments: Mapping[str, str]) -> str:
    other_losses = [name for name in ("neftune_noise_alpha", "label_smoothing_factor") if float(arguments.get(name, "0")) > 0]
    if arguments.get("enable_dft_loss") == "true":
        other_losses.append("enable_dft_loss")
    if arguments.get("attn_impl") == "eager":
        other_losses.append("attn_impl")
    return f"extra argument {other_losses[0]}" if other_losses else ""
