"""Reads images from a containers/storage directory with the overlay driver, which is what buildah builds into."""

import base64
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

READ_SIZE = 1 << 20

Json = dict[str, Any]


class Store:
    """The store in a directory; layers and images never change once they are written, so reading needs no lock."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._images: list[Json] = json.loads((root / "overlay-images/images.json").read_text())
        layers: list[Json] = json.loads((root / "overlay-layers/layers.json").read_text())
        self._layers = {layer["id"]: layer for layer in layers}

    def image(self, reference: str) -> Json:
        """The record of the image with that full name; raises LookupError."""
        for image in self._images:
            if reference in image.get("names", ()):
                return image
        raise LookupError(f"no image {reference} in {self._root}: build it first")

    def config(self, image: Json) -> bytes:
        """The image's config as it was written, so that its digest is the image's id."""
        key = base64.b64encode(f"sha256:{image['id']}".encode()).decode()
        return Path(self._root, "overlay-images", image["id"], f"={key}").read_bytes()

    def layers(self, image: Json) -> list[Json]:
        """The records of the image's layers, lowest first."""
        chain: list[Json] = []
        layer_id = image["layer"]
        while layer_id:
            chain.append(self._layers[layer_id])
            layer_id = chain[-1].get("parent", "")
        return chain[::-1]

    def layer_tar(self, layer: Json) -> Iterator[bytes]:
        """The layer as the very tar stream whose digest the image's config names.

        The store keeps a layer as a folder of files, and beside it a list of what the tar held between the files' contents (headers, padding).
        """
        files = self._root / "overlay" / layer["id"] / "diff"
        with gzip.open(self._root / "overlay-layers" / f"{layer['id']}.tar-split.gz") as entries:
            for line in entries:
                entry: Json = json.loads(line)
                if entry["type"] == 2:
                    yield base64.b64decode(entry["payload"])
                elif entry.get("size", 0):
                    with (files / _name(entry)).open("rb") as file:
                        while chunk := file.read(READ_SIZE):
                            yield chunk


def _name(entry: Json) -> str:
    if "name_raw" in entry:  # not valid UTF-8
        return os.fsdecode(base64.b64decode(entry["name_raw"]))
    return str(entry["name"])
