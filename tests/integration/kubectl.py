"""kubectl against the cluster under test: what users type is what is tested."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class KubectlError(AssertionError):
    """kubectl failed where a test expected success. The message is what it printed."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl with one kubeconfig, in one namespace."""

    kubeconfig: Path
    namespace: str = "default"

    def __call__(self, *arguments: str, stdin: Any = None) -> str:
        """Standard output of `kubectl ARGUMENTS`; `stdin` is written as JSON. Raises KubectlError."""
        result = self._run(arguments, stdin)
        if result.returncode:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {result.stderr or result.stdout}")
        return result.stdout

    def json(self, *arguments: str, stdin: Any = None) -> Any:
        """Parsed output of `kubectl ARGUMENTS -o json`."""
        return json.loads(self(*arguments, "-o", "json", stdin=stdin))

    def refused(self, *arguments: str, stdin: Any = None) -> str:
        """What kubectl says when the API server refuses. Raises AssertionError when it does not."""
        result = self._run(arguments, stdin)
        assert result.returncode, f"accepted: {result.stdout}"
        return result.stderr

    def within(self, namespace: str) -> "Kubectl":
        """The same in another namespace."""
        return Kubectl(self.kubeconfig, namespace)

    def _run(self, arguments: tuple[str, ...], stdin: Any) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(self.kubeconfig.parent / "kube-cache")}
        command = [_binary(), "--namespace", self.namespace, *arguments]
        text = None if stdin is None else json.dumps(stdin)
        return subprocess.run(command, input=text, env=environment, capture_output=True, text=True, timeout=120, check=False)


def _binary() -> str:
    cache = Path(os.environ.get("FINETUNE_CACHE") or Path.home() / ".cache/finetune-operator")
    found = shutil.which("kubectl", path=f"{cache / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}")
    assert found, "kubectl was not found: run tests/devcluster/install"
    return found


def merge(base: Any, change: Any) -> Any:
    """`base` with `change` merged into it, as a JSON merge patch without nulls."""
    if isinstance(base, dict) and isinstance(change, dict):
        return base | {key: merge(base.get(key), value) for key, value in change.items()}
    return change
