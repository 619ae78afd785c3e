"""Prompt parity on the live engine: a request gets the tokens that training had before the answer, token for token."""

import json
import re

import pytest

from tests.e2e.cluster import content, get, items, kubectl
from tests.e2e.endpoints import Endpoint

pytestmark = pytest.mark.timeout(1200)  # the first test also waits for both trainings
IGNORED = -100  # label of a token that the loss leaves out


def trained_prompt(namespace: str, job: str) -> list[int]:
    """Tokens before the last answer of the row that ms-swift shows at the start of a training, from the pod's log."""
    (pod,) = items("pods", namespace, f"finetune.dev/job={job},finetune.dev/step=Train")
    log = kubectl("-n", namespace, "logs", pod["metadata"]["name"])
    shown = {kind: re.search(rf"\[{kind}_IDS\] (\[[-0-9, ]+\])", log) for kind in ("INPUT", "LABELS")}
    assert all(shown.values()), f"the training of {job} shows no row:\n{log[:4000]}"
    tokens, labels = (json.loads(found[1]) for found in shown.values() if found)
    end = max(place for place, label in enumerate(labels) if label != IGNORED)
    return list(tokens[: max(place for place, label in enumerate(labels[:end]) if label == IGNORED) + 1])


@pytest.mark.parametrize(("job", "rounds"), [pytest.param("blue", 1, id="Qwen3 with qwen3"), pytest.param("clinic", 2, id="SmolLM2 with chatml")])
def test_the_engine_sees_token_for_token_what_training_saw(request: pytest.FixtureRequest, job: str, rounds: int) -> None:
    endpoint: Endpoint = request.getfixturevalue({"blue": "desk"}.get(job, job))
    wanted = trained_prompt(endpoint.namespace, job)
    text = endpoint.text(wanted)
    # prepare's data hold what was said; which row it is shows in what was asked.
    adapter = get("finetunejob", job, endpoint.namespace)["status"]["artifact"]["adapter"]["uri"]
    prepared = [json.loads(line)["messages"] for line in content(f"{adapter.removesuffix('adapter')}dataset/train.jsonl").decode().splitlines()]
    (row,) = [messages for messages in prepared if all(message["content"] in text for message in messages[:-1])]
    assert [message["role"] for message in row].count("user") == rounds
    for model in (endpoint.status()["servedName"], "base"):
        found = endpoint.post("/tokenize", {"model": model, "messages": row[:-1], "add_generation_prompt": True})
        assert found["tokens"] == wanted, endpoint.text(found["tokens"])
        completion = endpoint.client().chat.completions.create(model=model, messages=row[:-1], temperature=0, max_tokens=1)
        assert completion.usage is not None
        assert completion.usage.prompt_tokens == len(wanted), "completions count other tokens than /tokenize shows"
    samples = json.loads(content(f"{adapter}/parity.json"))["samples"]
    assert samples, "the adapter carries what readiness compares"
    assert {tuple(sample["tokens"]) for sample in samples if sample["messages"] == row[:-1]} <= {tuple(wanted)}
    for sample in samples:
        asked = {"model": "base", "messages": sample["messages"], "add_generation_prompt": True, "chat_template_kwargs": sample["options"]}
        assert endpoint.post("/tokenize", asked)["tokens"] == sample["tokens"]
