"""A training process that saves at SIGTERM, and the workers of its data loader, which must end at it."""

import subprocess
import sys

_TRAINER = """
import multiprocessing, os, signal, time
from finetune_runtime.train.signals import handle_here_only
seen = []
handle_here_only(signal.SIGTERM, lambda *_: seen.append("SIGTERM"))
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)
worker.start()
os.kill(os.getpid(), signal.SIGTERM)
worker.terminate()
worker.join()
print(seen, worker.exitcode)
"""


def test_workers_end_at_the_signal_that_the_trainer_survives() -> None:
    done = subprocess.run([sys.executable, "-c", _TRAINER], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[0] == "['SIGTERM'] -15"
