"""The ms-swift command of a job: a pure function of its configuration and of what was found in the pod.

Names and traps are those of ms-swift 4.6. What the job's fields do not decide (cosine schedule, AdamW, weight decay) stays ms-swift's own default.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from finetune_runtime.contract.artefact import TRAIN_FILE, VALIDATION_FILE
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.extra_args import refusals
from finetune_runtime.contract.fast_path import CALLBACK, FAST_PLAN, FastPlan
from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.contract.spec import Toggle, Tuning
from finetune_runtime.hardware import Hardware

from .early_stopping import EARLY_STOPPING, Rule
from .events import EVENTS_FD, STAGING

PLUGIN = Path(__file__).parent / "plugin" / "finetune_callback.py"
FAST_PLUGIN = Path(__file__).parent / "plugin" / "fast_path.py"
_LOADERS = 2  # processes that make micro-batches while the GPU computes
_WAITING_TOKENS = 2**14  # of the micro-batches that one of them has ready: with 8192 numbers for each token 256 MiB of shared memory
_PACKAGE_ROOT = Path(__file__).parents[2]
_SEVERAL: Mapping[str, str | int | bool] = {
    # Seconds that a process waits for the others; one that died is noticed at once. The longest wait is for the first one, which tokenises all rows.
    "ddp_timeout": 3600,
    "ddp_broadcast_buffers": False,  # none of them is trained
}
# Secrets, and variables that win over the command line.
_NOT_INHERITED = ("AWS_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TENSORBOARD_LOGGING_DIR", EARLY_STOPPING, FAST_PLAN)


@dataclass(frozen=True)
class Inputs:
    """What the training reads: local directories, and what prepare found about the model."""

    model: Path
    dataset: Path
    model_type: str
    template: str
    validation: bool


def arguments(
    config: JobConfig, inputs: Inputs, hardware: Hardware, *, micro_batch: int, output: Path, resume_from: Path | None, plan: FastPlan | None = None
) -> list[str]:
    """Arguments of `python3 -m swift.cli.sft`. `plan`: that of the fast path, which then decides about the rows at a time.

    Raises StepError for a number format that the hardware does not have or an argument that may not be set.
    """
    training = config.training
    checkpointing = {Toggle.ON: True, Toggle.OFF: False, Toggle.AUTO: not hardware.cpu_only}[training.gradient_checkpointing]
    flags: dict[str, str | int | bool | list[str]] = {
        "model": str(inputs.model),
        "model_type": inputs.model_type,
        "template": inputs.template,
        "check_model": False,  # else it asks a hub on the Internet whether the model is the latest
        "dataset": str(inputs.dataset / TRAIN_FILE),
        "split_dataset_ratio": 0,
        "streaming": False,
        "lazy_tokenize": False,
        "truncation_strategy": "delete",
        "strict": True,  # prepare has proven every row, so a row that fails is an error, not to be replaced by a random other one
        "output_dir": str(output),
        "add_version": False,
        "create_checkpoint_symlink": False,  # fails on resume
        **_tuning(config.tuning, hardware),
        "num_train_epochs": training.epochs,
        "learning_rate": training.learning_rate,
        "max_length": training.max_length,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": config.rows_per_gpu // micro_batch,
        "gradient_checkpointing": checkpointing,
        "use_liger_kernel": hardware.liger and not hardware.cpu_only,
        "seed": training.seed,
        "data_seed": training.seed,
        "logging_steps": training.logging_steps,
        "logging_nan_inf_filter": False,  # else a loss that is not a number is logged as the last good one
        "save_strategy": "steps",
        "save_steps": config.checkpoints.every_steps,
        "save_total_limit": 1,  # the supervisor has its own links to those that it still needs
        "dataloader_num_workers": 0,
        "report_to": "tensorboard" if util.find_spec("tensorboard") else "none",
        "disable_tqdm": True,
        "external_plugins": str(PLUGIN),
        "callbacks": "finetune",
        **_evaluation(config, inputs, micro_batch),
    }
    if plan:
        flags |= _fast_path(plan, inputs, hardware)
    if config.gpus > 1:
        flags |= _SEVERAL
    if hardware.cpu_only:
        flags["use_cpu"] = True
    if refused := refusals(training.extra_args):
        raise StepError(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, " ".join(refused))
    flags |= training.extra_args
    if resume_from:
        flags["resume_from_checkpoint"] = str(resume_from)
    return [word for name, value in flags.items() for word in (f"--{name}", *_words(value))]


def dtype(tuning: Tuning, hardware: Hardware) -> str:
    """The type that the training computes in; on a CPU float32, where it has nothing faster. Raises StepError for one that the GPU does not have."""
    wanted = tuning.quantization.compute_dtype if tuning.method == "QLoRA" else "bfloat16"
    if hardware.cpu_only:
        return "bfloat16" if wanted == "bfloat16" and hardware.bfloat16 else "float32"  # float16 training needs a GPU
    if wanted == "bfloat16" and not hardware.bfloat16:
        if tuning.method == "LoRA":
            return "float16"
        raise StepError(
            Exit.INVALID_CONFIG,
            Reason.INVALID_CONFIG,
            f"{hardware} cannot compute in bfloat16 (it needs an Ampere GPU or newer): set tuning.quantization.computeDtype to float16.",
        )
    return wanted


def environment(config: JobConfig, base: Mapping[str, str], scratch: Path, *, events_fd: int, staging: Path) -> dict[str, str]:
    """Environment of the training process: no network, no secrets, all caches in the scratch volume."""
    early = config.training.early_stopping
    rule = {EARLY_STOPPING: Rule(early.patience, float(early.min_improvement)).encode()} if early else {}
    kept = {name: value for name, value in base.items() if not name.startswith(_NOT_INHERITED)}
    return (
        kept
        | rule
        | {
            EVENTS_FD: str(events_fd),
            STAGING: str(staging),
            "PYTHONPATH": os.pathsep.join([str(_PACKAGE_ROOT), *filter(None, [base.get("PYTHONPATH")])]),
            "PYTHONUNBUFFERED": "1",
            "HOME": str(scratch / "home"),
            "HF_HOME": str(scratch / "cache/huggingface"),
            "MODELSCOPE_CACHE": str(scratch / "cache/modelscope"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": str(max(1, config.cpu_threads // config.gpus)),  # more threads than cores make small models many times slower
            # Threads that wait sleep instead of spinning: with other work on the cores, spinning made small products four times slower.
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        }
    )


def ranks(processes: int, port: int) -> list[dict[str, str]]:
    """What each of several processes finds in its environment besides, for torch.distributed, accelerate and ms-swift. `port`: a free one of this machine.

    torchrun would do the same, but it ends all processes 30 s after a SIGTERM and closes the descriptor of the events.
    """
    if processes == 1:
        return [{}]
    size = str(processes)
    # They are on one machine: what they say to each other stays on its loopback interface.
    shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}
    return [shared | {"RANK": str(number), "LOCAL_RANK": str(number)} for number in range(processes)]


def shown(config: JobConfig, words: Sequence[str]) -> list[str]:
    """The command by which a person repeats the training. `words`: ms-swift's arguments."""
    launcher = ["torchrun", "--nproc_per_node", str(config.gpus)] if config.gpus > 1 else ["python3"]
    return [*launcher, "-m", "swift.cli.sft", *words]


