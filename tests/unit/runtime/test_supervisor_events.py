"""Events between the training process and its supervisor, and the process itself."""

import math
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from finetune_runtime.train.child import Child, Ended
from finetune_runtime.train.events import EVENTS_FD, Event, Kind
from finetune_runtime.train.staging import stage


def test_an_event_survives_the_pipe_also_with_a_loss_that_is_no_number() -> None:
    event = Event(Kind.LOG, 3, 20, 0.5, {"loss": 2.5, "grad_norm": float("inf")}, 7.25, "")
    assert Event.parse(event.encode()) == event
    assert math.isnan(Event.parse(Event(Kind.LOG, 1, 2, values={"loss": float("nan")}).encode()).values["loss"])


@pytest.mark.parametrize("line", ["", "{", "[]", "{}", '{"kind": "unknown", "step": 1, "total_steps": 2}', '{"kind": "log"}'])
def test_other_lines_are_refused(line: str) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        Event.parse(line)


def test_a_staged_checkpoint_outlives_the_trainers_rotation(tmp_path: Path) -> None:
    checkpoint = tmp_path / "output/checkpoint-10"
    (checkpoint / "nested").mkdir(parents=True)
    (checkpoint / "weights.bin").write_bytes(b"w")
    (checkpoint / "nested/state.json").write_text("{}")
    (tmp_path / "staged").mkdir()
    staged = stage(checkpoint, tmp_path / "staged")
    assert (staged / "weights.bin").stat().st_ino == (checkpoint / "weights.bin").stat().st_ino  # no copy
    for path in (checkpoint / "weights.bin", checkpoint / "nested/state.json"):
        path.unlink()
    assert (staged / "weights.bin").read_bytes() == b"w"
    assert (staged / "nested/state.json").read_text() == "{}"
    assert [path.name for path in (tmp_path / "staged").iterdir()] == ["checkpoint-10"]


def test_staging_again_replaces_what_is_there(tmp_path: Path) -> None:
    checkpoint = tmp_path / "output/checkpoint-10"
    checkpoint.mkdir(parents=True)
    (checkpoint / "a").write_text("old")
    stage(checkpoint, tmp_path / "staged")
    (checkpoint / "a").unlink()
    (checkpoint / "b").write_text("new")
    assert [path.name for path in stage(checkpoint, tmp_path / "staged").iterdir()] == ["b"]


def child(code: str, directory: Path, processes: int = 1) -> "tuple[Child, queue.SimpleQueue[Event | Ended]]":
    inbox: queue.SimpleQueue[Event | Ended] = queue.SimpleQueue()

    def environments(events_fd: int) -> list[Mapping[str, str]]:
        return [dict(os.environ) | {EVENTS_FD: str(events_fd), "RANK": str(number)} for number in range(processes)]

    return Child([sys.executable, "-u", "-c", code], environments, directory, inbox.put), inbox


def test_events_come_before_the_end_and_broken_ones_are_passed_over(tmp_path: Path) -> None:
    code = f"""
import os
pipe = os.fdopen(int(os.environ["{EVENTS_FD}"]), "w")
pipe.write('{Event(Kind.BEGIN, 0, 2).encode()}\\nbroken\\n{Event(Kind.END, 2, 2).encode()}\\n')
pipe.flush()
print("ValueError: bad")
raise SystemExit(3)
"""
    process, inbox = child(code, tmp_path)
    received = [inbox.get(timeout=30) for _ in range(3)]
    assert received == [Event(Kind.BEGIN, 0, 2), Event(Kind.END, 2, 2), Ended(3)]
    assert process.tail[-1] == "ValueError: bad"


def test_progress_bars_are_no_log_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    process, inbox = child(r"print('Map:  50%|#####     | 5/10\rMap: 100%|##########| 10/10\nplain line')", tmp_path)
    assert inbox.get(timeout=30) == Ended(0)
    assert process.tail == ["plain line"]
    assert capfd.readouterr().out == "plain line\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_process_and_is_its_return_code(number: signal.Signals, tmp_path: Path) -> None:
    process, inbox = child("import time; time.sleep(60)", tmp_path)
    process.signal(number)
    assert inbox.get(timeout=30) == Ended(-number)
    process.signal(number)  # it is gone: nothing happens
    process.kill()


def test_what_the_process_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    code = """
import subprocess, sys
orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open("pid", "w").write(str(orphan.pid))
"""
    _, inbox = child(code, tmp_path)
    assert inbox.get(timeout=30) == Ended(0)
    assert gone(int((tmp_path / "pid").read_text()))


def test_the_process_does_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    supervisor = f"""
import os, sys, time
from pathlib import Path
from finetune_runtime.train.child import Child
code = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
Child([sys.executable, "-c", code], lambda fd: [dict(os.environ)], Path({str(tmp_path)!r}), print)
time.sleep(60)
"""
    package = Path(__file__).parents[3] / "images/runtime"
    process = subprocess.Popen([sys.executable, "-c", supervisor], env=os.environ | {"PYTHONPATH": str(package)})
    try:
        end = time.monotonic() + 30
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        process.kill()
    finally:
        process.kill()
        process.wait()
    assert gone(int((tmp_path / "pid").read_text()))


# Process 1 does something else than the others, which wait for it.
FATES = [
    pytest.param("print('torch.OutOfMemoryError: CUDA out of memory.'); sys.exit(1)", 1, "torch.OutOfMemoryError: CUDA out of memory.", id="out of memory"),
    pytest.param("os.kill(os.getpid(), signal.SIGKILL)", -9, "", id="killed"),
    pytest.param("sys.exit(3)", 3, "", id="ended"),
]


@pytest.mark.parametrize(("fate", "code", "said"), FATES)
def test_of_several_processes_the_first_that_fails_ends_all_and_says_why(tmp_path: Path, fate: str, code: int, said: str) -> None:
    program = f"""
import os, signal, sys, time
if os.environ["RANK"] == "1":
    while len([name for name in os.listdir() if name.startswith("here")]) < 2:
        time.sleep(0.01)
    {fate}
print("ConnectionError: lost")
open("here" + os.environ["RANK"], "w").close()
time.sleep(60)
"""
    process, inbox = child(program, tmp_path, 3)
    assert inbox.get(timeout=30) == Ended(code)
    assert inbox.empty()
    assert process.tail == ["ConnectionError: lost"] * 2 + [said] * bool(said)


def test_a_signal_reaches_every_process_and_the_last_one_to_end_is_the_end(tmp_path: Path) -> None:
    program = """
import os, signal, sys, time
number = int(os.environ["RANK"])
def handler(*_):
    time.sleep(0.3 * number)
    open("saved" + str(number), "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, handler)
open("here" + str(number), "w").close()
time.sleep(60)
"""
    process, inbox = child(program, tmp_path, 3)
    end = time.monotonic() + 30
    while len(list(tmp_path.glob("here*"))) < 3:
        assert time.monotonic() < end
        time.sleep(0.02)
    process.signal(signal.SIGTERM)
    assert inbox.get(timeout=30) == Ended(0)
    assert len(list(tmp_path.glob("saved*"))) == 3


def gone(pid: int) -> bool:
    """Whether the process ends within ten seconds; a zombie that only waits for init is gone."""
    for _ in range(100):
        try:
            if " Z " in Path(f"/proc/{pid}/stat").read_text():
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False
