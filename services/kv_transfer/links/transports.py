"""The transports there are, by name."""

from services.kv_transfer.links.paths import Transport
from services.kv_transfer.links.shm import ShmTransport
from services.kv_transfer.links.tcp import TcpTransport

TRANSPORTS: dict[str, Transport] = {"shm": ShmTransport(), "tcp": TcpTransport()}
