"""Why the training process ended, read from what it printed last."""

import re
import signal
from collections.abc import Iterable

from finetune_runtime.handled import is_told

_OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|DefaultCPUAllocator: can't allocate memory"
    r"|Failed to CUDA calloc"  # NCCL's, where several GPUs meet; seen on an H200 without room
)
_ERROR = re.compile(r"^(?:\[rank\d+\]:\s*)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*)$")
_MAX_CHARACTERS = 600


def out_of_memory(lines: Iterable[str]) -> bool:
    """Whether an allocation of device memory failed that nobody got over. The text is matched, because it is not always the last line."""
    return any(_OUT_OF_MEMORY.search(line) for line in lines if not is_told(line))


def last_error(lines: Iterable[str]) -> str:
    """The last line that looks like an exception which nobody got over, else the last line with any text."""
    texts = [line.strip() for line in lines if line.strip() and not is_told(line)]
    errors = [match[1] for line in texts if (match := _ERROR.match(line))]
    return (errors or texts or ["it printed nothing"])[-1][:_MAX_CHARACTERS]


def crash(return_code: int, lines: Iterable[str]) -> str:
    """A sentence with cause and cure for a process that ended without finishing."""
    if return_code == -signal.SIGKILL:
        return (
            "The training process was killed (SIGKILL), most likely by the kernel because the pod reached its memory limit: "
            "raise resources.memory, or look for the node's out-of-memory events."
        )
    if return_code < 0:
        return f"The training process died of {signal.Signals(-return_code).name}; its last words: {last_error(lines)}"
    return f"The training process ended with code {return_code}: {last_error(lines)}"
