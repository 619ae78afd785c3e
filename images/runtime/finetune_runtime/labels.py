"""Labels of a training row: which of its tokens the loss counts."""

from collections.abc import Sequence

IGNORED = -100  # label of a token that the loss leaves out


def prompt_length(labels: Sequence[int]) -> int:
    """Tokens before the first one of the last assistant turn that the loss counts: the prompt that serving must reproduce."""
    end = len(labels)
    while end and labels[end - 1] == IGNORED:
        end -= 1
    while end and labels[end - 1] != IGNORED:
        end -= 1
    return end
