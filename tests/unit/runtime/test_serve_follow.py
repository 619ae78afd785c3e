"""The sidecar against a server on the loopback interface that speaks the part of the engine's protocol that it uses. Adapters are on disk already."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.config import AdapterRef, ServeConfig
from finetune_runtime.serve import fetch
from finetune_runtime.serve.command import vllm
from finetune_runtime.serve.engine import Engine
from finetune_runtime.serve.follow import FIRST_PAUSE, KEEP, Follower
from finetune_runtime.serve.run import others_of
from finetune_runtime.serve.switch import PATH

from .json_server import answering
from .test_command_serve import GPU, config, manifest

SAMPLE = {"messages": [{"role": "user", "content": "When do you open?"}], "options": {}, "tokens": [1, 2, 3]}


def ref(letter: str) -> dict[str, str]:
    return {"uri": f"s3://models/{letter}", "manifestSha256": letter * 64}


@dataclass
class Server:
    """An engine. `up`: it answers; `refuses`: what it says against the adapter in a directory, by its name; `did`: what it was told, in order."""

    port: int = 0
    up: bool = True
    names: dict[str, str] = field(default_factory=dict)
    refuses: dict[str, str] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=lambda: [1, 2, 3])
    did: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, body: Any) -> tuple[int, object]:
        if not self.up:
            return 503, {}
        if path == "/v1/models":
            base = {"id": "base", "root": "/scratch/model", "parent": None}
            return 200, {"data": [base, *({"id": name, "root": root, "parent": "base"} for name, root in self.names.items())]}
        if path == PATH and method == "DELETE":
            self.did.append(f"-{body['name']}")
            self.names.pop(body["name"])
            return 200, {"message": ""}
        if path == PATH:
            directory = Path(body["path"]).name
            if why := self.refuses.get(directory):
                return 422, {"message": why}
            self.did.append(f"{body['name']}={directory[0]}")
            self.names[body["name"]] = body["path"]
            return 200, {"message": ""}
        if body["model"] not in self.names:
            return 404, {}
        return 200, {"tokens": self.tokens} if path == "/tokenize" else {"choices": [{}]}


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    with answering(found.answer) as found.port:
        yield found


class Pod:
    """A sidecar whose clock and configuration are the test's."""

    def __init__(self, scratch: Path, server: Server) -> None:
        self.scratch, self.now, self.server = scratch, 0.0, server
        self.config: ServeConfig = config(live={"maxAdapters": 4})
        self.follower = Follower(lambda: self.config, scratch, Engine(server.port), now=lambda: self.now)
        for letter in "abc":
            directory = fetch.live_directory(scratch, AdapterRef.model_validate(ref(letter)))
            directory.mkdir(parents=True)
            (directory / "parity.json").write_text(json.dumps({"samples": [SAMPLE]}))
            directory.with_suffix(".json").write_text("{}")
        (scratch / "adapter").symlink_to(fetch.live_directory(scratch, AdapterRef.model_validate(ref("a"))))

    def want(self, names: dict[str, str], trial: dict[str, str] | None = None) -> None:
        first, *others = names
        live = {"maxAdapters": 4, "trial": [{"name": name, "adapter": ref(letter)} for name, letter in (trial or {}).items()]}
        beside = [{"name": name, "adapter": ref(names[name])} for name in others]
        self.config = config(servedName=first, adapter=ref(names[first]), others=beside, live=live)

    def states(self) -> dict[str, str]:
        return {state.name: state.state for state in self.follower.report().adapters}

    def round(self, seconds: float = 1.0) -> dict[str, str]:
        self.now += seconds
        self.follower.round()
        return self.states()


@pytest.fixture
def pod(tmp_path: Path, server: Server) -> Pod:
    found = Pod(tmp_path, server)
    found.want({"support": "a"})
    assert found.states() == {"support": "Waiting"}
    assert found.round() == {"support": "Served"}
    server.did.clear()
    return found


