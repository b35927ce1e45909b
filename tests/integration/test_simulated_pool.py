"""Scheduler, coordinator and two simulated instances as processes on a real server."""

import asyncio
import contextlib
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator

from services.gpu_instance.engine.simulated_request import reference_tokens
from shared.bus import Delivery
from shared.bus_nats import NatsBus
from shared.registry import PoolRegistry
from shared.schemas.handoff import HandoffRecord
from shared.schemas.place import PLACE_REPLY, Place, PlaceRefused, Plan
from shared.schemas.segment import EngineAccounts, InspectEngine, Segment, SegmentCancel
from shared.schemas.tokens import GATEWAY, SegmentFailed, SegmentTiming, TokenFrame
from shared.subjects import Subjects
from tests.unit.global_sched.pool_stage import question

PROMPT, MAX_TOKENS = 100, 20
SIMULATED = ("services.gpu_instance", "sim", "--engine", "simulated", "--speedup", "50")
SERVICES = {
    "s": ("services.global_sched", "--policy", "colocated"),
    "k": ("services.kv_transfer",),
    "a": SIMULATED,
    "b": SIMULATED,
}


class Gateway:
    """Collects tokens by request and position, and what was said of segments and handoffs."""

    def __init__(self) -> None:
        self.tokens: dict[str, dict[int, int]] = {}
        self.ended: dict[str, int] = {}
        self.failures: list[SegmentFailed] = []
        self.handoffs: list[HandoffRecord] = []
        self.changed = asyncio.Condition()

    async def on_message(self, delivery: Delivery) -> None:
        message = GATEWAY.validate_json(delivery.data)
        async with self.changed:
            match message:
                case TokenFrame():
                    for delta in message.deltas:
                        got = self.tokens.setdefault(delta.request_id, {})
                        new = dict(enumerate(delta.token_ids, delta.position))
                        assert not got.keys() & new.keys()
                        got.update(new)
                case SegmentTiming():
                    self.ended[message.request_id] = self.ended.get(message.request_id, 0) + 1
                case SegmentFailed():
                    self.failures.append(message)
            self.changed.notify_all()

    async def on_handoff(self, delivery: Delivery) -> None:
        async with self.changed:
            self.handoffs.append(HandoffRecord.model_validate_json(delivery.data))
            self.changed.notify_all()


@contextlib.asynccontextmanager
async def processes(url: str, pool: str) -> AsyncIterator[dict[str, Process]]:
    started: dict[str, Process] = {}
    try:
        for name, command in SERVICES.items():
            started[name] = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *command),
                *("--nats", url, "--pool", pool, "--id", name),
            )
        yield started
    finally:
        for process in started.values():
            if process.returncode is None:
                process.kill()
            await process.wait()


async def ask(bus: NatsBus, subjects: Subjects, place: Place) -> Plan | PlaceRefused:
    return PLACE_REPLY.validate_json((await bus.request(subjects.place, place, 5.0)).data)


async def test_requests_cut_anywhere_give_the_tokens_of_uncut_ones_and_leave_nothing_behind(
    nats_url: str, pool: str
) -> None:
    subjects, gateway = Subjects(pool), Gateway()
    bus = await NatsBus.connect(nats_url, "test")
    registry = PoolRegistry(bus, subjects)
    watch = asyncio.create_task(registry.run())
    await bus.subscribe(subjects.gateway("g"), gateway.on_message)
    await bus.subscribe(subjects.handoff_events, gateway.on_handoff)
    async with processes(nats_url, pool) as started:
        await asyncio.wait_for(
            registry.wait_until(
                lambda r: len(r.instances) == 2 and bool(r.coordinators) and bool(r.schedulers)
            ),
            30,
        )
        cuts = [1, 16, 99, 100, 101, 110, PROMPT + MAX_TOKENS - 2]
        places = [question("whole", prompt=PROMPT, max_tokens=MAX_TOKENS)]
        places += [question(f"cut{c}", prompt=PROMPT, max_tokens=MAX_TOKENS, cut=c) for c in cuts]
        for place in places:
            plan = await ask(bus, subjects, place)
            assert isinstance(plan, Plan) and plan.cut == place.forced_cut
        async with asyncio.timeout(20), gateway.changed:
            await gateway.changed.wait_for(
                lambda: (
                    len(gateway.handoffs) == len(cuts)
                    and sum(gateway.ended.values()) == 1 + 2 * len(cuts)
                )
            )
        whole = Segment(role="whole", epoch=1, gateway_id="g", request=places[0].request)
        expected = dict(enumerate(reference_tokens(whole, 32_000), PROMPT))
        for place in places:
            assert gateway.tokens[place.request.request_id] == expected
        assert not gateway.failures
        assert {record.outcome for record in gateway.handoffs} == {"adopted"}
        assert sum(record.kv_blocks_orphaned for record in gateway.handoffs) == 0

        refused = await ask(bus, subjects, question("far", cut=119))
        assert isinstance(refused, PlaceRefused) and refused.code == "invalid"

        long = question("long", prompt=PROMPT, max_tokens=5000, cut=3000)
        assert isinstance(await ask(bus, subjects, long), Plan)
        await bus.publish(subjects.all_instances, SegmentCancel(request_id="long", epoch=1))
        async with asyncio.timeout(10), gateway.changed:
            await gateway.changed.wait_for(
                lambda: "long" in {record.request_id for record in gateway.handoffs}
            )
        for name in ("a", "b"):
            reply = await bus.request(subjects.control(name), InspectEngine(), 5.0)
            accounts = EngineAccounts.model_validate_json(reply.data)
            assert accounts.free_blocks == accounts.num_blocks
            assert (accounts.num_requests, accounts.open_handoffs) == (0, 0)
            assert accounts.kv_blocks_orphaned == 0

        for process in started.values():
            process.send_signal(signal.SIGTERM)
        codes = await asyncio.wait_for(
            asyncio.gather(*(process.wait() for process in started.values())), 20
        )
        assert codes == [0, 0, 0, 0]
        await asyncio.wait_for(
            registry.wait_until(lambda r: not r.instances and not r.coordinators), 5
        )
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    await bus.close()
