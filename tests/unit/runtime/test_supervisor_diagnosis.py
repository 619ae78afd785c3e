"""What the last lines of the training process mean."""

import pytest

from finetune_runtime.handled import told
from finetune_runtime.train.diagnosis import crash, last_error, out_of_memory

CUDA = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has a total capacity of 7.61 GiB"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (CUDA, True),
        (f"[rank0]: {CUDA}", True),
        ("RuntimeError: CUDA error: out of memory", True),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("[rank1]: Failed to CUDA calloc async 8 bytes", True),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.", True),
        ("ValueError: Please input the training dataset.", False),
        ("{'loss': 1.2, 'memory(GiB)': 7.2}", False),
    ],
)
def test_out_of_memory_is_found_wherever_it_stands(line: str, expected: bool) -> None:
    assert out_of_memory(["Traceback (most recent call last):", line, "End time of running main: 2026-11-25"]) is expected


def test_what_a_process_got_over_is_no_cause_of_its_end() -> None:
    error = RuntimeError("operation failed due to a previous error during capture")
    error.__context__ = MemoryError(CUDA)  # it came while this one was handled
    lines = [*told(error).splitlines(), "a later line"]
    assert any(CUDA in line for line in lines), "the log keeps both errors"
    assert not out_of_memory(lines)
    assert last_error(lines) == "a later line"
    assert out_of_memory([*lines, CUDA])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Traceback (most recent call last):", '  File "x.py"', "ValueError: bad value", "[INFO:swift] End time"], "ValueError: bad value"),
        (["safetensors_rust.SafetensorError: Error while deserializing header"], "safetensors_rust.SafetensorError: Error while deserializing header"),
        (["[rank0]: KeyError: 'qwen9'"], "KeyError: 'qwen9'"),
        (["OSError: first", "During handling ...", "RuntimeError: second"], "RuntimeError: second"),
        (["[INFO:swift] Error rates are low today", "Fatal Python error: Segmentation fault"], "Fatal Python error: Segmentation fault"),
        (["", "  "], "it printed nothing"),
        ([], "it printed nothing"),
    ],
)
def test_the_last_error_is_the_one_that_counts(lines: list[str], expected: str) -> None:
    assert last_error(lines) == expected


def test_a_very_long_line_is_cut() -> None:
    assert len(last_error([f"ValueError: {'x' * 10000}"])) <= 600


@pytest.mark.parametrize(
    ("return_code", "words"),
    [
        (-9, "raise resources.memory"),
        (-11, "died of SIGSEGV"),
        (1, "ended with code 1: ValueError: bad value"),
        (0, "ended with code 0: ValueError: bad value"),
    ],
)
def test_a_crash_is_told_with_its_cause(return_code: int, words: str) -> None:
    assert words in crash(return_code, ["ValueError: bad value"])
