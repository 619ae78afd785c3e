"""Type and template of a model: the user's word, then its published name, then its architecture, never a guess."""

import pytest

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.contract.spec import ModelSpec
from finetune_runtime.prepare.identify import Identity, Known, identify

TYPES = {
    "qwen3": ("qwen3", "qwen3_thinking"),
    "qwen3_emb": ("qwen3_emb",),
    "qwen3_reranker": ("qwen3_reranker",),
    "llama": ("llama",),
    "llama3": ("llama3",),
    "yi": ("chatml", "yi"),
    "mystery": (),
}
TEMPLATES = ["chatml", "llama", "llama3", "qwen3", "qwen3_emb", "qwen3_reranker", "qwen3_thinking", "yi"]
QWEN, LLAMA = ("qwen3", "qwen3_emb", "qwen3_reranker"), ("llama", "llama3", "yi")


def known(sharing: tuple[str, ...], published: Identity | None = None) -> Known:
    return Known(TYPES, TEMPLATES, sharing, published)


@pytest.mark.parametrize(
    ("given_type", "given_template", "knowledge", "expected"),
    [
        ("qwen3", "qwen3", known(QWEN), Identity("qwen3", "qwen3")),
        ("", "qwen3", known(QWEN), Identity("qwen3", "qwen3")),  # nobody trains answers into an embedding model
        ("", "", known(QWEN, Identity("qwen3", "qwen3_thinking")), Identity("qwen3", "qwen3_thinking")),
        ("", "qwen3", known(QWEN, Identity("qwen3", "qwen3_thinking")), Identity("qwen3", "qwen3")),
        ("", "", known(("llama3",)), Identity("llama3", "llama3")),
        ("llama", "", known(LLAMA), Identity("llama", "llama")),
        ("llama", "chatml", known(LLAMA), Identity("llama", "chatml")),
        ("llama", "", known(LLAMA, Identity("yi", "yi")), Identity("llama", "llama")),
        ("mystery", "chatml", known(()), Identity("mystery", "chatml")),
    ],
)
def test_model_is_identified(given_type: str, given_template: str, knowledge: Known, expected: Identity) -> None:
    assert identify(ModelSpec(source="pvc://models/m", type=given_type, template=given_template), "X", knowledge) == expected


@pytest.mark.parametrize(
    ("given_type", "given_template", "knowledge", "message"),
    [
        ("", "", known(QWEN), "is of type qwen3, which has several chat templates: set spec.model.template to one of: qwen3, qwen3_thinking."),
        ("", "", known(QWEN, Identity("qwen3", "")), "set spec.model.template to one of: qwen3, qwen3_thinking."),
        (
            "",
            "",
            known(LLAMA),
            "which several types share: set spec.model.type to one of: llama, llama3, yi (chatml | yi), and spec.model.template to one of those in brackets.",
        ),
        ("", "chatml", known(LLAMA), "set spec.model.type to one of: llama, llama3, yi."),
        ("", "", known(()), "ms-swift does not know the architecture 'X' of pvc://models/m: set spec.model.type to a type that is built alike."),
        ("qwen33", "", known(QWEN), "ms-swift knows no model type 'qwen33': set spec.model.type to one that it knows, for example qwen3"),
        ("qwen3", "chatlm", known(QWEN), "ms-swift knows no model template 'chatlm': set spec.model.template to one that it knows, for example chatml"),
        ("mystery", "", known(()), "set spec.model.template to one of: chatml, llama,"),
    ],
)
def test_doubt_becomes_one_message_with_all_choices(given_type: str, given_template: str, knowledge: Known, message: str) -> None:
    with pytest.raises(StepError) as caught:
        identify(ModelSpec(source="pvc://models/m", type=given_type, template=given_template), "X", knowledge)
    assert (caught.value.code, caught.value.reason) == (Exit.MODEL_INVALID, Reason.MODEL_INVALID)
    assert message in caught.value.message
