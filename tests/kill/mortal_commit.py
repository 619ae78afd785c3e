"""A commit that dies at a chosen request to S3; it exits with 0 when it is done before that.

python3 -m tests.kill.mortal_commit STORAGE DIRECTORY URI MANIFEST (fresh|replace) (before-send|response-received) NUMBER
"""

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import Manifest
from finetune_runtime.contract.spec import S3Storage
from finetune_runtime.s3.store import Store


def main(storage: str, directory: str, uri: str, manifest: str, mode: str, event: str, number: str) -> None:
    """Arguments as on the command line; STORAGE and MANIFEST are JSON."""
    store = Store(S3Storage.model_validate_json(storage))
    requests = itertools.count(1)

    def die(**_: Any) -> None:
        if next(requests) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    store._client.meta.events.register(f"{event}.s3", die)
    artefacts.commit(store, Path(directory), uri, Manifest.model_validate_json(manifest), replace=mode == "replace")


if __name__ == "__main__":
    main(*sys.argv[1:])
