"""What the instances of a pool hold, and whether all of it came back after a load."""

import asyncio
from collections.abc import Iterable, Mapping

from pydantic import TypeAdapter

from shared.bus import Bus
from shared.errors import BusTimeout
from shared.schemas.segment import EngineAccounts, InspectEngine
from shared.subjects import Subjects

ACCOUNTS: TypeAdapter[EngineAccounts] = TypeAdapter(EngineAccounts)
ANSWER_TIMEOUT_S = 5.0
LOOK_AGAIN_S = 0.02

Accounts = Mapping[str, EngineAccounts]


async def accounts_of(bus: Bus, subjects: Subjects, instance_ids: Iterable[str]) -> Accounts:
    """Ask every instance. Raises BusError when one does not answer."""
    ids = sorted(instance_ids)
    answers = await asyncio.gather(
        *(bus.request(subjects.control(each), InspectEngine(), ANSWER_TIMEOUT_S) for each in ids)
    )
    found = [ACCOUNTS.validate_json(answer.data) for answer in answers]
    return dict(zip(ids, found, strict=True))


def holdings(accounts: Accounts) -> list[str]:
    """What is held for requests and handoffs, one line each; empty when the pool is at rest."""
    names = ("num_requests", "open_handoffs", "kv_blocks_orphaned", "staging_bytes_in_use")
    return [
        f"{instance_id}: {name} {getattr(each, name)}"
        for instance_id, each in accounts.items()
        for name in names
        if getattr(each, name)
    ]


def leaks(before: Accounts, after: Accounts) -> list[str]:
    """What did not come back: holdings, blocks that are not free again, tasks that stayed."""
    found = holdings(after)
    for instance_id, each in after.items():
        start = before[instance_id]
        if each.free_blocks != start.free_blocks:
            found.append(f"{instance_id}: {start.free_blocks} -> {each.free_blocks} free blocks")
        if each.tasks > start.tasks:
            found.append(f"{instance_id}: {start.tasks} -> {each.tasks} tasks")
    return found


async def until_balanced(
    bus: Bus, subjects: Subjects, before: Accounts, timeout_s: float
) -> Accounts:
    """Wait until nothing differs from ``before``; raises BusTimeout after ``timeout_s``."""
    try:
        async with asyncio.timeout(timeout_s):
            while leaks(before, after := await accounts_of(bus, subjects, before)):
                await asyncio.sleep(LOOK_AGAIN_S)
    except TimeoutError as error:
        raise BusTimeout(f"balanced accounts: {leaks(before, after)}", timeout_s) from error
    return after
