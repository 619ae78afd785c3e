"""Rendering of the chart."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CHART = Path("charts/finetune-operator")
RELEASE = "finetune-operator"
NAMESPACE = "finetune-system"
KUBE_VERSION = "1.33.0"  # the oldest that the chart takes; helm would else assume one by its own age


class HelmError(Exception):
    """Helm is missing or refuses the chart. The message is Helm's own, or says how to get Helm."""


def binary() -> str:
    """Path of helm: the one that tests/devcluster/install brings, or the first on the PATH."""
    cache = Path(os.environ.get("FINETUNE_CACHE") or Path.home() / ".cache/finetune-operator")
    found = shutil.which("helm", path=f"{cache / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}")
    if not found:
        raise HelmError("helm was not found: install Helm 3.17 or later, or run tests/devcluster/install")
    return found


def template(root: Path, values: Mapping[str, Any] | None = None, *options: str, release: str = RELEASE, namespace: str = NAMESPACE) -> str:
    """YAML of the chart below `root` with `values` over its defaults. Raises HelmError."""
    command = [binary(), "template", release, str(root / CHART), "--namespace", namespace, "--kube-version", KUBE_VERSION, "--values", "-", *options]
    result = subprocess.run(command, input=json.dumps(values or {}), capture_output=True, text=True, check=False)
    if result.returncode:
        raise HelmError(result.stderr.strip())
    return result.stdout


def objects(root: Path, values: Mapping[str, Any] | None = None, *options: str, release: str = RELEASE, namespace: str = NAMESPACE) -> list[dict[str, Any]]:
    """The rendered objects, parsed."""
    text = template(root, values, *options, release=release, namespace=namespace)
    documents = yaml.load_all(text, Loader=yaml.CSafeLoader)  # the CRDs take seconds without C
    return [document for document in documents if document]
