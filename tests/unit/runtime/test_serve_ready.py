"""The readiness probe against a server on the loopback interface that speaks the part of the engines' protocol that it uses."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract import artefact, config
from finetune_runtime.contract.result import Reason, StepResult
from finetune_runtime.serve import fetch, parity, ready, run

from .json_server import answering

SAMPLE = {"messages": [{"role": "user", "content": "When do you open?"}], "options": {}, "tokens": [1, 2, 3]}


@dataclass
class Engine:
    """`tokens`: what /tokenize answers; `asked`: paths, in order."""

    port: int = 0
    models: list[str] = field(default_factory=lambda: ["base", "support"])
    tokens: list[int] = field(default_factory=lambda: [1, 2, 3])
    choices: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    broken: str = ""
    asked: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, _method: str, path: str, body: Any) -> tuple[int, object]:
        self.asked.append(path)
        if body is not None:
            self.bodies.append(body)
        answers = {
            "/v1/models": {"data": [{"id": name} for name in self.models]},
            "/tokenize": {"tokens": self.tokens},
            "/v1/chat/completions": {"choices": self.choices},
            "/health": {},
        }
        return 500 if path == self.broken else 200, answers[path]


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    with answering(engine.answer) as engine.port:
        yield engine


@pytest.fixture
def pod(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/parity.json").write_text(json.dumps({"samples": [SAMPLE, SAMPLE]}))
    (tmp_path / "config.json").write_text('{"servedName": "support"}')
    (tmp_path / "termination").touch()  # as the kubelet does
    monkeypatch.setenv("FINETUNE_CONFIG", str(tmp_path / "config.json"))
    monkeypatch.setenv("FINETUNE_SCRATCH", str(tmp_path))
    monkeypatch.setenv("FINETUNE_SERVING_PORT", str(engine.port))
    monkeypatch.setenv("FINETUNE_TERMINATION_LOG", str(tmp_path / "termination"))
    return tmp_path


def test_prompts_and_an_answer_are_asked_for_once_and_health_every_time(engine: Engine, pod: Path) -> None:
    assert ready.main() == 0
    assert engine.asked == ["/health", "/v1/models", "/tokenize", "/tokenize", "/v1/chat/completions"]
    assert engine.bodies[0] == {"model": "support", "messages": SAMPLE["messages"], "add_generation_prompt": True, "chat_template_kwargs": {}}
    assert engine.bodies[-1]["max_tokens"] == 1
    assert ready.main() == 0
    assert engine.asked[5:] == ["/health"]


def test_every_adapter_has_to_answer_and_sees_its_own_prompts(engine: Engine, pod: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pod / "adapter-2").mkdir()
    (pod / "adapter-2/parity.json").write_text(json.dumps({"samples": [SAMPLE]}))
    (pod / "config.json").write_text('{"servedName": "support", "others": [{"name": "rooms"}]}')
    assert ready.main() == 1
    assert capsys.readouterr().out == "not ready: the engine serves base, support but not rooms\n"
    engine.models, engine.asked, engine.bodies = ["base", "rooms", "support"], [], []
    assert ready.main() == 0
    assert engine.asked[2:] == ["/tokenize", "/tokenize", "/v1/chat/completions", "/tokenize", "/v1/chat/completions"]
    assert [body["model"] for body in engine.bodies] == ["support", "support", "support", "rooms", "rooms"]
    (pod / ".ready").unlink()
    (pod / "adapter-2/parity.json").write_text(json.dumps({"samples": [SAMPLE | {"tokens": [7]}]}))
    assert ready.main() == 1
    assert not (pod / ".ready").exists()


def test_another_prompt_is_not_ready_and_the_termination_message_tells_why(engine: Engine, pod: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine.tokens = [1, 9, 3]
    assert ready.main() == 1
    told = capsys.readouterr().out
    assert told.startswith("not ready: the engine does not see the prompt that the training had: sample 1 of 2 differs from token 2 on")
    result = StepResult.model_validate_json((pod / "termination").read_text())
    assert (result.step, result.reason) == ("serve", Reason.INVALID_CONFIG)
    assert f"not ready: {result.message}\n" == told
    assert "/v1/chat/completions" not in engine.asked
    assert not (pod / ".ready").exists()
    engine.tokens = [1, 2, 3]
    assert ready.main() == 0


def test_an_adapter_of_an_older_release_is_served_without_a_comparison(engine: Engine, pod: Path) -> None:
    (pod / "adapter/parity.json").unlink()
    assert ready.main() == 0
    assert "/tokenize" not in engine.asked


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"models": ["base"]}, "not ready: the engine serves base but not support\n"),
        ({"models": []}, "not ready: the engine serves nothing but not support\n"),
        ({"choices": []}, "not ready: support answers without a choice\n"),
        ({"broken": "/health"}, "not ready: /health answers 500: {}\n"),
        ({"broken": "/tokenize"}, 'not ready: /tokenize answers 500: {"tokens": [1, 2, 3]}\n'),
        ({"broken": "/v1/chat/completions"}, 'not ready: /v1/chat/completions answers 500: {"choices": [{}]}\n'),
        ({"port": 9}, "not ready: [Errno 111] Connection refused\n"),
    ],
)
def test_an_engine_that_does_not_answer_is_not_ready(
    engine: Engine, pod: Path, changes: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in changes.items():
        setattr(engine, name, value)
    monkeypatch.setenv("FINETUNE_SERVING_PORT", str(engine.port))
    assert ready.main() == 1
    assert capsys.readouterr().out == told
    assert (pod / "termination").read_text() == ""


def test_the_probe_agrees_with_what_it_cannot_afford_to_import() -> None:
    assert (ready.TERMINATION_LOG, ready.ADAPTER, ready.REASON) == (config.TERMINATION_LOG, fetch.ADAPTER, Reason.INVALID_CONFIG)
    assert (parity.FILE, run.STEP) == (artefact.PARITY_FILE, ready.STEP)


def test_a_termination_message_is_never_made_where_the_kubelet_has_made_none(engine: Engine, pod: Path) -> None:
    (pod / "termination").unlink()
    engine.tokens = []
    assert ready.main() == 1
    assert not (pod / "termination").exists()
