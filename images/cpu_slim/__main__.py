"""python3 -m cpu_slim SITE_PACKAGES: replaces the CUDA libraries of the torch installed there by stubs; needs binutils.

torch.cuda.is_available() is False afterwards. What does not work: extensions that link libtorch_cuda (torchvision), torch.compile (its headers
are removed), the NCCL backend.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from cpu_slim import assembly, plan

UNUSED_WITHOUT_CUDA = ("torch/include", "torch/test")


def slim(site_packages: Path) -> dict[str, plan.Stub]:
    """Replaces the libraries and removes what is of no use without them; returns the stubs by soname. Raises FileNotFoundError without torch."""
    lib = site_packages / "torch" / "lib"
    dropped = [lib / name for name in plan.TORCH_CUDA if (lib / name).exists()]
    if not dropped:
        raise FileNotFoundError(f"{lib} holds none of torch's CUDA libraries: is this the CUDA build of torch, and not slimmed yet?")
    kept = sorted(set(lib.glob("*.so*")) - set(dropped)) + sorted((site_packages / "torch").glob("_C*.so"))
    stubs = plan.plan_stubs(kept, dropped)
    with tempfile.TemporaryDirectory() as directory:
        libraries = [assembly.build(soname, stub, Path(directory)) for soname, stub in sorted(stubs.items())]
        for file in dropped:
            file.unlink()
        for library in libraries:
            shutil.copy(library, lib)
    for name in UNUSED_WITHOUT_CUDA:
        shutil.rmtree(site_packages / name, ignore_errors=True)
    for file in site_packages.glob("bitsandbytes/libbitsandbytes_*.so"):
        if "cpu" not in file.name:
            file.unlink()
    return stubs


if __name__ == "__main__":
    for soname, stub in slim(Path(sys.argv[1])).items():
        sys.stdout.write(f"{soname}: {len(stub.functions)} functions, {len(stub.objects)} objects\n")
