#!/usr/bin/env python3
"""Writes what is derived from the API types and the chart; with --check, says what is out of date instead.

manifests/crds/*.yaml                            the CustomResourceDefinitions
charts/finetune-operator/templates/crds/*.yaml   the same, as the chart installs them
charts/finetune-operator/README.md               its table of values
manifests/install.yaml                           the chart with its default values, for kubectl apply
docs/api.md                                      API reference
docs/extra-args.md                               arguments that spec.training.extraArgs takes
"""

import argparse
import difflib
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "operator"), str(ROOT / "images/runtime")]

from finetune_operator.crd.generate import KINDS, Kind  # noqa: E402  after the path is set
from hack import api_reference, extra_args_reference  # noqa: E402  after the path is set
from hack.helm import CHART, NAMESPACE, HelmError, template  # noqa: E402  after the path is set
from hack.values_table import with_values_table  # noqa: E402  after the path is set
from hack.yamltext import dump  # noqa: E402  after the path is set

HEADER = "# Written by hack/generate.py; do not edit.\n"
# Folders that hold generated files alone: what nobody generates any more is removed.
FOLDERS = (Path("manifests/crds"), CHART / "templates/crds")


def generate(root: Path) -> list[Path]:
    """Writes all files below `root`, which holds the chart. Returns their paths relative to `root`."""
    written: list[Path] = []

    def write(path: Path, text: str) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
        written.append(path)

    for folder in FOLDERS:
        shutil.rmtree(root / folder, ignore_errors=True)
    for kind in KINDS:
        write(Path(f"manifests/crds/{kind.plural}.yaml"), HEADER + dump(kind.crd()))
        write(CHART / f"templates/crds/{kind.plural}.yaml", HEADER + crd_template(kind))
    readme = CHART / "README.md"
    write(readme, with_values_table((root / readme).read_text(), root / CHART))
    write(Path("manifests/install.yaml"), HEADER + install(root))
    write(Path("docs/api.md"), api_reference.reference())
    write(Path("docs/extra-args.md"), extra_args_reference.reference())
    return written


def crd_template(kind: Kind) -> str:
    """The CRD as a template of the chart."""
    metadata = f"  name: {kind.crd()['metadata']['name']}\n"
    helm_metadata = (
        '  labels: {{- include "finetune-operator.labels" . | nindent 4 }}\n'
        "  {{- if .Values.crds.keep }}\n  annotations:\n    helm.sh/resource-policy: keep\n  {{- end }}\n"
    )
    # A description may hold braces, which Helm would take for its own.
    text = dump(kind.crd()).replace("{{", '{{ "{{" }}').replace(metadata, metadata + helm_metadata, 1)
    return f"{{{{- if .Values.crds.install }}}}\n{text}{{{{- end }}}}\n"


def install(root: Path) -> str:
    """The chart rendered with its default values, and the namespace that it belongs to."""
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    namespace = dump({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    return f"---\n{namespace}{template(root, None, '--skip-tests')}"


def differences(root: Path) -> list[str]:
    """Unified diffs between the committed files and fresh ones; empty when nothing is out of date."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        shutil.copytree(root / CHART, fresh / CHART)
        written = generate(fresh)
        stale = [path.relative_to(root) for folder in FOLDERS for path in (root / folder).glob("*") if path.relative_to(root) not in written]
        return [text for path in [*written, *stale] if (text := _difference(path, root, fresh))]


def _difference(path: Path, root: Path, fresh: Path) -> str:
    old, new = ((side / path).read_text().splitlines(keepends=True) if (side / path).exists() else [] for side in (root, fresh))
    return "".join(difflib.unified_diff(old, new, f"committed/{path}", f"generated/{path}", n=1))


def main() -> int:
    """Exit code 1: with --check, something is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail with a diff when a file is out of date")
    check = parser.parse_args().check
    try:
        if not check:
            print("\n".join(map(str, generate(ROOT))))
            return 0
        found = differences(ROOT)
    except HelmError as error:
        sys.exit(str(error))
    if not found:
        return 0
    print("".join(found))
    print("Generated files are out of date. Run hack/generate.py and commit what it writes.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