def test_an_engine_that_starts_anew_has_room_for_what_is_wanted_and_not_for_what_was_refused(tmp_path: Path) -> None:
    for letter, rank in (("a", 32), ("b", 64), ("c", 256)):
        file = fetch.live_manifest(tmp_path, AdapterRef.model_validate(ref(letter)))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(manifest(loraRank=rank).encode())
    live = {"maxAdapters": 2, "trial": [{"name": "rooms#1", "adapter": ref("c")}]}
    wanted = config(adapter=ref("a"), others=[{"name": "rooms", "adapter": ref("b")}, {"name": "not there yet", "adapter": ref("d")}], live=live)
    others = others_of(wanted, tmp_path)
    assert [found.manifest.details["loraRank"] for found in others] == [32, 64]
    assert "--max-lora-rank 64" in " ".join(vllm(wanted, manifest(loraRank=32), GPU, model=tmp_path, adapter=tmp_path, others=others))


def test_what_is_served_is_left_alone(pod: Pod, server: Server) -> None:
    assert pod.round() == {"support": "Served"}
    assert server.did == []


@pytest.mark.parametrize(
    ("names", "trial", "did", "case"),
    [
        ({"support": "a", "rooms": "b"}, {}, ["rooms=b"], "a new name"),
        ({"support": "a"}, {"support#1": "b"}, ["support#1=b"], "one that is tried"),
        ({"support": "b"}, {}, ["support=b"], "another adapter under a name"),
        ({"rooms": "a"}, {}, ["rooms=a", "-support"], "a name that goes, when its successor is there"),
        ({"support": "b"}, {"rooms#2": "c"}, ["support=b", "rooms#2=c"], "what users ask comes first"),
    ],
)
def test_the_engine_is_brought_to_what_is_wanted(pod: Pod, server: Server, names: dict[str, str], trial: dict[str, str], did: list[str], case: str) -> None:
    pod.want(names, trial)
    assert pod.round() == dict.fromkeys([*names, *trial], "Served"), case
    assert server.did == did, case


def test_an_engine_that_was_started_anew_gets_everything_again(pod: Pod, server: Server) -> None:
    pod.want({"support": "a", "rooms": "b"}, {"rooms#1": "c"})
    pod.round()
    server.up, server.names = False, {}
    assert pod.round() == {"support": "Waiting", "rooms": "Waiting", "rooms#1": "Waiting"}
    server.up = True
    assert pod.states() == {"support": "Waiting", "rooms": "Waiting", "rooms#1": "Waiting"}
    assert pod.round() == {"support": "Served", "rooms": "Served", "rooms#1": "Served"}


def test_a_sidecar_that_was_started_anew_loads_nothing_twice(pod: Pod, server: Server) -> None:
    pod.follower = Follower(lambda: pod.config, pod.scratch, Engine(server.port), now=lambda: pod.now)
    assert pod.states() == {"support": "Waiting"}, "it has not seen it answer"
    assert pod.round() == {"support": "Served"}
    assert server.did == []


def test_what_the_engine_refuses_is_told_with_the_cure_and_tried_again_later(pod: Pod, server: Server) -> None:
    server.refuses["b" * 16] = "LoRA rank 128 is greater than max_lora_rank 64."
    pod.want({"support": "a"}, {"rooms#1": "b"})
    assert pod.round() == {"support": "Served", "rooms#1": "Refused"}
    message = pod.follower.report().adapters[1].message
    assert "LoRA rank 128" in message
    assert "set spec.maxLoraRank" in message
    server.refuses.clear()
    assert pod.round(FIRST_PAUSE / 2)["rooms#1"] == "Refused"
    assert pod.round(FIRST_PAUSE)["rooms#1"] == "Served"


def test_an_adapter_that_sees_other_prompts_than_its_training_is_refused(pod: Pod, server: Server) -> None:
    server.tokens = [7]
    pod.want({"support": "a"}, {"support#1": "b"})
    assert pod.round() == {"support": "Served", "support#1": "Refused"}
    assert "does not see the prompt that the training had" in pod.follower.report().adapters[1].message


def test_what_nothing_wants_any_more_makes_room_after_a_while_and_the_first_one_stays(pod: Pod) -> None:
    pod.want({"support": "c"})
    pod.round()
    there = {path.name[0] for path in (pod.scratch / "adapters").iterdir()}
    assert there == {"a", "b", "c"}
    pod.round(KEEP)
    assert {path.name[0] for path in (pod.scratch / "adapters").iterdir()} == {"a", "c"}
