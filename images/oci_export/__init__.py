"""Writes an image of the buildah store as an OCI archive, for import into a container runtime.

`buildah push` compresses every layer of the image every time. Here each layer is compressed once, with zstd, and kept under the digest of its
content, so that after an edit of the code only the last, small layer is new and the rest is a copy of files.
"""
