"""Failures that a training process gets over. Its supervisor reads in its last words why it ended, and must not take these for the cause."""

import traceback

_MARK = "got over: "


def told(error: BaseException) -> str:
    """The traceback for the log, with what led to the error, each of its lines marked."""
    return "\n".join(_MARK + line for line in "".join(traceback.format_exception(error)).splitlines())


def is_told(line: str) -> bool:
    """Whether a line of the log is one of `told`."""
    return line.startswith(_MARK)
