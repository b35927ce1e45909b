"""Real engines: their cache events reach the schedulers, and a prompt goes where it begins."""

import asyncio
import uuid

import pytest
from openai import AsyncOpenAI

from shared.bus import Delivery
from shared.prefixes import HASH_BYTES
from shared.schemas.message import pack_tokens
from shared.schemas.place import PLACE_REPLY, Plan
from shared.schemas.prefix import PREFIX_UPDATE
from shared.schemas.segment import ControlReply, ResetPrefixCache
from tests.integration.pool_client import MODEL, UNCUT, Watcher
from tests.unit.global_sched.pool_stage import question

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

BEGINNING = [300 + (7 * n) % 150 for n in range(1000)]
CACHED = 960
"""Whole chunks of it."""


class Told:
    """How many chunks each instance is known to hold, from its updates."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self.changed = asyncio.Condition()

    async def on_update(self, delivery: Delivery) -> None:
        update = PREFIX_UPDATE.validate_json(delivery.data)
        async with self.changed:
            before = 0 if update.is_whole else self.held.get(update.instance_id, 0)
            change = (len(update.added) - len(update.removed)) // HASH_BYTES
            self.held[update.instance_id] = before + change
            self.changed.notify_all()

    async def until(self, instance_id: str, at_least: int, at_most: int = 1 << 20) -> None:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(
                lambda: at_least <= self.held.get(instance_id, 0) <= at_most
            )


async def ask(openai: AsyncOpenAI, watcher: Watcher, prompt: list[int]) -> tuple[str, int, int]:
    """Who served it, and the prompt tokens believed and found cached there."""
    request_id = uuid.uuid4().hex
    await openai.completions.create(
        model=MODEL,
        prompt=prompt,
        max_tokens=2,
        extra_body=UNCUT,
        extra_headers={"X-Request-Id": request_id},
    )
    (record,) = await watcher.records(request_id)
    plan = record["plan"]
    return plan["alpha_id"], plan["predicted_cached_tokens"], record["num_cached_tokens"]


async def test_a_second_prompt_with_the_same_beginning_goes_to_the_engine_that_holds_it(
    openai: AsyncOpenAI, watcher: Watcher
) -> None:
    told = Told()
    await watcher.bus.subscribe(watcher.subjects.prefixes(), told.on_update)
    usual, _, _ = await ask(openai, watcher, [5] * 8)
    first = question(
        f"first-{uuid.uuid4().hex}",
        prompt_token_ids=pack_tokens(BEGINNING),
        sampling_params={"temperature": 0.0, "max_tokens": 2},
        max_tokens=2,
        avoid=(usual,),
        splittable=False,
    )
    reply = await watcher.bus.request(watcher.subjects.place, first, 10.0)
    plan = PLACE_REPLY.validate_json(reply.data)
    assert isinstance(plan, Plan) and plan.alpha_id != usual
    await told.until(plan.alpha_id, CACHED // 64)
    for number in range(4):
        alpha_id, believed, found = await ask(openai, watcher, [*BEGINNING, 200 + number])
        assert (alpha_id, believed) == (plan.alpha_id, CACHED)
        assert CACHED <= found <= len(BEGINNING)

    reset = await watcher.bus.request(
        watcher.subjects.control(plan.alpha_id), ResetPrefixCache(), 10.0
    )
    assert ControlReply.model_validate_json(reset.data).ok
    await told.until(plan.alpha_id, 0, 0)
    _, believed, found = await ask(openai, watcher, [*BEGINNING, 250])
    assert (believed, found) == (0, 0)