def _tuning(tuning: Tuning, hardware: Hardware) -> dict[str, str | int | bool | list[str]]:
    lora = tuning.lora
    computed = dtype(tuning, hardware)
    flags: dict[str, str | int | bool | list[str]] = {
        "tuner_type": "lora",
        "lora_rank": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": lora.target_modules,
        "torch_dtype": computed,
        # ms-swift turns fp16 on for float32 weights unless it is told not to.
        "bf16": computed == "bfloat16",
        "fp16": computed == "float16",
    }
    if tuning.method == "QLoRA":
        quantization = tuning.quantization
        flags |= {"quant_method": "bnb", "quant_bits": quantization.bits}
        if quantization.bits == 4:
            flags |= {
                "bnb_4bit_compute_dtype": computed,
                "bnb_4bit_quant_type": quantization.type,
                "bnb_4bit_use_double_quant": quantization.double_quant,
            }
    return flags


def _fast_path(plan: FastPlan, inputs: Inputs, hardware: Hardware) -> dict[str, str | int | bool | list[str]]:
    """What the plan decides of the command; the rest of it is in the plan's file, which the plugin reads."""
    flags: dict[str, str | int | bool | list[str]] = {
        "per_device_train_batch_size": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "lora_dtype": plan.lora_dtype,
        "optim": plan.optimizer,
        "external_plugins": [str(PLUGIN), str(FAST_PLUGIN)],
        "callbacks": [CALLBACK, "finetune"],  # in this order: what ours reports at the beginning, the other has found out by then
    }
    if inputs.validation:
        flags["per_device_eval_batch_size"] = plan.evaluation_batch
    if not hardware.cpu_only:  # with rows made in between, a step on an H100 took a tenth longer; on a CPU the workers would take its cores
        flags |= {
            "dataloader_num_workers": _LOADERS,
            # At the process's end torch waits 5 s for each persistent worker, which nobody has told to end (with 2 of them 12.5 s instead of 2).
            "dataloader_persistent_workers": False,
            "dataloader_prefetch_factor": _waiting(plan),
        }
    return flags


def _waiting(plan: FastPlan) -> int:
    """Micro-batches that each loader has ready: the trainer takes all of a step at once, before the step begins."""
    of_a_step = -(-plan.accumulation // _LOADERS)
    return max(2, min(of_a_step, _WAITING_TOKENS // (plan.micro_batch * plan.row_tokens)))


def _evaluation(config: JobConfig, inputs: Inputs, micro_batch: int) -> dict[str, str | int | bool | list[str]]:
    if not inputs.validation:
        return {"eval_strategy": "no"}
    return {
        "val_dataset": str(inputs.dataset / VALIDATION_FILE),
        "eval_strategy": "steps",
        "eval_steps": config.training.eval_steps,
        "per_device_eval_batch_size": micro_batch,
    }


def _words(value: str | int | bool | list[str]) -> list[str]:
    if isinstance(value, list):
        return value
    return [str(value).lower() if isinstance(value, bool) else str(value)]
