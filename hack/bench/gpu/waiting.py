"""A training process that has everything imported and waits for its turn: one line on standard input. Then `python3 -m swift.cli.sft ARGUMENTS`.

So the imports of the next training, seconds on a slow processor, run beside the steps of the one before; it touches no GPU until it is its turn.
"""

import runpy
import sys

import bitsandbytes  # noqa: F401  loaded for the process that this becomes
import peft  # noqa: F401  loaded for the process that this becomes
import transformers  # noqa: F401  loaded for the process that this becomes
from swift.pipelines import sft_main  # noqa: F401  loaded for the process that this becomes


def main() -> None:
    if not sys.stdin.readline():
        return
    runpy.run_module("swift.cli.sft", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
