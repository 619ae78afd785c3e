"""`python3 -m finetune_runtime STEP`: runs one step of the data plane and leaves its result as the pod's termination message."""

import argparse
import logging
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

# pydantic and all else is imported by the step that needs it: `ready` runs every few seconds and needs nothing of it.
if TYPE_CHECKING:
    from .contract.config import EvaluateConfig, JobConfig, MergeConfig, ServeConfig
    from .contract.result import StepResult

    C = TypeVar("C", JobConfig, MergeConfig, ServeConfig, EvaluateConfig)

STEPS = ("prepare", "train", "merge", "fetch", "serve", "follow", "ready", "evaluate")

log = logging.getLogger("finetune_runtime")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of the step, see contract.result.Exit."""
    parser = argparse.ArgumentParser(prog="python3 -m finetune_runtime")
    parser.add_argument("step", choices=STEPS)
    step: str = parser.parse_args(argv).step
    if step == "ready":
        from .serve import ready

        return ready.main()
    if step == "train":
        # The supervisor lets it through once it can handle it: an eviction during the imports is an interruption, not a crash.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    result, code = run(step)
    leave(result)
    return code


def run(step: str) -> "tuple[StepResult, int]":
    """Runs a step. Whatever happens in it becomes a result and an exit code."""
    from .contract.result import Exit, Reason, StepError, StepResult

    try:
        result = _run(step)
    except StepError as error:
        log.error("%s: %s", error.reason, error.message)  # noqa: TRY400  expected, and its message says it all
        return StepResult(step=step, reason=error.reason, message=error.message, train=getattr(error, "train", None)), error.code
    except Exception as error:
        log.exception("the step %s failed in a way that it should not", step)
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return StepResult(step=step, reason=Reason.INTERNAL_ERROR, message=text), Exit.CRASH
    log.info("%s: %s", result.reason, result.message)
    return result, Exit.INTERRUPTED if result.reason is Reason.INTERRUPTED else Exit.DONE


def leave(result: "StepResult") -> None:
    """Writes the termination message; the log has it too, in case nobody can read the file."""
    from .contract.config import TERMINATION_LOG

    text = result.encode()
    try:
        Path(os.environ.get("FINETUNE_TERMINATION_LOG", TERMINATION_LOG)).write_text(text, encoding="utf-8")
    except OSError as error:
        log.warning("the termination message cannot be written (%s): %s", error, text)


def _run(step: str) -> "StepResult":
    from .contract.config import EvaluateConfig, JobConfig, MergeConfig, ServeConfig

    if step == "prepare":
        from .prepare import step as prepare

        return prepare.run(_config(JobConfig))
    if step == "train":
        from .train import supervisor

        return supervisor.run(_config(JobConfig))
    if step == "merge":
        from .merge import step as merge

        return merge.run(_config(MergeConfig))
    if step == "fetch":
        from .serve import fetch

        return fetch.run(_config(ServeConfig))
    if step == "evaluate":
        from .evaluate import step as evaluate

        return evaluate.run(_config(EvaluateConfig))
    if step == "follow":
        from .serve import follow

        return follow.run()
    from .serve import run as serve

    return serve.run(_config(ServeConfig))


def _config(model: "type[C]") -> "C":
    from pydantic import ValidationError

    from .contract.config import CONFIG_PATH
    from .contract.result import Exit, Reason, StepError

    path = os.environ.get("FINETUNE_CONFIG", CONFIG_PATH)
    try:
        return model.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise StepError(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        # The place and the rule, not the value: values do not belong into messages.
        first = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'the document'}: {fault['msg']}" for fault in error.errors(include_input=False)[:3])
        raise StepError(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, f"{path} is not a {model.__name__}: {first}") from error


def become_child_of_init() -> None:
    """As PID 1 a process has to reap orphans, and signals that it does not handle are lost on it; tini takes that off us and off the engines."""
    if os.getpid() == 1 and (tini := shutil.which("tini")):
        os.execv(tini, [tini, "--", sys.executable, "-m", "finetune_runtime", *sys.argv[1:]])  # noqa: S606  ourselves again


if __name__ == "__main__":
    become_child_of_init()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: that waits for threads, and after SIGTERM one of them may be in the middle of a long download.
    os._exit(code)
