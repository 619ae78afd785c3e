"""Which further arguments a job may give to ms-swift."""

import pytest

from finetune_runtime.contract.extra_args import ALLOWED, refusal, refusals


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr_scheduler_type", "constant_with_warmup"),
        ("lr_scheduler_kwargs", '{"min_lr": 1e-6}'),
        ("warmup_ratio", "0.03"),
        ("warmup_steps", "100"),
        ("weight_decay", "0"),
        ("adam_epsilon", "1e-8"),
        ("optim", "paged_adamw_8bit"),
        ("neftune_noise_alpha", "5"),
        ("use_rslora", "true"),
        ("attn_impl", "sdpa"),
    ],
)
def test_accepted(name: str, value: str) -> None:
    assert refusal(name, value) == ""


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("learning_rate", "1e-4", "is not needed: set training.learningRate instead"),
        ("num_train_epochs", "5", "set training.epochs instead"),
        ("bnb_4bit_quant_type", "fp4", "set tuning.quantization instead"),
        ("output_dir", "/tmp", "checkpoints and exact resuming depend on it"),
        ("ignore_data_skip", "true", "checkpoints and exact resuming depend on it"),
        ("external_plugins", "x.py", "loads code or models"),
        ("push_to_hub", "true", "sends nothing elsewhere"),
        ("report_to", "wandb", "sends nothing elsewhere"),
        ("truncation_strategy", "right", "rows were proven"),
        ("init_weights", "pissa", "no longer fit the base model"),
        ("deepspeed", "zero3", "operator decides"),
        ("use_galore", "true", "frozen here"),
        ("galore_rank", "8", "frozen here"),
        ("no_such_argument", "1", "not in the list of accepted arguments (lr_scheduler_type, "),
        ("--warmup-ratio", "0.1", "write warmup_ratio, without dashes"),
        ("warmup_ratio", "1.5", "takes a number from 0 to 1, not '1.5'"),
        ("warmup_steps", "-1", "takes a whole number, not '-1'"),
        ("weight_decay", "0.1; rm -rf /", "takes a number"),
        ("weight_decay", "0.1\n", "takes a number"),
        ("lr_scheduler_kwargs", "[1]", "takes a JSON object"),
        ("lr_scheduler_kwargs", "[" * 100000, "takes a JSON object"),
        ("optim", "lion", "takes one of adamw_torch, "),
        ("use_rslora", "yes", "takes true or false"),
    ],
)
def test_refused_with_the_reason_and_the_cure(name: str, value: str, words: str) -> None:
    sentence = refusal(name, value)
    assert sentence.startswith(f"spec.training.extraArgs.{name}")
    assert words in sentence
    assert sentence.endswith(".")


def test_every_fault_is_named_at_once() -> None:
    assert len(refusals({"learning_rate": "1", "warmup_ratio": "0.1", "deepspeed": "zero3"})) == 2


def test_every_accepted_argument_says_what_it_is() -> None:
    assert all(argument.what.endswith(".") and argument.shown for argument in ALLOWED.values())
