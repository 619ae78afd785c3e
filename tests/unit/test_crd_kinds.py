"""The two CRDs, and that all generated files agree with them."""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.crd.generate import KINDS, Kind
from hack.api_reference import reference
from hack.generate import ROOT, crd_template, differences
from hack.yamltext import dump

BY_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field at any depth, with its path."""
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from fields(field, f"{path}.{name}")
        yield from fields(field.get("items", {}), f"{path}.{name}[]")


def section(kind: Kind, name: str) -> list[tuple[str, dict[str, Any]]]:
    return list(fields(kind.schema()["properties"][name], name))


@BY_KIND
@pytest.mark.parametrize("name", ["spec", "status"])
def test_every_field_has_a_description_that_ends_as_a_sentence(kind: Kind, name: str) -> None:
    assert [path for path, field in section(kind, name) if not field.get("description", "").endswith(".")] == []


@BY_KIND
def test_lists_and_maps_are_bounded_so_that_the_cost_of_rules_is(kind: Kind) -> None:
    unbounded = [
        path
        for path, field in section(kind, "spec") + section(kind, "status")
        if ("items" in field and "maxItems" not in field) or ("additionalProperties" in field and "maxProperties" not in field)
    ]

    assert unbounded == []


@BY_KIND
def test_strings_of_a_spec_are_bounded(kind: Kind) -> None:
    def bounded(field: dict[str, Any]) -> bool:
        return "maxLength" in field or "enum" in field or not set("*+,") & set(field.get("pattern", "*"))

    assert [path for path, field in section(kind, "spec") if field.get("type") == "string" and not bounded(field)] == []


@BY_KIND
def test_a_status_has_no_defaults(kind: Kind) -> None:
    status = kind.schema()["properties"]["status"]

    assert status["default"] == {"observedGeneration": -1}, "what kstatus takes for an object that nobody has seen yet"
    assert [path for path, field in fields(status, "status") if "default" in field] == []


@BY_KIND
def test_conditions_are_a_map_by_type_so_that_several_writers_can_share_them(kind: Kind) -> None:
    conditions = kind.schema()["properties"]["status"]["properties"]["conditions"]

    assert (conditions["x-kubernetes-list-type"], conditions["x-kubernetes-list-map-keys"]) == ("map", ["type"])


@BY_KIND
def test_columns_selectors_and_scale_point_at_fields_that_exist(kind: Kind) -> None:
    known = {path for name in ("spec", "status") for path, _ in section(kind, name)} | {"metadata.creationTimestamp"}
    columns = [column["jsonPath"].partition("[?")[0] for column in kind.printer_columns]
    pointers = [*columns, *kind.selectable_fields, *(kind.scale or {}).values()]

    assert [pointer for pointer in pointers if pointer.removeprefix(".") not in known] == []


@BY_KIND
def test_rules_point_at_fields_that_exist(kind: Kind) -> None:
    root = kind.schema()
    nodes = [("", root), *fields(root, ""), *((f"{path}[]", field["items"]) for path, field in fields(root, "") if "items" in field)]
    for path, node in nodes:
        below = {name.removeprefix(path) for name, _ in fields(node, path)}
        for rule in node.get("x-kubernetes-validations", []):
            assert rule["message"], path
            assert rule.get("fieldPath") in {None, *below}, f"{path}: {rule['rule']}"


def test_names_that_kubectl_knows() -> None:
    names = {kind.name: kind.crd()["spec"]["names"] for kind in KINDS}

    assert names == {
        "FineTuneJob": {
            "kind": "FineTuneJob",
            "listKind": "FineTuneJobList",
            "plural": "finetunejobs",
            "singular": "finetunejob",
            "shortNames": ["ftj"],
            "categories": ["finetune"],
        },
        "ModelEndpoint": {
            "kind": "ModelEndpoint",
            "listKind": "ModelEndpointList",
            "plural": "modelendpoints",
            "singular": "modelendpoint",
            "shortNames": ["mep"],
            "categories": ["finetune"],
        },
    }


def test_generated_files_are_up_to_date() -> None:
    assert "".join(differences(ROOT)) == "", "run hack/generate.py"


def test_a_file_that_nothing_generates_any_more_is_reported(tmp_path: Path) -> None:
    for folder in ("charts", "manifests", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "manifests/crds/forgotten.yaml").write_text("old: true\n")
    (tmp_path / "docs/api.md").write_text("edited by hand\n")

    found = "".join(differences(tmp_path))

    assert "-old: true" in found
    assert "-edited by hand" in found
    assert "+# API reference" in found


@pytest.mark.parametrize("text", ["3e-6", "0.05", "1", "-1", "0x1F", "On", "true", "null", "~", "", "plain", "a: b", "{{ x }}", "012", "+1", ".5"])
def test_strings_stay_strings_in_yaml(text: str) -> None:
    written = dump({"default": text})

    assert yaml.safe_load(written) == {"default": text}
    if text[:1].isdigit() or text[:1] in "+-.":
        assert "'" in written, "other YAML parsers read more texts as numbers than ours does"


def test_braces_in_a_description_do_not_reach_helm() -> None:
    class Braced(Kind):
        def crd(self) -> dict[str, Any]:
            crd = copy.deepcopy(KINDS[0].crd())
            crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["description"] = "Use {{name}}."
            return crd

    first = KINDS[0]
    text = crd_template(Braced(first.model, first.short_name, first.printer_columns, first.selectable_fields))

    assert 'Use {{ "{{" }}name}}.' in text


def test_the_reference_names_every_field_of_both_specs() -> None:
    text = reference()

    for kind in KINDS:
        for path, _ in section(kind, "spec"):
            relative = path.split(".", 2)[-1] if path.count(".") > 1 else path.split(".")[1]
            assert f"| `{relative.removeprefix('[].')}` |" in text, path
