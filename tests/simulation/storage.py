"""What jobs have committed to S3, by manifest: nothing else of it matters to anybody."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache


@dataclass(slots=True)
class Artefacts:
    """Manifests under the prefix of one job."""

    config_hash: str = ""
    dataset: bool = False
    checkpoint: int = 0  # step of the newest
    adapter: str = ""  # digest of its manifest
    adapter_step: int = 0


@lru_cache(maxsize=256)
def digest(text: str) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


class Storage:
    """Prefixes, by UID of the FineTuneJob: that UID is part of every prefix."""

    def __init__(self) -> None:
        self._prefixes: dict[str, Artefacts] = {}
        self.available = True

    def of(self, uid: str) -> Artefacts:
        """What is under a prefix."""
        return self._prefixes.setdefault(uid, Artefacts())
