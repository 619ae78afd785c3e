"""Prompt parity: whatever is asked, the served prompt has the token ids that training saw before the answer."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.prepare.chat_jinja import literal, with_default_system
from finetune_runtime.prepare.encode import Encoder
from finetune_runtime.prepare.ending import find_ending
from finetune_runtime.prepare.identify import Identity, identify, look_up
from finetune_runtime.prepare.rows import Message
from finetune_runtime.prepare.sample import Example, as_request
from finetune_runtime.prepare.template import derive

SYSTEM = 'You answer for a "clinic".\nDate: {{ today }} {% raw %} C:\\new \u2028 \U0001f600 é'


@cache
def encoder(model: Path, template: str) -> Encoder:
    return Encoder("tiny", model, Identity("qwen3", template), 4096)


def talk(*turns: str, system: str = "") -> list[Message]:
    head: list[Message] = [{"role": "system", "content": system}] if system else []
    return head + [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]


def prompt(model: Path, template: str, messages: list[Message], **options: Any) -> str:
    tokenizer = encoder(model, "qwen3").tokenizer
    return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True, **options))


# Templates of ms-swift that differ in what surrounds the turns. All of them are tried with the tiny model's tokenizer, to which
# the markers of other models are plain text: parity is about ids, not about what they mean to a model.
PROMPTS = {
    "qwen3": ("ms-swift", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    "qwen3_nothinking": ("the tokenizer", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
    "chatml": ("the tokenizer", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
    "qwen2_5": (
        "ms-swift",
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama3": ("ms-swift", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
    "gemma": ("ms-swift", "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"),
    "phi3": ("ms-swift", "<|user|>\nHi<|end|>\n<|assistant|>\n"),
    "chatglm2": ("ms-swift", "[Round 1]\n\n问\uff1aHi\n\n答\uff1a"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_template_of_swift_becomes_a_served_template(tiny_model: Path, name: str) -> None:
    chat = derive(encoder(tiny_model, name), [], "", reasons=False)
    assert (chat.origin, prompt(tiny_model, chat.text, talk("Hi"))) == PROMPTS[name]
    assert chat.samples, "serving has something to compare"


def test_samples_for_serving_hold_the_ids_of_the_training_and_the_options_of_their_requests(tiny_model: Path) -> None:
    engine = encoder(tiny_model, "qwen3")
    plain, reasoned = talk("Where is it?", "There."), talk("Why?", "<think>\nhm\n</think>\n\nSo.")
    chat = derive(engine, [Example(row, as_request(row, system_filled_in=False), "data:1") for row in (plain, reasoned)], "", reasons=False)
    found = {sample["messages"][-1]["content"]: sample for sample in chat.samples}
    assert (found["Where is it?"]["options"], found["Where is it?"]["tokens"]) == ({}, engine.tokens(plain).prompt_ids())
    assert (found["Why?"]["options"], found["Why?"]["tokens"]) == ({"enable_thinking": True}, engine.tokens(reasoned).prompt_ids())
    for sample in chat.samples:
        text = prompt(tiny_model, chat.text, sample["messages"], **sample["options"])
        assert engine.tokenizer(text, add_special_tokens=False)["input_ids"] == sample["tokens"]


@pytest.mark.parametrize("name", [name for name in PROMPTS if name != "chatglm2"])
def test_system_prompt_of_the_job_stands_in_only_where_there_is_none(tiny_model: Path, name: str) -> None:
    chat = derive(encoder(tiny_model, name), [], SYSTEM, reasons=False)
    assert SYSTEM in prompt(tiny_model, chat.text, talk("Hi"))
    assert prompt(tiny_model, chat.text, talk("Hi")) == prompt(tiny_model, chat.text, talk("Hi", system=SYSTEM))
    assert SYSTEM not in prompt(tiny_model, chat.text, talk("Hi", system="Another."))


def test_history_keeps_what_training_put_before_its_answers(tiny_model: Path) -> None:
    chat = derive(encoder(tiny_model, "qwen3"), [], "", reasons=False)
    empty = "<think>\n\n</think>\n\n"
    served = prompt(tiny_model, chat.text, talk("a", "b", "c", "<think>\nhm\n</think>\n\nd", "e"))
    assert served == (
        f"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n{empty}b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
        f"<think>\nhm\n</think>\n\nd<|im_end|>\n<|im_start|>user\ne<|im_end|>\n<|im_start|>assistant\n{empty}"
    )


def test_request_may_ask_for_reasoning(tiny_model: Path) -> None:
    chat = derive(encoder(tiny_model, "qwen3"), [], "", reasons=False)
    assert prompt(tiny_model, chat.text, talk("Hi"), enable_thinking=True).endswith("<|im_start|>assistant\n")
    reasoning = derive(encoder(tiny_model, "qwen3"), [], "", reasons=True)
    assert prompt(tiny_model, reasoning.text, talk("Hi")).endswith("<|im_start|>assistant\n")
    assert prompt(tiny_model, reasoning.text, talk("Hi"), enable_thinking=False).endswith("</think>\n\n")


@pytest.mark.parametrize(
    ("messages", "cause"),
    [
        (talk("a", "b", "c")[1:], "must alternate"),
        ([*talk("a"), *talk("b")], "must alternate"),
        ([*talk("a", "b"), {"role": "system", "content": "x"}, *talk("c")], "must alternate"),
        ([*talk("a"), {"role": "tool", "content": "x"}], "must alternate"),
    ],
)
def test_request_that_training_never_saw_is_refused(tiny_model: Path, messages: list[Message], cause: str) -> None:
    chat = derive(encoder(tiny_model, "qwen3"), [], "", reasons=False)
    with pytest.raises(Exception, match=cause):
        prompt(tiny_model, chat.text, messages)


def test_template_of_one_round_takes_one_round(tiny_model: Path) -> None:
    single = encoder(tiny_model, "dummy")
    chat = derive(single, [], "", reasons=False)
    assert prompt(tiny_model, chat.text, talk("Hi")) == "Hi"
    with pytest.raises(Exception, match="one question at a time"):
        prompt(tiny_model, chat.text, talk("a", "b", "c"))


def test_first_difference_is_shown_when_no_template_fits(tiny_model: Path) -> None:
    # ms-swift 4.6 leaves its own placeholder in the prompt when this template has no system prompt.
    with pytest.raises(StepError) as caught:
        derive(encoder(tiny_model, "mistral_nemo"), [], "", reasons=False)
    assert (caught.value.code, caught.value.reason) == (Exit.MODEL_INVALID, Reason.MODEL_INVALID)
    assert "with the template of the tokenizer, training has '<s>[INST] {{SYST', the served prompt has '<|im_start|>user\\nHow are you?" in caught.value.message
    assert "with the template of ms-swift, training has " in caught.value.message
    assert derive(encoder(tiny_model, "mistral_nemo"), [], "Be kind.", reasons=False).origin == "ms-swift"


def test_row_of_the_data_decides_against_a_template_that_fits_the_probes(tiny_model: Path) -> None:
    plain = encoder(tiny_model, "chatml")
    own = plain.tokenizer.chat_template
    odd = talk("What does  white space  do?  ", "Nothing.")
    try:
        plain.tokenizer.chat_template = own.replace("message.content", "message.content | trim")
        assert derive(plain, [], "", reasons=False).origin == "the tokenizer"
        assert derive(plain, [Example(odd, odd[:-1])], "", reasons=False).origin == "ms-swift"
    finally:
        plain.tokenizer.chat_template = own


@pytest.mark.parametrize(
    ("name", "config", "token", "warning"),
    [
        ("qwen3", {}, "<|im_end|>", ""),  # the tokenizer's own end
        ("qwen3_emb", {}, "<|endoftext|>", "training ends answers with '<|endoftext|>', at which the model's generation_config.json does not stop: add "),
        ("qwen3_emb", {"eos_token_id": ["<|im_end|>", "<|endoftext|>"]}, "<|endoftext|>", ""),
        ("qwen3_emb", {"eos_token_id": "<|endoftext|>"}, "<|endoftext|>", ""),
        ("llama3", {}, "", "training ends answers with '<|eot_id|>', which is not one token of this tokenizer: spec.model.template"),
    ],
)
def test_serving_stops_where_training_ends_answers(tiny_model: Path, tmp_path: Path, name: str, config: dict[str, Any], token: str, warning: str) -> None:
    engine = encoder(tiny_model, name)
    ids = {key: engine.tokenizer.convert_tokens_to_ids(value) for key, value in config.items()}
    (tmp_path / "generation_config.json").write_text(json.dumps(ids))
    ending = find_ending(engine, tmp_path)
    assert ending.token_id == (engine.tokenizer.convert_tokens_to_ids(token) if token else None)
    assert ending.warning().startswith(warning)
    assert bool(ending.warning()) is bool(warning)


def test_white_space_around_answers_is_counted_and_forgiven(tiny_model: Path) -> None:
    engine = encoder(tiny_model, "qwen3")
    leading, history = talk("a", "\n b"), talk("a", " b\n", "c", "d")
    chat = derive(engine, [Example(leading, leading[:-1]), Example(history, history[:-1])], "", reasons=False)
    assert chat.inexact >= 1, "the loss leaves out white space behind an empty block of reasoning"
    other = Example(talk("a", "b"), talk("A"), "pvc://data/train.jsonl:7")
    with pytest.raises(StepError, match=r"training has .* the served prompt has .* \(pvc://data/train.jsonl:7\)"):
        derive(engine, [other], "", reasons=False)


def test_template_with_todays_date_is_not_taken_for_tomorrow(tiny_model: Path) -> None:
    plain = encoder(tiny_model, "chatml")
    own = plain.tokenizer.chat_template
    try:
        plain.tokenizer.chat_template = "{%- set today = strftime_now('%d') -%}" + own
        assert derive(plain, [], "", reasons=False).origin == "ms-swift"
    finally:
        plain.tokenizer.chat_template = own


# The repository is mounted read-only into the image: no database of examples. First calls load a model: no deadline.
QUIET = settings(max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
CONTENT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip) | st.sampled_from(
    [" x", "x\n", "<|im_end|>", "<think>", "<think>\nhm</think>\nx", "<think>\n\n</think>\n\nx", "</think>", "{{QUERY}}", "<image>", "{% if %}", "\u2028x"]
)


@pytest.mark.parametrize("name", ["qwen3", "chatml", "qwen2_5"])
@QUIET
@given(turns=st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3), system=st.just("") | CONTENT)
def test_any_conversation_is_served_with_the_text_that_it_was_trained_on(tiny_model: Path, name: str, turns: list[tuple[str, str]], system: str) -> None:
    engine = encoder(tiny_model, name)
    messages = talk(*(turn for pair in turns for turn in pair), system=system)
    example = Example(messages, as_request(messages, system_filled_in=False))
    trained = engine.tokens(messages)
    options = {"enable_thinking": True} if example.reasons else {}
    served = engine.tokenizer(prompt(tiny_model, _derived(tiny_model, name), example.request, **options), add_special_tokens=False)["input_ids"]
    assert engine.decode(trained.input_ids).startswith(engine.decode(served))
    if len(turns) == 1 and example.answer == example.answer.lstrip() and not example.answer.startswith(("<think>", "</think>")):
        assert trained.prompt_ids() == served


@cache
def _derived(model: Path, name: str) -> str:
    return derive(encoder(model, name), [], "", reasons=False).text


@QUIET
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_literal_is_the_text_itself(tiny_model: Path, text: str) -> None:
    assert prompt(tiny_model, f"{{{{- {literal(text)} -}}}}", talk("x")) == text
    assert prompt(tiny_model, with_default_system("{{- messages[0].content ~ messages[1].content -}}", text), talk("x")) == f"{text}x"


@pytest.mark.parametrize(
    ("name", "architecture", "expected"),
    [
        ("Qwen3-8B", "Qwen3ForCausalLM", Identity("qwen3", "qwen3")),
        ("Qwen3-4B-Instruct-2507", "Qwen3ForCausalLM", Identity("qwen3", "qwen3_nothinking")),
        ("Qwen2.5-0.5B-Instruct", "Qwen2ForCausalLM", Identity("qwen2", "qwen2_5")),
        ("Llama-3.2-1B-Instruct", "LlamaForCausalLM", Identity("llama", "llama3_2")),
    ],
)
def test_published_models_are_known_to_swift(name: str, architecture: str, expected: Identity) -> None:
    from finetune_runtime.contract.spec import ModelSpec

    assert identify(ModelSpec(source=f"hf://owner/{name}"), architecture, look_up(name, architecture)) == expected


def test_published_name_on_another_architecture_is_not_believed() -> None:
    assert look_up("Qwen3-8B", "LlamaForCausalLM").published is None
