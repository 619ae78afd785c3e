"""Graphics cards by what a training may reserve on them, and how a larger GPU plays a smaller one.

The play is the allocator's limit (torch.cuda.set_per_process_memory_fraction), set before the model is loaded: torch's own memory, with graphs and the
workspaces of cuBLAS, must fit the smaller card while loading and while training. It says nothing of that card's speed, and it does not see what lies outside
the allocator, a display or other programs: the CUDA context and the loaded kernels are counted off as the trainer counts them.
"""

from dataclasses import dataclass

from finetune_runtime.contract.fast_sizing import usable
from finetune_runtime.contract.sizing import CONTEXT


@dataclass(frozen=True)
class Card:
    """A card with `memory` bytes, as its driver shows them."""

    name: str
    memory: int

    @property
    def budget(self) -> int:
        """Bytes that torch may reserve when nothing else is on the card."""
        return usable(self.memory - CONTEXT)


GIB = 2**30
MIB = 2**20
# Sizes as nvidia-smi shows them for an RTX 4060, 3060, 4080, 4090 and an A100.
CARDS = tuple(Card(f"{gigabytes} GB", mebibytes * MIB) for gigabytes, mebibytes in ((8, 8188), (12, 12282), (16, 16376), (24, 24564), (40, 40960)))


def named(gigabytes: int) -> Card:
    """Raises KeyError for a card that is not in the list."""
    return {card.name: card for card in CARDS}[f"{gigabytes} GB"]
