"""Make and read OCI image archives (tar files of an OCI image layout) without a container tool."""

import argparse
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

MEDIA_TYPE = "application/vnd.oci.image"
NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")  # the first one present counts


def digest(blob: bytes) -> str:
    """Content address of a blob."""
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def descriptor(kind: str, blob: bytes, **extra: Any) -> dict[str, Any]:
    """OCI descriptor of a blob; ``kind`` is the end of its media type."""
    return {"mediaType": f"{MEDIA_TYPE}.{kind}", "digest": digest(blob), "size": len(blob), **extra}


def add_file(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    """Add a file of root's with a fixed time, so that equal content gives an equal archive."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    archive.addfile(member, io.BytesIO(content))


def pack(archive: Path, name: str, program: Path) -> None:
    """Write an image that holds one static program and nothing else, run as user 65532."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        add_file(tar, program.name, program.read_bytes(), 0o755)
    blobs = [layer.getvalue()]
    platform = {"architecture": "amd64", "os": "linux"}
    config = {
        **platform,
        "config": {"Entrypoint": [f"/{program.name}"], "User": "65532"},
        "rootfs": {"type": "layers", "diff_ids": [digest(blobs[0])]},
    }
    blobs.append(json.dumps(config).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{MEDIA_TYPE}.manifest.v1+json",
        "config": descriptor("config.v1+json", blobs[1]),
        "layers": [descriptor("layer.v1.tar", blobs[0])],
    }
    blobs.append(json.dumps(manifest).encode())
    named = descriptor("manifest.v1+json", blobs[2], platform=platform, annotations={NAME_ANNOTATIONS[0]: name})
    index = {"schemaVersion": 2, "mediaType": f"{MEDIA_TYPE}.index.v1+json", "manifests": [named]}
    with tarfile.open(archive, "w") as tar:
        add_file(tar, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        add_file(tar, "index.json", json.dumps(index).encode())
        for blob in blobs:
            add_file(tar, f"blobs/sha256/{digest(blob).removeprefix('sha256:')}", blob)


def names(archive: Path) -> list[tuple[str, str]]:
    """Name and digest of every image in the archive.

    Raises ValueError when it is no OCI archive, or one without names.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            content = tar.extractfile("index.json")
            index = json.load(content) if content else {}
    except (KeyError, tarfile.TarError) as error:
        raise ValueError(f"no OCI image archive: {error}") from error
    found = []
    for manifest in index.get("manifests", []):
        annotations = manifest.get("annotations", {})
        name = next((annotations[key] for key in NAME_ANNOTATIONS if key in annotations), None)
        if name:
            found.append((name, manifest["digest"]))
    if not found:
        raise ValueError("its index.json names no image")
    return found


def main() -> None:
    """Read the command line and act."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("pack", help="pack one static program as an image")
    make.add_argument("archive", type=Path)
    make.add_argument("name")
    make.add_argument("program", type=Path)
    read = commands.add_parser("names", help="print NAME DIGEST of each image")
    read.add_argument("archive", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "pack":
        pack(arguments.archive, arguments.name, arguments.program)
        return
    try:
        for name, content in names(arguments.archive):
            print(name, content)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{arguments.archive}: {error}\n")


if __name__ == "__main__":
    main()
