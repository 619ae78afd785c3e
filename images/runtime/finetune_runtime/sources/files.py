"""What every kind of source gives: local files."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SourceFile:
    """A local file and the URI that its user knows it by. `revision`: the commit that an hf:// source stood for, empty for other sources."""

    uri: str
    path: Path
    revision: str = ""


def visible(name: str) -> bool:
    """False for what tools leave beside data (.DS_Store, _SUCCESS, the ..data of a ConfigMap) and for directory markers."""
    return not name.endswith("/") and not any(part.startswith((".", "_")) for part in name.split("/"))
