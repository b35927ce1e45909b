"""``python -m services.kv_transfer [--nats URL]``."""

import sys
from collections.abc import Sequence

from services.kv_transfer.actor import KvTransferActor
from services.kv_transfer.settings import read_settings
from shared.service import run_service


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one coordinator until SIGTERM."""
    settings = read_settings(sys.argv[1:] if arguments is None else arguments)
    run_service("kv_transfer", settings, lambda bus: KvTransferActor(bus, settings))


if __name__ == "__main__":
    main()
