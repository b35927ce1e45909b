"""NATS: does it answer, is JetStream on, and what is in the registry?"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import nats
import nats.errors
from nats.aio.client import Client
from nats.js.errors import Error as JetStreamError
from nats.js.errors import NoKeysError

from dynaserve.doctor.finding import Finding, fail, ok, warn
from shared.subjects import Subjects

TIMEOUT_S = 3.0
DEFAULT_PORT = 4222
NEEDED_PAYLOAD_BYTES = 1024 * 1024


@dataclass(frozen=True)
class BusReport:
    """What the server said; ``records`` are the raw values of the registry bucket."""

    url: str
    error: str | None = None
    server_version: str = ""
    max_payload_bytes: int = 0
    jetstream_error: str | None = None
    records: tuple[tuple[str, bytes], ...] = ()


async def read_bus(url: str, pool: str) -> BusReport:
    """Connect, ask, leave; every wait is bounded."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await knock(url)
            async with connected(url) as client:
                return await ask_server(client, url, pool)
    except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
        return BusReport(url, error=str(error) or type(error).__name__)


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Client]:
    """A client that does not come back by itself."""

    async def stay_silent(_: Exception) -> None: ...

    client = Client()
    await client.connect(url, allow_reconnect=False, connect_timeout=2, error_cb=stay_silent)
    try:
        yield client
    finally:
        await client.close()


async def knock(url: str) -> None:
    """Raise what the network says when nobody listens; the client would only try again."""
    address = urlsplit(url)
    _, writer = await asyncio.open_connection(address.hostname, address.port or DEFAULT_PORT)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def ask_server(client: Client, url: str, pool: str) -> BusReport:
    """The report of a server that took the connection."""
    jetstream = client.jetstream(timeout=1.0)
    jetstream_error = None
    records: tuple[tuple[str, bytes], ...] = ()
    try:
        await jetstream.account_info()
        records = await read_records(client, Subjects(pool).registry_bucket)
    except (JetStreamError, nats.errors.Error, TimeoutError) as error:
        jetstream_error = str(error) or type(error).__name__
    version = client.connected_server_version
    return BusReport(
        url,
        server_version=f"{version.major}.{version.minor}.{version.patch}",
        max_payload_bytes=client.max_payload,
        jetstream_error=jetstream_error,
        records=records,
    )


async def read_records(client: Client, bucket: str) -> tuple[tuple[str, bytes], ...]:
    """Every live record; nothing when the pool never was."""
    jetstream = client.jetstream(timeout=1.0)
    try:
        entries = await jetstream.key_value(bucket)
        keys = await entries.keys()
    except (nats.js.errors.BucketNotFoundError, nats.js.errors.NotFoundError, NoKeysError):
        return ()
    found = []
    for key in keys:
        with contextlib.suppress(nats.js.errors.KeyNotFoundError):  # it left meanwhile
            entry = await entries.get(key)
            found.append((key, entry.value or b""))
    return tuple(found)


def judge_bus(report: BusReport, wanted: bool) -> list[Finding]:
    """Findings about the server. One that nobody asked for may be missing: `up` brings its own."""
    if report.error is not None:
        return [judge_silence(report, wanted)]
    said = f"{report.url} answers, version {report.server_version}"
    return [ok("nats", said), judge_jetstream(report), judge_payload(report)]


def judge_silence(report: BusReport, wanted: bool) -> Finding:
    said = f"{report.url} does not answer: {report.error}"
    if wanted:
        return fail("nats", said, "start it with `nats-server -js`, or check the URL and firewall")
    return warn("nats", said, "`dynaserve up` brings its own; else give --nats URL")


def judge_jetstream(report: BusReport) -> Finding:
    if report.jetstream_error is None:
        return ok("jetstream", "on")
    return fail(
        "jetstream",
        f"does not answer: {report.jetstream_error}",
        "start the server with -js (or `jetstream {}` in its configuration)",
    )


def judge_payload(report: BusReport) -> Finding:
    said = f"{report.max_payload_bytes / 1024**2:g} MiB"
    if report.max_payload_bytes >= NEEDED_PAYLOAD_BYTES:
        return ok("nats max_payload", said)
    return fail(
        "nats max_payload", f"{said} is too little for long prompts", "set max_payload: 8MB"
    )
