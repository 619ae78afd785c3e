"""The report page of real trainings, and the answers in it."""

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import Manifest
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import Exit, TrainSummary
from finetune_runtime.contract.spec import S3Storage
from finetune_runtime.prepare.encode import Encoder
from finetune_runtime.prepare.identify import Identity
from finetune_runtime.report.data import CUT, Answers, State
from finetune_runtime.s3.store import ObjectNotFound, Store
from finetune_runtime.train import report
from finetune_runtime.train.plugin import answering
from tests.runtime.support import DEFAULTS, MakeConfig, Pods, Server, metrics

TALKS = [
    [{"role": "user", "content": "Can I come on Friday?"}, {"role": "assistant", "content": "Yes."}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where is the clinic, and how do I get there from the station?"},
        {"role": "assistant", "content": "By bus."},
    ],
]


def page(store: Store, config: JobConfig) -> str:
    return store.read(f"{config.prefix}/report/report.html").decode()


def answers(store: Store, config: JobConfig) -> Answers:
    return Answers.model_validate_json(store.read(f"{config.prefix}/report/answers.json"))


def test_the_data_can_be_read_before_a_gpu_is_asked_for(prepared: tuple[Path, Manifest], s3_server: Server, s3_keys: None) -> None:
    storage = S3Storage(uri="s3://prepared", endpoint=s3_server.endpoint)
    config = JobConfig.model_validate(DEFAULTS | {"storage": storage.dump()})
    text = page(Store(storage), config)
    assert "Prepared" in text
    assert f"only {prepared[1].details['trainRows']} training rows" in text
    assert "<svg" not in text


def test_a_finished_training_leaves_curves_and_answers(pods: Pods, config: JobConfig, store: Store) -> None:
    pod = pods.start(config)
    train = pod.end(Exit.DONE).train
    assert train is not None
    assert train.adapter is not None
    assert "the report has no answers" not in pod.text(), pod.text()[-3000:]
    given = answers(store, config)
    assert given.step == 20
    rows = [json.loads(line)["messages"] for line in store.read(f"{config.prefix}/dataset/val.jsonl").decode().splitlines()]
    assert [[turn.dump() for turn in answer.prompt] for answer in given.answers] == [messages[:-1] for messages in rows]
    assert [answer.expected for answer in given.answers] == [messages[-1]["content"] for messages in rows]
    assert all(answer.base != answer.tuned for answer in given.answers), "20 steps at this rate change every answer of a model with random weights"

    text = page(store, config)
    assert all(word in text for word in ("Completed", train.adapter.uri, "Loss", "Learning rate", "Gradient norm", "Throughput", "--lora_rank 8", "Expected"))
    speeds = [record["tokensPerSecond"] for record in metrics(store, config)[1:]]
    assert all(speed > 0 for speed in speeds)

    artefacts.delete(store, f"{config.prefix}/adapter")  # as if the pod had ended before it could commit
    pods.start(config).end(Exit.DONE)
    assert "swift.cli.sft" not in pods.started[1].text()
    assert "Expected" in page(store, config), "answers of the earlier pod"


def test_a_resumed_training_tells_what_was_resumed(pods: Pods, config: JobConfig, store: Store) -> None:
    pod = pods.start(config)
    pod.wait_for("'global_step/max_steps': '7/20'")
    pod.process.terminate()
    stopped = pod.end(Exit.INTERRUPTED).train
    assert stopped is not None
    with pytest.raises(ObjectNotFound):
        answers(store, config)
    assert "Training</span>" in page(store, config)

    pods.start(config).end(Exit.DONE)
    assert f"Went on from step {stopped.step}: a new pod took over" in page(store, config)
    [marked] = [record for record in metrics(store, config) if "resumes" in record]
    assert (marked["step"], marked["resumedFrom"]) == (stopped.step + 1, stopped.step)
    assert answers(store, config).step == 20


