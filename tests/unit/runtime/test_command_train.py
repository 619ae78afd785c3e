"""The ms-swift command: every typed field arrives, every known trap is avoided."""

from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.fast_path import FAST_PLAN, FastPlan
from finetune_runtime.contract.result import Exit, StepError
from finetune_runtime.hardware import Gpu, Hardware
from finetune_runtime.train.command import FAST_PLUGIN, PLUGIN, Inputs, arguments, dtype, environment, ranks, shown
from finetune_runtime.train.early_stopping import EARLY_STOPPING, Rule

GPU = Hardware((Gpu("NVIDIA GeForce RTX 4060", 8 * 2**30),), liger=True)
TWO_GPUS = Hardware((Gpu("NVIDIA L4", 24 * 2**30), Gpu("NVIDIA L4", 24 * 2**30)), liger=True)
OLD_GPU = Hardware((Gpu("Tesla T4", 16 * 2**30),), bfloat16=False)
CPU = Hardware()
OLD_CPU = Hardware(bfloat16=False)
INPUTS = Inputs(Path("/scratch/model"), Path("/scratch/dataset"), "qwen3", "qwen3", validation=True)


def config(**sections: Any) -> JobConfig:
    base: dict[str, Any] = {
        "job": {"namespace": "n", "name": "j", "uid": "u"},
        "model": {"source": "hf://Qwen/Qwen3-8B"},
        "dataset": {"train": [{"source": "s3://datasets/support/clean_train.json"}]},
        "tuning": {},
        "training": {},
        "checkpoints": {},
        "storage": {"uri": "s3://models/finetune"},
    }
    return JobConfig.model_validate(base | sections)


def flags(
    hardware: Hardware = GPU,
    inputs: Inputs = INPUTS,
    *,
    micro_batch: int = 1,
    resume_from: Path | None = None,
    plan: FastPlan | None = None,
    **sections: Any,
) -> dict[str, str]:
    words = arguments(config(**sections), inputs, hardware, micro_batch=micro_batch, output=Path("/scratch/output"), resume_from=resume_from, plan=plan)
    names = [number for number, word in enumerate(words) if word.startswith("--")]
    assert len({words[number] for number in names}) == len(names), "a flag is given twice"
    return {words[a]: " ".join(words[a + 1 : b]) for a, b in zip(names, [*names[1:], len(words)], strict=True)}


def test_the_defaults_are_the_command_of_the_guide() -> None:
    guide = {
        "--model_type": "qwen3",
        "--template": "qwen3",
        "--num_train_epochs": "3",
        "--per_device_train_batch_size": "1",
        "--gradient_accumulation_steps": "16",
        "--learning_rate": "3e-6",
        "--max_length": "1024",
        "--logging_steps": "1",
        "--save_steps": "100",
        "--eval_steps": "100",
        "--eval_strategy": "steps",
        "--lora_rank": "64",
        "--lora_alpha": "128",
        "--lora_dropout": "0.05",
        "--gradient_checkpointing": "true",
        "--quant_method": "bnb",
        "--quant_bits": "4",
        "--bnb_4bit_compute_dtype": "bfloat16",
        "--bnb_4bit_quant_type": "nf4",
        "--bnb_4bit_use_double_quant": "true",
    }
    assert flags().items() >= guide.items()


def test_known_traps_are_avoided_whatever_the_job() -> None:
    traps = {
        "--check_model": "false",
        "--add_version": "false",
        "--create_checkpoint_symlink": "false",
        "--split_dataset_ratio": "0",
        "--streaming": "false",
        "--lazy_tokenize": "false",
        "--truncation_strategy": "delete",
        "--strict": "true",
        "--dataloader_num_workers": "0",
        "--save_strategy": "steps",
        "--logging_nan_inf_filter": "false",
        "--external_plugins": str(PLUGIN),
        "--callbacks": "finetune",
    }
    assert flags().items() >= traps.items()
    assert PLUGIN.exists()


