"""What the embedded server is told: one JSON document (NATS reads JSON as its own format)."""

import json
from dataclasses import dataclass
from pathlib import Path

MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
MAX_MEMORY_STORE_BYTES = 256 * 1024 * 1024
MAX_FILE_STORE_BYTES = 1024 * 1024 * 1024

ANY_PORT = -1


@dataclass(frozen=True)
class NatsConfig:
    """The settings of one server; a port of 0 means any free one."""

    port: int
    host: str
    store_dir: Path
    ports_dir: Path
    monitor_port: int | None

    def to_json(self) -> str:
        """The configuration file's text."""
        document: dict[str, object] = {
            "server_name": "dynaserve-embedded",
            "host": self.host,
            "port": self.port or ANY_PORT,
            "max_payload": MAX_PAYLOAD_BYTES,
            "ports_file_dir": str(self.ports_dir),
            "pid_file": str(self.ports_dir / "nats-server.pid"),
            "jetstream": {
                "store_dir": str(self.store_dir),
                "max_memory_store": MAX_MEMORY_STORE_BYTES,
                "max_file_store": MAX_FILE_STORE_BYTES,
            },
        }
        if self.monitor_port is not None:
            document["http"] = f"{self.host}:{self.monitor_port or ANY_PORT}"
        return json.dumps(document, indent=2)
