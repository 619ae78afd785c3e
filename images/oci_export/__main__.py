"""python3 -m oci_export STORE REFERENCE ARCHIVE BLOBS."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import IO, cast

from oci_export.store import Json, Store

COPY_SIZE = 1 << 20
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+zstd"


def compressed(store: Store, layer: Json, blobs: Path) -> Json:
    """The descriptor of the layer's blob, which is made unless it is there: the file BLOBS/<digest of the tar>.zst and its descriptor beside it."""
    diff_digest = layer["diff-digest"]
    blob = blobs / f"{diff_digest.removeprefix('sha256:')}.zst"
    descriptor_file = blob.with_suffix(".json")
    if descriptor_file.exists():
        descriptor: Json = json.loads(descriptor_file.read_text())
        return descriptor
    plain = hashlib.sha256()
    command: list[str | Path] = ["zstd", "--quiet", "--force", "-3", "--threads=0", "-o", blob]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process, cast("IO[bytes]", process.stdin) as pipe:
        for chunk in store.layer_tar(layer):
            plain.update(chunk)
            pipe.write(chunk)
    if process.returncode:
        raise ChildProcessError(f"zstd ended with {process.returncode}: is the disk of {blobs} full?")
    if f"sha256:{plain.hexdigest()}" != diff_digest:
        raise ValueError(f"layer {layer['id']} does not give the tar stream {diff_digest}: is the store damaged, or of another format?")
    with blob.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    descriptor = {"mediaType": LAYER_TYPE, "digest": f"sha256:{digest}", "size": blob.stat().st_size}
    descriptor_file.write_text(json.dumps(descriptor))
    return descriptor


def descriptor_of(media_type: str, content: bytes) -> Json:
    return {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}


def export(store: Store, reference: str, archive: Path, blobs: Path) -> None:
    """Writes the archive, whole or not at all."""
    image = store.image(reference)
    config = store.config(image)
    layers = store.layers(image)
    layer_descriptors = [compressed(store, layer, blobs) for layer in layers]
    content_of_manifest = {"config": descriptor_of(CONFIG_TYPE, config), "layers": layer_descriptors}
    manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST_TYPE} | content_of_manifest).encode()
    names = {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference}
    index = json.dumps({"schemaVersion": 2, "manifests": [descriptor_of(MANIFEST_TYPE, manifest) | {"annotations": names}]}).encode()
    partial = archive.with_suffix(".partial")
    with tarfile.TarFile(partial, "w", copybufsize=COPY_SIZE) as tar:
        _add(tar, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _add(tar, "index.json", index)
        for content in (manifest, config):
            _add(tar, f"blobs/sha256/{hashlib.sha256(content).hexdigest()}", content)
        for digest, layer in {d["digest"]: layer for d, layer in zip(layer_descriptors, layers, strict=True)}.items():
            blob = blobs / f"{layer['diff-digest'].removeprefix('sha256:')}.zst"
            tar.add(blob, f"blobs/sha256/{digest.removeprefix('sha256:')}")
    partial.rename(archive)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    export(Store(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
