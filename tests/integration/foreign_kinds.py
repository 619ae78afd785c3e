"""Kinds of other projects as their Go modules ship them, without the projects themselves."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.integration.kubectl import Kubectl
from tests.integration.operator_process import wait

DEVCLUSTER = Path(__file__).resolve().parents[1] / "devcluster"


def _is_known(cluster: Kubectl, path: str) -> bool:
    return "Established" in cluster("get", "-f", path, "-o", "yaml")


@contextmanager
def installed(cluster: Kubectl, pinned_in: str, module: str, *files: str) -> Iterator[None]:
    """CustomResourceDefinitions from `files` of a Go module, in the version that the folder `pinned_in` of the dev cluster pins."""
    found = subprocess.run(["go", "mod", "download", "-json", module], cwd=DEVCLUSTER / pinned_in, capture_output=True, text=True, check=True)
    paths = [str(Path(json.loads(found.stdout)["Dir"]) / file) for file in files]
    for path in paths:
        cluster("apply", "--server-side", "-f", path)
        # `kubectl wait` gives up on an object that has no conditions yet.
        wait("the API server has looked at the kind", partial(_is_known, cluster, path))
        cluster("wait", "--for=condition=Established", "--timeout=60s", "-f", path)
    yield
    for path in paths:
        cluster("delete", "-f", path)