def test_each_field_of_the_job_arrives() -> None:
    found = flags(
        tuning={
            "quantization": {"bits": 4, "type": "fp4", "doubleQuant": False, "computeDtype": "float16"},
            "lora": {"rank": 8, "alpha": 32, "dropout": "0", "targetModules": ["q_proj", "v_proj"]},
        },
        training={"epochs": 2, "learningRate": "1e-4", "maxLength": 512, "effectiveBatchSize": 12, "seed": 7, "evalSteps": 11, "loggingSteps": 3},
        checkpoints={"everySteps": 13},
        micro_batch=4,
        resume_from=Path("/scratch/resume/checkpoint-30"),
    )
    expected = {
        "--model": "/scratch/model",
        "--dataset": "/scratch/dataset/train.jsonl",
        "--val_dataset": "/scratch/dataset/val.jsonl",
        "--output_dir": "/scratch/output",
        "--bnb_4bit_quant_type": "fp4",
        "--bnb_4bit_use_double_quant": "false",
        "--bnb_4bit_compute_dtype": "float16",
        "--torch_dtype": "float16",
        "--fp16": "true",
        "--bf16": "false",
        "--lora_rank": "8",
        "--lora_alpha": "32",
        "--lora_dropout": "0",
        "--target_modules": "q_proj v_proj",
        "--num_train_epochs": "2",
        "--learning_rate": "1e-4",
        "--max_length": "512",
        "--per_device_train_batch_size": "4",
        "--per_device_eval_batch_size": "4",
        "--gradient_accumulation_steps": "3",
        "--seed": "7",
        "--data_seed": "7",
        "--eval_steps": "11",
        "--logging_steps": "3",
        "--save_steps": "13",
        "--resume_from_checkpoint": "/scratch/resume/checkpoint-30",
    }
    assert found.items() >= expected.items()


PLAN = FastPlan(
    micro_batch=2, accumulation=8, keep=[2], row_tokens=1024, lora_dtype="bfloat16", optimizer="adamw_8bit", masters="stochastic", evaluation_batch=1,
    predicted_bytes=1, budget_bytes=1,
)  # fmt: skip


LOADERS = {"--dataloader_persistent_workers", "--dataloader_prefetch_factor"}


def test_the_fast_path_s_plan_decides_what_it_is_about() -> None:
    found = flags(plan=PLAN, micro_batch=2)
    expected = {
        "--per_device_train_batch_size": "2",
        "--gradient_accumulation_steps": "8",
        "--per_device_eval_batch_size": "1",
        "--lora_dtype": "bfloat16",
        "--optim": "adamw_8bit",
        "--external_plugins": f"{PLUGIN} {FAST_PLUGIN}",
        "--callbacks": "fast_path finetune",
    }
    assert found.items() >= expected.items()
    usual = flags(micro_batch=2)
    assert {name for name in found if name not in usual} == {"--lora_dtype", "--optim", *LOADERS}
    assert (found["--dataloader_num_workers"], flags(CPU, plan=PLAN)["--dataloader_num_workers"]) == ("2", "0")
    assert "--per_device_eval_batch_size" not in flags(plan=PLAN, inputs=Inputs(INPUTS.model, INPUTS.dataset, "llama", "chatml", validation=False))


@pytest.mark.parametrize(
    ("rows", "accumulation", "tokens", "expected"),
    [
        pytest.param(16, 1, 1024, "2", id="at least two"),
        pytest.param(1, 16, 1024, "8", id="a step of small micro-batches"),
        pytest.param(1, 64, 4096, "4", id="no more than shared memory has room for"),
        pytest.param(1, 16, 32768, "2", id="very long rows"),
    ],
)
def test_loaders_have_the_micro_batches_of_a_step_ready(rows: int, accumulation: int, tokens: int, expected: str) -> None:
    found = flags(plan=PLAN.model_copy(update={"micro_batch": rows, "accumulation": accumulation, "row_tokens": tokens}))
    assert (found["--dataloader_persistent_workers"], found["--dataloader_prefetch_factor"]) == ("false", expected)


