"""`python3 -m finetune_operator`: run the operator until it is told to stop."""

import logging
import sys

import kopf

from . import __version__, settings
from .handlers import Runtime


def main() -> int:
    """Run. Returns the exit code of the process."""
    try:
        config = settings.load()
    except settings.SettingsError as error:
        print(f"finetune-operator cannot start: {error}", file=sys.stderr)  # noqa: T201  there is no log yet
        return 2
    kopf.configure(log_format=kopf.LogFormat.JSON if config.log_format == "json" else kopf.LogFormat.FULL)
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # kopf tells of every event; we tell of every decision
    logging.getLogger(__name__).info("finetune-operator %s", __version__)
    runtime = Runtime(config)
    kopf.run(
        standalone=True,
        clusterwide=not config.watch_namespaces,
        namespaces=config.watch_namespaces,
        memo=kopf.Memo(runtime=runtime),
        stop_flag=runtime.ended,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