def test_answers_change_nothing_that_is_trained(
    pods: Pods, job_config: MakeConfig, prepared: tuple[Path, Manifest], commit_dataset: Callable[[JobConfig], None], store: Store, tmp_path: Path
) -> None:
    def adapter(config: JobConfig) -> str:
        train = pods.start(config).end(Exit.DONE).train
        assert train is not None
        assert train.adapter is not None
        manifest = artefacts.load(store, train.adapter.uri)
        assert manifest is not None
        return next(entry.sha256 for entry in manifest.files if entry.path == "adapter_model.safetensors")

    asked = job_config(training={"maxLength": 2048})
    commit_dataset(asked)
    # The same training, but its validation prompts are too long to be asked.
    silent = job_config(training={"maxLength": 2048}, job={"uid": "0b7c6c1e-0000-4000-8000-000000000002"})
    directory = tmp_path / "long"
    artefacts.fetch(store, f"{asked.prefix}/dataset", directory)
    rows = [json.loads(line)["messages"] for line in (directory / "val.jsonl").read_text().splitlines()]
    long = [[{"role": "system", "content": "clinic " * 300}, *(turn for turn in row if turn["role"] != "system")] for row in rows]
    (directory / "val.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in long))
    artefacts.commit(store, directory, f"{silent.prefix}/dataset", prepared[1].model_copy(update={"config_hash": silent.config_hash()}))

    assert adapter(asked) == adapter(silent)
    assert len(answers(store, asked).answers) == len(rows)
    with pytest.raises(ObjectNotFound):
        answers(store, silent)


def test_answers_that_fail_cost_nothing_but_themselves(pods: Pods, config: JobConfig, store: Store) -> None:
    (pods.directory / "pod-0/scratch/answers/answers.json").mkdir(parents=True)  # where no file can be put
    pod = pods.start(config)
    assert pod.end(Exit.DONE).train is not None
    assert "the report has no answers: IsADirectoryError" in pod.text()
    assert "Completed" in page(store, config)
    assert "Expected" not in page(store, config)


def test_sigterm_while_the_model_answers_costs_the_answers_at_most(pods: Pods, config: JobConfig, store: Store) -> None:
    pod = pods.start(config)
    pod.wait_for("the model answers validation prompts")
    pod.process.terminate()
    train = pod.end(Exit.DONE).train
    assert train is not None
    assert (train.step, train.committed_step, train.adapter is not None) == (20, 20, True)
    assert "Completed" in page(store, config)
    interrupted = "the report has no answers: InterruptedAnswersError" in pod.text()
    assert interrupted is ("Expected" not in page(store, config))


BROKEN = {"no data report": "report.json", "no metrics": "metrics.jsonl", "no answers": "answers.json"}


@pytest.mark.parametrize("name", BROKEN.values(), ids=BROKEN)
def test_a_page_that_cannot_be_made_is_no_error(name: str, config: JobConfig, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = report.Page(config, store, tmp_path / "report.json", tmp_path / "metrics.jsonl", tmp_path / "answers.json", "a GPU")
    made.upload(TrainSummary(step=3), State.TRAINING)
    before = page(store, config)
    assert "<b>3</b>" in before
    (tmp_path / name).write_text("{broken")
    made.upload(TrainSummary(step=4), State.TRAINING)
    assert "the report page cannot be made" in caplog.text
    assert page(store, config) == before


@pytest.fixture(scope="module")
def template(tiny_model: Path) -> Any:
    return Encoder("tiny", tiny_model, Identity("qwen3", "qwen3"), 4096).template


@pytest.fixture
def model(tiny_model: Path) -> Any:
    """The tiny model in training mode, with an adapter that changes what it says."""
    torch.manual_seed(0)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)
    )
    adapted.gradient_checkpointing_enable()
    return adapted.train()


def ask(model: Any, template: Any, talks: list[Any], *, stop: bool = False) -> list[tuple[str, str]]:
    given = answering.ask(model, template, talks, step=1, stop=lambda: stop, precision=nullcontext())
    return [(answer.base, answer.tuned) for answer in given.answers]


def test_asking_leaves_the_model_and_the_random_numbers_as_they_were(model: Any, template: Any) -> None:
    def state() -> tuple[Any, ...]:
        weights = hashlib.sha256(b"".join(value.detach().numpy().tobytes() for value in model.state_dict().values())).hexdigest()
        learns = [name for name, value in model.named_parameters() if value.requires_grad]
        return weights, learns, model.training, model.is_gradient_checkpointing, model.config.use_cache, torch.random.get_rng_state().tolist(), template.mode

    before = state()
    [(base, tuned), _] = ask(model, template, TALKS)
    assert base != tuned
    assert state() == before


def test_a_batch_answers_as_each_prompt_alone(model: Any, template: Any) -> None:
    assert ask(model, template, TALKS) == [ask(model, template, [talk])[0] for talk in TALKS]


def test_answers_are_left_with_their_tokens_and_how_likely_the_model_found_them(model: Any, template: Any) -> None:
    given = answering.ask(model, template, TALKS, step=1, stop=lambda: False, precision=nullcontext())
    model.eval()
    for answer in given.answers:
        assert answer.tokens
        assert template.tokenizer.decode(answer.tokens, skip_special_tokens=True) == answer.tuned.removesuffix(CUT)
        whole = torch.tensor([[*answer.prompt_tokens, *answer.tokens]])
        with torch.no_grad():
            likely = model(whole).logits[0, len(answer.prompt_tokens) - 1 : -1].float().log_softmax(-1)
        expected = likely.gather(1, whole[0, len(answer.prompt_tokens) :, None]).squeeze(1)
        assert torch.tensor(answer.logprobs) == pytest.approx(expected, abs=1e-3)


def test_prompts_are_the_tokens_that_training_has_before_the_answer(tiny_model: Path, template: Any) -> None:
    encoder = Encoder("tiny", tiny_model, Identity("qwen3", "qwen3"), 4096)
    for talk in TALKS:
        assert answering._prompt(template, talk) == encoder.tokens(talk).prompt_ids()  # type: ignore[arg-type]  # plain dicts


def test_an_eviction_ends_the_asking_at_the_next_token(model: Any, template: Any) -> None:
    with pytest.raises(answering.InterruptedAnswersError):
        ask(model, template, TALKS, stop=True)
    assert model.training


def test_answers_without_an_end_are_marked(model: Any, template: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "SECONDS", 0.0)
    [(base, tuned), _] = ask(model, template, TALKS)
    assert base.endswith(" [...]")
    assert tuned.endswith(" [...]")