def test_only_the_trainer_names_a_plan() -> None:
    found = environment(config(), {FAST_PLAN: "/elsewhere"}, Path("/scratch"), events_fd=7, staging=Path("/scratch/staged"))
    assert FAST_PLAN not in found
    assert found["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


@pytest.mark.parametrize(
    ("gpus", "micro", "effective", "accumulation"),
    [(1, 4, 16, "4"), (2, 4, 16, "2"), (4, 4, 16, "1"), (8, 1, 16, "2"), (3, 2, 12, "2")],
)
def test_rows_at_a_time_accumulation_and_gpus_make_the_step_that_was_asked_for(gpus: int, micro: int, effective: int, accumulation: str) -> None:
    found = flags(gpus=gpus, micro_batch=micro, training={"effectiveBatchSize": effective})
    assert (found["--per_device_train_batch_size"], found["--gradient_accumulation_steps"]) == (str(micro), accumulation)
    assert found.get("--ddp_timeout") == (None if gpus == 1 else "3600")


def test_each_process_knows_its_place_and_all_of_them_one_meeting_point() -> None:
    assert ranks(1, 29511) == [{}]
    found = ranks(2, 29511)
    assert [(rank["RANK"], rank["LOCAL_RANK"], rank["WORLD_SIZE"], rank["LOCAL_WORLD_SIZE"]) for rank in found] == [("0", "0", "2", "2"), ("1", "1", "2", "2")]
    assert {(rank["MASTER_ADDR"], rank["MASTER_PORT"]) for rank in found} == {("127.0.0.1", "29511")}


def test_the_cores_of_the_pod_are_shared() -> None:
    found = {gpus: environment(config(cpuThreads=4, gpus=gpus), {}, Path("/scratch"), events_fd=7, staging=Path("/s"))["OMP_NUM_THREADS"] for gpus in (1, 2, 8)}
    assert found == {1: "4", 2: "2", 8: "1"}


def test_the_command_for_people_starts_as_many_processes() -> None:
    assert shown(config(), ["--seed", "1"])[:4] == ["python3", "-m", "swift.cli.sft", "--seed"]
    assert shown(config(gpus=2), ["--seed", "1"])[:5] == ["torchrun", "--nproc_per_node", "2", "-m", "swift.cli.sft"]


def test_without_validation_rows_nothing_asks_for_an_evaluation() -> None:
    found = flags(inputs=Inputs(INPUTS.model, INPUTS.dataset, "llama", "chatml", validation=False))
    assert found["--eval_strategy"] == "no"
    assert "--val_dataset" not in found
    assert "--eval_steps" not in found


def test_eight_bits_have_no_four_bit_flags() -> None:
    found = flags(tuning={"quantization": {"bits": 8}})
    assert found["--quant_bits"] == "8"
    assert not [name for name in found if "4bit" in name]


def test_lora_has_no_quantization_flags() -> None:
    found = flags(tuning={"method": "LoRA"})
    assert not [name for name in found if "quant" in name or "4bit" in name]
    assert found["--torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("wanted", "hardware", "checkpointing", "case"),
    [
        ("Auto", GPU, "true", "Auto is on where memory is scarce"),
        ("Auto", CPU, "false", "and off on a CPU"),
        ("Off", GPU, "false", "the user's word"),
        ("On", CPU, "true", "the user's word"),
    ],
)
def test_gradient_checkpointing(wanted: str, hardware: Hardware, checkpointing: str, case: str) -> None:
    assert flags(hardware, training={"gradientCheckpointing": wanted})["--gradient_checkpointing"] == checkpointing, case


@pytest.mark.parametrize(
    ("hardware", "expected", "case"),
    [
        (GPU, "true", "one GPU"),
        (TWO_GPUS, "true", "each process has one GPU"),
        (OLD_GPU, "false", "the package is not installed"),
        (CPU, "false", "its kernels need a GPU"),
    ],
)
def test_fused_kernels_are_used_where_they_work(hardware: Hardware, expected: str, case: str) -> None:
    assert flags(hardware, tuning={"quantization": {"computeDtype": "float16"}})["--use_liger_kernel"] == expected, case


def test_only_a_cpu_is_told_to_be_one() -> None:
    assert flags(CPU)["--use_cpu"] == "true"
    assert "--use_cpu" not in flags(GPU)


@pytest.mark.parametrize(
    ("method", "wanted", "hardware", "expected", "case"),
    [
        ("QLoRA", "bfloat16", GPU, "bfloat16", "as asked"),
        ("QLoRA", "float16", GPU, "float16", "as asked"),
        ("QLoRA", "float32", GPU, "float32", "as asked"),
        ("QLoRA", "float16", OLD_GPU, "float16", "as asked"),
        ("LoRA", "float32", GPU, "bfloat16", "the quantisation's type does not concern LoRA"),
        ("LoRA", "bfloat16", OLD_GPU, "float16", "the 16 bits that the GPU has"),
        ("QLoRA", "bfloat16", CPU, "bfloat16", "as asked"),
        ("QLoRA", "float16", CPU, "float32", "training in float16 needs a GPU"),
        ("QLoRA", "bfloat16", OLD_CPU, "float32", "what a CPU without bfloat16 computes fastest"),
        ("LoRA", "bfloat16", OLD_CPU, "float32", "what a CPU without bfloat16 computes fastest"),
    ],
)
def test_number_format(method: str, wanted: str, hardware: Hardware, expected: str, case: str) -> None:
    tuning = config(tuning={"method": method, "quantization": {"computeDtype": wanted}}).tuning
    assert dtype(tuning, hardware) == expected, case


def test_a_format_that_the_gpu_lacks_is_refused_with_the_cure() -> None:
    with pytest.raises(StepError, match=r"Tesla T4.*computeDtype to float16") as caught:
        dtype(config().tuning, OLD_GPU)
    assert caught.value.code is Exit.INVALID_CONFIG


def test_further_arguments_are_passed_on_and_the_others_are_refused_with_a_reason() -> None:
    assert flags(training={"extraArgs": {"warmup_ratio": "0.03"}})["--warmup_ratio"] == "0.03"
    with pytest.raises(StepError, match=r"set training\.epochs instead") as caught:
        flags(training={"extraArgs": {"max_steps": "5"}})
    assert caught.value.code is Exit.INVALID_CONFIG


def test_the_rule_for_stopping_early_reaches_the_training_process_and_nothing_else_sets_it() -> None:
    outer = {EARLY_STOPPING: Rule(1).encode()}
    plain, early = (
        environment(config(training=training), outer, Path("/scratch"), events_fd=7, staging=Path("/scratch/staged"))
        for training in ({}, {"earlyStopping": {"patience": 2, "minImprovement": "0.01"}})
    )
    assert Rule.parse(plain.get(EARLY_STOPPING)) is None
    assert Rule.parse(early.get(EARLY_STOPPING)) == Rule(2, 0.01)


def test_float32_does_not_turn_mixed_precision_on() -> None:
    found = flags(tuning={"quantization": {"computeDtype": "float32"}})
    assert (found["--torch_dtype"], found["--bf16"], found["--fp16"]) == ("float32", "false", "false")


def test_the_training_process_gets_no_secrets_no_network_and_writable_caches() -> None:
    base = {
        "PATH": "/bin",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_SESSION_TOKEN": "t",
        "HF_TOKEN": "h",
        "PYTHONPATH": "/app",
        "TENSORBOARD_LOGGING_DIR": "/elsewhere",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    found = environment(config(cpuThreads=4), base, Path("/scratch"), events_fd=7, staging=Path("/scratch/staged"))
    assert not [name for name in found if "AWS" in name or "TOKEN" in name.removeprefix("TOKENIZERS")]
    assert "TENSORBOARD_LOGGING_DIR" not in found  # it would win over the command line
    assert found["HF_HUB_OFFLINE"] == "1"
    assert found["OMP_NUM_THREADS"] == "4"
    assert found["CUDA_VISIBLE_DEVICES"] == "0"
    assert found["PYTHONPATH"].endswith(":/app")
    for name in ("HOME", "HF_HOME", "MODELSCOPE_CACHE"):
        assert found[name].startswith("/scratch/"), name
