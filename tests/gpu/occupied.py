"""A GPU whose memory somebody else has."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

GIB = 2**30
# Takes all of a GPU's free memory but so many bytes, says so, and holds it until its standard input is closed.
HOLD = """
import sys, torch
device = int(sys.argv[2])
free, _ = torch.cuda.mem_get_info(device)
kept = torch.empty(free - int(sys.argv[1]), dtype=torch.uint8, device=device)
print('held', flush=True)
sys.stdin.read()
"""


@contextmanager
def only(free: int, device: int = 0) -> Iterator[None]:
    """A GPU with only `free` bytes left for others."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(free), str(device)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdin
    try:
        assert holder.stdout.readline().strip() == "held"
        yield
    finally:
        holder.stdin.close()
        holder.wait(60)
