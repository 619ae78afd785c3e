"""Makes the CUDA build of torch run on a CPU without its CUDA libraries. For development and test images only.

The package index has no CPU-only torch for Linux x86-64: its wheel links 2.5 GB of CUDA libraries and does not load without them, although
none of their code runs on a machine without a GPU. So the libraries are replaced by stubs of a few KB: ELF shared libraries of the same names
that define every symbol which the rest of torch asks for. The dynamic loader is satisfied, and torch sees a machine without a CUDA device.
"""
