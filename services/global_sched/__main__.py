"""``python -m services.global_sched [--nats URL] [--policy NAME]``."""

import sys
from collections.abc import Sequence

from services.global_sched.actor import SchedulerActor
from services.global_sched.settings import read_settings
from shared.service import run_service


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one scheduler until SIGTERM."""
    settings = read_settings(sys.argv[1:] if arguments is None else arguments)
    run_service("global_sched", settings, lambda bus: SchedulerActor(bus, settings))


if __name__ == "__main__":
    main()
