"""Whether a training fits: the numbers, what is said about them, and where its pod may go."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.names import Step
from finetune_operator.observe import NodeView
from finetune_operator.plan.fit import available, estimate
from finetune_operator.plan.job import asks_for_nodes, decide
from finetune_operator.plan.types import JobState, Plan
from finetune_runtime.contract.base import parse_quantity
from finetune_runtime.contract.model_shape import ModelShape, from_config

from .makers import NOW, SETTINGS, condition, done, job, names, result, state

QWEN3_8B = {
    "hidden_size": 4096, "num_hidden_layers": 36, "intermediate_size": 12288, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "vocab_size": 151936, "tie_word_embeddings": False,
}  # fmt: skip
GIB = 2**30
GRADIENTS = 4 * 64 * 36 * (3 * (4096 + 12288) + 2 * (4096 + 4096) + 2 * (4096 + 1024))  # float32, rank 64, inputs and outputs of seven adapters in 36 layers


def shape() -> ModelShape:
    found = from_config(QWEN3_8B)
    assert found
    return found


def node(name: str, memory: str | None, gpus: int = 1, resource: str = "nvidia.com/gpu", **labels: str) -> NodeView:
    return NodeView(name, {**labels, **({f"{resource}.memory": memory} if memory else {})}, gpus)


CHECKED = done(
    Step.PREPARE,
    result("prepare", data={"trainRows": 120, "validationRows": 6, "tokens": 9000, "longest": 1024, "sha256": "b" * 64, "shape": shape().dump()}),
)


FAST = done(
    Step.PREPARE,
    result(
        "prepare", data={"trainRows": 120, "validationRows": 6, "tokens": 122880, "longest": 1024, "sha256": "b" * 64, "shape": shape().dump(), "fastPath": ""}
    ),
)


def look(*children: Any, resources: dict[str, Any] | None = None, nodes: tuple[NodeView, ...] | None = (), **fields: Any) -> tuple[JobState, Plan]:
    seen = state(CHECKED, *children, spec={"resources": resources or {}}, nodes=nodes, live=True, **fields)
    return seen, decide(seen, SETTINGS, NOW)


@pytest.mark.parametrize(
    ("resources", "nodes", "memory", "where"),
    [
        ({}, (node("a", "8192"), node("b", "24576")), 24, "node b"),
        ({"gpuMemory": "8Gi"}, (node("b", "24576"),), 8, "spec.resources.gpuMemory"),
        ({"nodeSelector": {"pool": "small"}}, (node("a", "8192", pool="small"), node("b", "24576")), 8, "node a"),
        ({"gpuResource": "nvidia.com/mig-3g.20gb"}, (node("m", "20096", resource="nvidia.com/mig-3g.20gb"),), 19.625, "node m"),
        ({}, (node("a", "8192", gpus=0),), None, ""),
        ({"gpus": 4}, (node("a", "81559", gpus=2), node("b", "24576", gpus=4)), 24, "node b"),
        ({}, (node("a", None),), None, ""),
        ({}, (node("a", "much"),), None, ""),
        ({}, (), None, ""),
    ],
    ids=[
        "the largest GPU counts",
        "the spec has the last word",
        "only nodes that the selector allows",
        "a MIG slice has a label of its own",
        "a node without a GPU to give",
        "only nodes with as many GPUs as the pod asks for",
        "a node that does not tell",
        "a label that is no number",
        "no node at all",
    ],
)
def test_the_memory_that_there_is(resources: dict[str, Any], nodes: tuple[NodeView, ...], memory: float | None, where: str) -> None:
    spec = state(spec={"resources": resources}).spec
    assert available(spec.resources, nodes) == ((memory * GIB, where) if memory else None)


@pytest.mark.parametrize(("checked", "more"), [(CHECKED, GRADIENTS), (FAST, 0)], ids=["in the usual way", "on the fast path"])
def test_each_of_several_gpus_must_hold_a_whole_training(checked: Any, more: int) -> None:
    one, two = (
        decide(state(checked, spec={"resources": {"gpus": gpus, "gpuMemory": "80Gi"}}, nodes=(), live=True), SETTINGS, NOW).status["estimate"]
        for gpus in (1, 2)
    )
    assert "nccl" not in one["parts"]
    grown = parse_quantity(two["required"]) - parse_quantity(one["required"])
    assert grown == pytest.approx(more + parse_quantity(two["parts"]["nccl"]), abs=2**20)
    assert parse_quantity(two["parts"]["gradients"]) - parse_quantity(one["parts"]["gradients"]) == pytest.approx(more, abs=2**20)


class TestTooLarge:
    def test_a_job_that_does_not_fit_is_not_queued_and_hears_what_would(self) -> None:
        _, plan = look(resources={"gpuMemory": "8Gi"})
        fits = condition(plan, "Fits")
        assert (plan.status["phase"], fits["status"], fits["reason"], plan.create) == ("Pending", "False", "GPUTooSmall", ())
        assert all(
            word in fits["message"] for word in ("8.0 GiB", "spec.resources.gpuMemory", "set spec.tuning.lora.rank to 16", "finetune.dev/ignore-gpu-fit=true")
        )
        assert (condition(plan, "Stalled")["reason"], plan.requeue_after) == ("GPUTooSmall", 60)
        assert plan.status["estimate"]["available"] == "8192Mi"

    def test_the_same_thing_is_said_as_long_as_nothing_changes(self) -> None:
        seen, plan = look(resources={"gpuMemory": "8Gi"})
        again = decide(replace(seen, status=type(seen.status).model_validate(plan.status)), SETTINGS, NOW + 60)
        assert again.status == plan.status

    def test_a_larger_node_lets_it_go_on(self) -> None:
        _, small = look(nodes=(node("a", "8192"),))
        _, large = look(nodes=(node("a", "8192"), node("b", "81559")), status=small.status)
        assert condition(small, "Fits")["status"] == "False"
        assert (condition(large, "Fits")["status"], names(large.create), condition(large, "Stalled")) == ("True", ["Job/support-train-1"], {})

    def test_an_annotation_overrides_the_estimate(self) -> None:
        _, plan = look(resources={"gpuMemory": "8Gi"}, ignore_fit=True)
        assert (condition(plan, "Fits")["reason"], names(plan.create)) == ("FitIgnored", ["Job/support-train-1"])
        assert "affinity" not in plan.create[0]["spec"]["template"]["spec"]

    def test_one_that_the_annotation_let_in_stays_in_without_it(self) -> None:
        _, started = look(resources={"gpuMemory": "8Gi"}, ignore_fit=True)
        _, again = look(resources={"gpuMemory": "8Gi"}, status=started.status)  # somebody deleted its Kubernetes Job, and the annotation
        assert (condition(again, "Fits")["reason"], names(again.create)) == ("FitIgnored", ["Job/support-train-1"])
        assert "affinity" not in again.create[0]["spec"]["template"]["spec"]

    def test_a_training_that_has_begun_is_not_asked_again(self) -> None:
        _, started = look(resources={"gpuMemory": "80Gi"})
        _, later = look(job(Step.TRAIN), nodes=(node("a", "8192"),), status=started.status)
        assert condition(later, "Fits")["status"] == "True"


class TestFastPath:
    """A job that takes the fast path is measured by it: the smallest of its plans must fit."""

    def test_a_card_of_8_gb_is_enough(self) -> None:
        seen = state(FAST, spec={"resources": {"gpuMemory": "8188Mi"}}, nodes=(), live=True)
        plan = decide(seen, SETTINGS, NOW)
        assert (condition(plan, "Fits")["status"], names(plan.create)) == ("True", ["Job/support-train-1"])
        assert sum(parse_quantity(size) for size in plan.status["estimate"]["parts"].values()) < 6.8 * GIB

    def test_smaller_cards_are_told_what_would_fit(self) -> None:
        seen = state(FAST, spec={"resources": {"gpuMemory": "7Gi"}}, nodes=(), live=True)
        fits = condition(decide(seen, SETTINGS, NOW), "Fits")
        assert (fits["status"], fits["reason"]) == ("False", "GPUTooSmall")
        assert "needs about 7.4 GiB" in fits["message"]
        assert "set spec.tuning.lora.rank to 32 (needs 6.9 GiB" in fits["message"]

    def test_rows_that_the_job_asks_for_must_fit(self) -> None:
        seen = state(FAST, spec={"resources": {"gpuMemory": "12Gi"}, "training": {"microBatchSize": 16}}, nodes=(), live=True)
        assert "set spec.training.microBatchSize to Auto (needs 7.4 GiB)" in condition(decide(seen, SETTINGS, NOW), "Fits")["message"]

    @pytest.mark.parametrize(
        ("data", "spec"),
        [({"fastPath": "unsupported: bias in o_proj"}, {}), ({}, {"training": {"fastPath": "Off"}})],
        ids=["a model that cannot", "a job that does not want to"],
    )
    def test_without_it_the_usual_estimate_holds(self, data: dict[str, str], spec: dict[str, Any]) -> None:
        found = {"trainRows": 120, "validationRows": 6, "tokens": 9000, "longest": 1024, "sha256": "b" * 64, "shape": shape().dump(), **data}
        seen = state(done(Step.PREPARE, result("prepare", data=found)), spec={"resources": {"gpuMemory": "8188Mi"}, **spec}, nodes=(), live=True)
        plan = decide(seen, SETTINGS, NOW)
        assert condition(plan, "Fits")["reason"] == "GPUTooSmall"
        assert plan.status["run"].get("fastPath", {}).get("reason") == data.get("fastPath")


def test_a_pod_keeps_off_smaller_gpus_and_may_go_where_nobody_tells() -> None:
    _, plan = look(nodes=(node("b", "24576"),))
    affinity = plan.create[0]["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    needs = round(parse_quantity(plan.status["estimate"]["required"]) / 2**20)
    assert affinity["nodeSelectorTerms"] == [
        {"matchExpressions": [{"key": "nvidia.com/gpu.memory", "operator": "Gt", "values": [str(needs - 1)]}]},
        {"matchExpressions": [{"key": "nvidia.com/gpu.memory", "operator": "DoesNotExist"}]},
    ]


@pytest.mark.parametrize("nodes", [None, (), (node("a", None),)], ids=["we may not look", "no node", "no label"])
def test_where_nobody_tells_it_is_tried_and_said(nodes: tuple[NodeView, ...] | None) -> None:
    _, plan = look(nodes=nodes)
    assert (condition(plan, "Fits")["reason"], names(plan.create), plan.status["phase"]) == ("GPUMemoryUnknown", ["Job/support-train-1"], "Training")


def test_nodes_with_fewer_gpus_than_the_pod_asks_for_tell_nothing() -> None:
    _, plan = look(resources={"gpus": 4}, nodes=(node("a", "81559", gpus=2),))
    fits = condition(plan, "Fits")
    assert (fits["status"], "no node that offers 4 of nvidia.com/gpu carries the label nvidia.com/gpu.memory" in fits["message"]) == ("Unknown", True)


def test_a_model_whose_shape_is_not_known_is_tried() -> None:
    seen = state(done(Step.PREPARE, result("prepare", data={"trainRows": 1, "validationRows": 0})), spec={"resources": {"gpuMemory": "1Gi"}}, live=True)
    plan = decide(seen, SETTINGS, NOW)
    assert (condition(plan, "Fits")["reason"], names(plan.create)) == ("ModelShapeUnknown", ["Job/support-train-1"])


def test_the_parts_add_up_to_what_is_required() -> None:
    seen, plan = look(resources={"gpuMemory": "80Gi"})
    found = estimate(shape(), seen.spec, seen.status.dataset)
    assert sum(found.parts.values()) == found.reserved < found.required
    assert set(plan.status["estimate"]["parts"]) <= {
        "base",
        "embeddings",
        "adapter",
        "gradients",
        "optimizer",
        "hiddenStates",
        "layer",
        "loss",
        "dequantised",
        "overhead",
    }


def test_nodes_are_read_only_when_a_training_is_about_to_be_compared_with_them() -> None:
    fresh, (seen, plan) = state(), look()
    assert not asks_for_nodes(fresh.spec, fresh.status, fresh.jobs)
    assert asks_for_nodes(seen.spec, seen.status, seen.jobs)
    begun = state(job(Step.TRAIN), status=plan.status)
    assert not asks_for_nodes(begun.spec, begun.status, begun.jobs)
    given = state(CHECKED, spec={"resources": {"gpuMemory": "8Gi"}})
    assert not asks_for_nodes(given.spec, given.status, given.jobs)
