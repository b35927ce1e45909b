"""Switches a running pool from one system to the next over its control subjects."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from pydantic import BaseModel, TypeAdapter

from dynaserve.bench.systems import System
from shared.bus import Bus, Delivery
from shared.bus_nats import NatsBus
from shared.errors import BusTimeout, DynaServeError, NoResponder
from shared.registry import PoolRegistry
from shared.schemas.place import SetPolicy
from shared.schemas.registry import InstanceRecord
from shared.schemas.segment import (
    ControlReply,
    EngineAccounts,
    InspectEngine,
    ReadSteps,
    ResetPrefixCache,
    SetBatcher,
    TimedSteps,
)
from shared.subjects import Subjects

ANSWER_S = 10.0
PATIENCE_S = 60.0
RETRY_S = 0.2
REPLY: TypeAdapter[ControlReply] = TypeAdapter(ControlReply)
ACCOUNTS: TypeAdapter[EngineAccounts] = TypeAdapter(EngineAccounts)


class PoolControl:
    """The pool as its registry shows it, and what can be asked of it between runs."""

    def __init__(self, bus: Bus, pool: str) -> None:
        self._bus = bus
        self._subjects = Subjects(pool)
        self.registry = PoolRegistry(bus, self._subjects)

    @property
    def instances(self) -> dict[str, InstanceRecord]:
        return self.registry.instances

    async def gateway_urls(self) -> tuple[str, ...]:
        """Of every gateway. Raises DynaServeError when none registers in time."""
        await self._until(lambda registry: bool(registry.gateways), "a gateway in the pool")
        return tuple(record.url for record in self.registry.gateways.values())

    async def use(self, system: System, slo_tbt_s: float | None) -> None:
        """Put ``system`` into effect on an idle pool, caches empty; returns when it is."""
        await self._until(
            lambda registry: bool(registry.instances and registry.schedulers),
            "instances and schedulers in the pool",
        )
        await self.wait_until_idle()
        batcher = SetBatcher(mode=system.batcher, slo_tbt_s=slo_tbt_s)
        for instance_id in self.instances:
            reply = await self._ask(instance_id, batcher)
            if not reply.ok:
                raise DynaServeError(f"{instance_id} refused {system.batcher}: {reply.detail}")
        await self._set_policy(system)
        await self.reset_prefix_caches()

    async def _set_policy(self, system: System) -> None:
        """Every scheduler listens, one answer comes back; the registry shows that all did it."""
        options = {"roles": dict(system.roles(list(self.instances)))}
        message = SetPolicy(policy=system.policy, options=options if options["roles"] else {})
        answer = await self._bus.request(self._subjects.all_schedulers, message, ANSWER_S)
        reply = REPLY.validate_json(answer.data)
        if not reply.ok:
            raise DynaServeError(f"the schedulers refused {system.policy}: {reply.detail}")
        await self._until(
            lambda registry: all(
                record.policy == system.policy for record in registry.schedulers.values()
            ),
            f"every scheduler on {system.policy}",
        )

    async def wait_until_idle(self) -> None:
        """No request runs anywhere any more."""
        await self._retry(self._is_idle, "idle instances")

    async def reset_prefix_caches(self) -> None:
        """Forget cached prefixes on every instance; refused while blocks are in use."""
        for instance_id in self.instances:

            async def forgotten(instance_id: str = instance_id) -> bool:
                return (await self._ask(instance_id, ResetPrefixCache())).ok

            await self._retry(forgotten, f"an empty prefix cache on {instance_id}")

    async def accounts(self) -> list[EngineAccounts]:
        """What each instance holds."""
        return [
            ACCOUNTS.validate_json((await self._request(instance_id, InspectEngine())).data)
            for instance_id in self.instances
        ]

    async def take_steps(self) -> list[TimedSteps]:
        """The steps each instance timed since it was asked last."""
        return [
            TimedSteps.model_validate_json((await self._request(instance_id, ReadSteps())).data)
            for instance_id in self.instances
        ]

    async def _is_idle(self) -> bool:
        return all(each.num_requests == 0 for each in await self.accounts())

    async def _ask(self, instance_id: str, message: BaseModel) -> ControlReply:
        return REPLY.validate_json((await self._request(instance_id, message)).data)

    async def _request(self, instance_id: str, message: BaseModel) -> Delivery:
        return await self._bus.request(self._subjects.control(instance_id), message, ANSWER_S)

    async def _until(self, condition: Callable[[PoolRegistry], bool], wanted: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.registry.wait_until(condition)
        except TimeoutError as error:
            raise DynaServeError(f"after {PATIENCE_S:.0f} s there is not {wanted}") from error

    async def _retry(self, check: Callable[[], Awaitable[bool]], wanted: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await _unless_silent(check):
                    await asyncio.sleep(RETRY_S)
        except TimeoutError as error:
            raise DynaServeError(f"after {PATIENCE_S:.0f} s there are not {wanted}") from error


async def _unless_silent(check: Callable[[], Awaitable[bool]]) -> bool:
    """An instance that has just left answers nothing; the next look at the registry shows it."""
    try:
        return await check()
    except (NoResponder, BusTimeout):
        return False


@contextlib.asynccontextmanager
async def connected(nats: str, pool: str) -> AsyncIterator[PoolControl]:
    """A pool's control while the block lasts."""
    bus = await NatsBus.connect(nats, "dynaserve.bench")
    control = PoolControl(bus, pool)
    following = asyncio.create_task(control.registry.run(), name="registry")
    try:
        yield control
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        await bus.close()
