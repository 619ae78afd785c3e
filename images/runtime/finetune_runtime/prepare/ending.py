"""Does serving stop where training teaches the model to stop? If not, every answer runs on until the token limit."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .encode import Encoder


@dataclass(frozen=True)
class Ending:
    """What training puts behind an answer. `token_id` None: it is not one token of the tokenizer. `known`: engines stop at it by themselves."""

    text: str
    token_id: int | None
    known: bool

    def warning(self) -> str:
        """Cause and cure, empty when all is well."""
        if self.known:
            return ""
        if self.token_id is None:
            return (
                f"training ends answers with {self.text!r}, which is not one token of this tokenizer: spec.model.template does not seem to be the model's own"
            )
        return (
            f"training ends answers with {self.text!r}, at which the model's generation_config.json does not stop: add {self.token_id} to its eos_token_id, "
            "or send stop with requests"
        )


def find_ending(encoder: Encoder, directory: Path) -> Ending:
    """Compares the template's end of an answer with the ids at which vLLM and transformers stop: the tokenizer's and generation_config.json's."""
    meta, tokenizer = encoder.template.template_meta, encoder.tokenizer
    suffix = meta.suffix[-1] if meta.suffix else ""
    ids = suffix if isinstance(suffix, list) else tokenizer(suffix.strip(), add_special_tokens=False)["input_ids"]
    text = encoder.decode(list(ids))
    if len(ids) != 1:
        return Ending(text, None, known=not ids)
    return Ending(text, ids[0], known=ids[0] in {tokenizer.eos_token_id, *_configured(directory / "generation_config.json")})


def _configured(path: Path) -> list[int]:
    try:
        found: Any = json.loads(path.read_bytes()).get("eos_token_id")
    except (FileNotFoundError, ValueError, AttributeError):  # engines do without the file
        return []
    return found if isinstance(found, list) else [found]
