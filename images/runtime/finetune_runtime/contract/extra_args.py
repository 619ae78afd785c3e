"""spec.training.extraArgs: which further arguments of ms-swift a job may set, and why not the others.

An allow-list, because ms-swift and transformers have several hundred arguments: some load code or send data away, some break resuming
or the parity of training and serving without a word. Names and defaults are those of ms-swift 4.6 and transformers 5.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

_NUMBER = r"[0-9]+(\.[0-9]+)?([eE]-?[0-9]+)?"
_SHARE = r"0(\.[0-9]+)?|1(\.0+)?"
_WHOLE = r"[0-9]+"
_SWITCH = "true|false"
_OBJECT = "a JSON object"


@dataclass(frozen=True)
class Argument:
    """An argument that may be set. `values`: a regular expression that the whole value must match, or _OBJECT."""

    values: str
    what: str

    def accepts(self, value: str) -> bool:
        """Whether the value is one that the argument takes."""
        if self.values is _OBJECT:
            return _is_object(value)
        return re.fullmatch(self.values, value) is not None

    @property
    def shown(self) -> str:
        """The values in words."""
        words = {_NUMBER: "a number", _SHARE: "a number from 0 to 1", _WHOLE: "a whole number", _SWITCH: "true or false", _OBJECT: _OBJECT}
        return words.get(self.values, "one of " + ", ".join(self.values.split("|")))


ALLOWED: Mapping[str, Argument] = {
    "lr_scheduler_type": Argument(
        "cosine|linear|constant|constant_with_warmup|cosine_with_restarts|cosine_with_min_lr|polynomial|inverse_sqrt", "Learning rate schedule; default cosine."
    ),
    "lr_scheduler_kwargs": Argument(_OBJECT, "Parameters of the schedule."),
    "warmup_ratio": Argument(_SHARE, "Share of the steps in which the learning rate rises; default 0."),
    "warmup_steps": Argument(_WHOLE, "Steps in which the learning rate rises; wins over warmup_ratio."),
    "weight_decay": Argument(_NUMBER, "Weight decay of AdamW; default 0.1."),
    "max_grad_norm": Argument(_NUMBER, "Gradients are clipped to this norm; default 1."),
    "adam_beta1": Argument(_SHARE, "First moment's decay; default 0.9."),
    "adam_beta2": Argument(_SHARE, "Second moment's decay; default 0.95."),
    "adam_epsilon": Argument(_NUMBER, "Term that keeps AdamW from dividing by zero; default 1e-8."),
    "optim": Argument(
        "adamw_torch|adamw_torch_fused|adamw_8bit|paged_adamw_8bit|paged_adamw_32bit|adafactor|sgd",
        "Optimizer; 8-bit states need a quarter of the memory, paged ones move to the host's when the GPU is full; default adamw_torch_fused.",
    ),
    "neftune_noise_alpha": Argument(_NUMBER, "Noise on the embeddings in training (NEFTune)."),
    "label_smoothing_factor": Argument(_SHARE, "Label smoothing; default 0."),
    "use_rslora": Argument(_SWITCH, "Scale the adapter by alpha / sqrt(rank) instead of alpha / rank."),
    "attn_impl": Argument("sdpa|eager", "Attention implementation; default sdpa."),
    "acc_strategy": Argument("token|seq", "Whether the accuracy in the log counts tokens or whole answers; default token."),
    "enable_dft_loss": Argument(_SWITCH, "Dynamic fine-tuning loss: every token's loss is weighted by its probability."),
    "train_dataloader_shuffle": Argument(_SWITCH, "Shuffle the rows in every epoch; default true."),
}

# Arguments by the field that decides them. A star stands for any characters.
_FIELDS = {
    "training.epochs": "num_train_epochs max_steps max_epochs",
    "training.learningRate": "learning_rate",
    "training.maxLength": "max_length",
    "training.microBatchSize": "per_device_train_batch_size per_device_eval_batch_size auto_find_batch_size",
    "training.effectiveBatchSize": "gradient_accumulation_steps",
    "training.seed": "seed data_seed",
    "training.gradientCheckpointing": "gradient_checkpointing gradient_checkpointing_kwargs",
    "training.packing": "packing packing_* padding_free",
    "training.evalSteps": "eval_steps",
    "training.loggingSteps": "logging_steps logging_first_step",
    "training.earlyStopping": "early_stop_interval",
    "checkpoints.everySteps": "save_steps",
    "checkpoints.keep": "save_total_limit",
    "checkpoints.use": "load_best_model_at_end metric_for_best_model greater_is_better",
    "tuning.lora.rank": "lora_rank",
    "tuning.lora.alpha": "lora_alpha",
    "tuning.lora.dropout": "lora_dropout",
    "tuning.lora.targetModules": "target_modules",
    "tuning.method": "tuner_type train_type",
    "tuning.quantization": "quant_* bnb_* torch_dtype bf16 fp16",
    "spec.model": "model model_type template revision model_revision",
    "spec.dataset": "dataset val_dataset split_dataset_ratio system",
}
# And by the reason for which no job may set them.
_REASONS = {
    "it loads code or models into the training pod that nobody has checked": (
        "external_plugins custom_* callbacks check_model use_hf local_repo_path trust_remote_code"
    ),
    "a training pod writes to the job's storage and sends nothing elsewhere": "push_to_hub hub_* report_to swanlab_* wandb_* run_name",
    "checkpoints and exact resuming depend on it": (
        "output_dir add_version resume_* save_* create_checkpoint_symlink ignore_data_skip safe_serialization max_shard_size enable_jit_checkpoint "
        "use_flash_ckpt logging_dir"
    ),
    "the rows were proven for the way in which the job encodes them": (
        "streaming lazy_tokenize strict truncation_strategy loss_scale use_chat_template template_backend padding_side agent_template dataset_* split_*"
    ),
    "the adapter would no longer fit the base model that the engines serve": (
        "init_weights lora_bias modules_to_save use_dora lora_dtype freeze_* trainable_* adapters llamapro_* reft_* adalora_* boft_* vera_* fourier_*"
    ),
    "the operator decides where and with which processes a training runs": (
        "deepspeed fsdp* ddp_* device_map max_memory use_cpu local_rank sequence_parallel* use_ray ray_* dataloader_* ds3_*"
    ),
    "the job needs it as it is for its progress, evaluation or sizing": (
        "eval_* use_liger_kernel predict_with_generate prediction_loss_only disable_tqdm full_determinism"
    ),
    "it trains the base model's own weights, which are frozen here": "galore_* use_galore lisa_*",
}


def refusal(name: str, value: str) -> str:
    """Why a job may not set this argument to this value, as a sentence with the cure; empty when it may."""
    where = f"spec.training.extraArgs.{name}"
    if allowed := ALLOWED.get(name):
        return "" if allowed.accepts(value) else f"{where} takes {allowed.shown}, not {value!r}."
    if name.startswith("-") and refusal(name.lstrip("-").replace("-", "_"), value) == "":
        return f"{where}: write {name.lstrip('-').replace('-', '_')}, without dashes."
    if field := _matching(name, _FIELDS):
        return f"{where} is not needed: set {field} instead."
    if reason := _matching(name, _REASONS):
        return f"{where} cannot be set: {reason}. Remove it."
    return f"{where} is not in the list of accepted arguments ({', '.join(ALLOWED)}). Remove it."


def refusals(arguments: Mapping[str, str]) -> list[str]:
    """One sentence for each argument that may not be set."""
    return [sentence for name, value in arguments.items() if (sentence := refusal(name, value))]


def decided_by_fields() -> list[tuple[str, list[str]]]:
    """(field, arguments that it decides), for the documentation."""
    return [(field, names.split()) for field, names in _FIELDS.items()]


def refused_for_reasons() -> list[tuple[str, list[str]]]:
    """(reason, arguments that are refused for it), for the documentation."""
    return [(reason, names.split()) for reason, names in _REASONS.items()]


def _matching(name: str, table: Mapping[str, str]) -> str | None:
    return next((key for key, names in table.items() if any(fnmatchcase(name, pattern) for pattern in names.split())), None)


def _is_object(value: str) -> bool:
    try:
        return isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        return False
