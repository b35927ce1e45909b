"""Snapshots to many clients: made once for all, and only while somebody listens."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from shared.clock import Clock

INTERVAL_S = 0.5
MAX_CLIENTS = 32


Client = asyncio.Queue[bytes | None]
"""Holds the newest snapshot; None says that there will be no more."""


class TooManyClients(Exception):
    """The live view has all the clients it takes."""


class Broadcast:
    """Each client has room for one snapshot: a slow one misses some and never delays another."""

    def __init__(self, make: Callable[[], bytes], clock: Clock) -> None:
        self._make = make
        self._clock = clock
        self._clients: set[Client] = set()
        self._joined = asyncio.Event()

    @property
    def num_clients(self) -> int:
        return len(self._clients)

    async def run(self) -> None:
        """Until cancelled: at most one snapshot every ``INTERVAL_S``."""
        while True:
            await self._joined.wait()
            if not self._clients:
                self._joined.clear()
                continue
            data = self._make()
            for client in self._clients:
                _replace(client, data)
            await self._clock.sleep(INTERVAL_S)

    def stop(self) -> None:
        """Let every client go, so that an open page does not hold up the end of the server."""
        for client in self._clients:
            _replace(client, None)

    async def listen(self) -> AsyncGenerator[bytes, None]:
        """The newest snapshot whenever there is one the caller has not had; close it at the end."""
        if len(self._clients) >= MAX_CLIENTS:
            raise TooManyClients
        client: Client = asyncio.Queue(maxsize=1)
        self._clients.add(client)
        self._joined.set()
        try:
            yield self._make()
            while (data := await client.get()) is not None:
                yield data
        finally:
            self._clients.discard(client)


def _replace(client: Client, data: bytes | None) -> None:
    if client.full():
        client.get_nowait()
    client.put_nowait(data)
