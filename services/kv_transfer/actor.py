"""The KV-transfer coordinator on the bus: the handoff book's inputs come in, its commands go out.

Reading order: ``_on_message`` (an opening or an event), ``_open``, ``_carry_out`` (a command of the
book), ``_watch_deadlines``. KV bytes go between the instances directly; if this process dies, local
deadlines and leases free everything.
"""

import asyncio
import contextlib
from dataclasses import dataclass

from services.kv_transfer import metrics
from services.kv_transfer.book import HandoffBook, Key
from services.kv_transfer.handoff import (
    Abort,
    Close,
    Command,
    InstanceLost,
    Opened,
    Orphan,
    SideEvent,
    Start,
    Tick,
)
from services.kv_transfer.settings import KvTransferSettings
from services.kv_transfer.spans import record_transfer
from shared import tracing
from shared.actor import Actor
from shared.bus import Bus, Delivery
from shared.clock import Clock
from shared.errors import BusError, GeometryMismatch, HandoffError
from shared.pairing import check_geometry, choose_transport
from shared.registry import Heartbeat, PoolRegistry
from shared.schemas.handoff import (
    COORDINATOR,
    CoordinatorMessage,
    HandoffAbort,
    HandoffEvent,
    HandoffOpen,
    HandoffRecord,
    HandoffStart,
    Transport,
)
from shared.schemas.registry import CoordinatorRecord, InstanceRecord, Record
from shared.subjects import Subjects

REGISTRY_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class _Paired:
    """What the book need not know of a handoff."""

    opening: HandoffOpen
    transport: Transport
    block_size: int


class KvTransferActor(Actor):
    """Invariant: every opening ends in one ``HandoffRecord`` from this replica while it lives."""

    def __init__(self, bus: Bus, settings: KvTransferSettings, clock: Clock | None = None) -> None:
        super().__init__("kv_transfer", bus, clock)
        self.settings = settings
        self.id = settings.id
        self.subjects = Subjects(settings.pool)
        self.registry = PoolRegistry(bus, self.subjects, self._on_registry_change)
        self.book = HandoffBook(settings.max_open)
        self._paired: dict[Key, _Paired] = {}
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> None:
        metrics.show_book(self, self.book, self.settings.max_open)
        self.spawn(self.registry.run(), "registry")
        async with asyncio.timeout(REGISTRY_WAIT_S):
            await self.registry.wait_until(lambda _: True)
        self.spawn(self._watch_deadlines(), "deadlines")
        await self.listen(self.subjects.handoff(self.id), COORDINATOR, self._on_message)
        record = CoordinatorRecord(instance_id=self.id, started_s=self.clock.unix_s())
        self._heartbeat = self.spawn(Heartbeat(self.bus, self.subjects, record).run(), "heartbeat")

    async def drain(self) -> None:
        """Leave the registry, so that nothing new comes, and see open handoffs through."""
        self._heartbeat.cancel()
        try:
            async with asyncio.timeout(self.settings.drain_s):
                await self._idle.wait()
        except TimeoutError:
            self.log.warning("%d handoffs are left to their leases", len(self.book))

    # -- inputs -----------------------------------------------------------------------------------

    async def _on_message(self, message: CoordinatorMessage, _delivery: Delivery) -> None:
        if isinstance(message, HandoffEvent):
            await self._carry_out_all(self._tell_book(message))
        elif self._has_both(message):
            await self._open(message)
        else:
            self.spawn_guarded(self._open_when_known(message), f"open {message.handoff_id}")

    def _tell_book(self, event: HandoffEvent) -> list[Command]:
        return self.book.apply(
            SideEvent(
                handoff_id=event.handoff_id,
                epoch=event.epoch,
                side=event.side,
                phase=event.phase,
                now_s=self.clock.unix_s(),
                num_bytes=event.num_bytes,
                transfer_s=event.transfer_s,
                exposed_s=event.exposed_s,
                detail=event.detail,
            )
        )

    def _has_both(self, opening: HandoffOpen) -> bool:
        instances = self.registry.instances
        return opening.alpha_id in instances and opening.beta_id in instances

    async def _open_when_known(self, opening: HandoffOpen) -> None:
        """The scheduler knew both instances: a moment later so will we, or one was just lost."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.registry_patience_s):
                await self.registry.wait_until(lambda _: self._has_both(opening))
        await self._open(opening)

    async def _open(self, opening: HandoffOpen) -> None:
        """Start the handoff, or refuse it at both sides with the reason."""
        try:
            paired = self._pair(opening)
            commands = self._enter(paired)
        except (HandoffError, GeometryMismatch) as error:
            await self._refuse(opening, str(error))
        else:
            await self._carry_out_all(commands)

    def _pair(self, opening: HandoffOpen) -> _Paired:
        instances = self.registry.instances
        alpha, beta = instances.get(opening.alpha_id), instances.get(opening.beta_id)
        if alpha is None or beta is None:
            gone = opening.beta_id if alpha is not None else opening.alpha_id
            raise HandoffError(f"instance {gone} is not in the registry")
        check_geometry(alpha, beta)
        transport = choose_transport(alpha, beta, opening.transport)
        return _Paired(opening, transport, alpha.geometry.block_size)

    def _enter(self, paired: _Paired) -> list[Command]:
        opening = paired.opening
        key = (opening.handoff_id, opening.epoch)
        commands = self.book.apply(
            Opened(
                handoff_id=opening.handoff_id,
                epoch=opening.epoch,
                alpha_id=opening.alpha_id,
                beta_id=opening.beta_id,
                num_tokens=opening.cut,
                deadline_s=opening.deadline_s,
                lease_s=self.settings.lease_s,
                now_s=self.clock.unix_s(),
            )
        )
        if key not in self._paired and self.book.get(*key) is not None:
            self._paired[key] = paired
            self._idle.clear()
            metrics.open_now.add(1)
        return commands

    async def _refuse(self, opening: HandoffOpen, reason: str) -> None:
        self.log.error("handoff %s refused: %s", opening.handoff_id, reason)
        for instance_id in (opening.alpha_id, opening.beta_id):
            await self._abort(instance_id, opening.handoff_id, opening.epoch, reason)
        transport = opening.transport or "tcp"
        metrics.refused(transport)
        record = HandoffRecord(
            handoff_id=opening.handoff_id,
            request_id=opening.request_id,
            epoch=opening.epoch,
            alpha_id=opening.alpha_id,
            beta_id=opening.beta_id,
            outcome="failed",
            transport=transport,
            num_bytes=0,
            transfer_s=0.0,
            exposed_s=0.0,
            total_s=0.0,
            detail=reason,
        )
        await self.bus.publish(self.subjects.handoff_events, record)

    def _on_registry_change(self, old: Record | None, new: Record | None) -> None:
        """An instance whose record is gone holds nothing any more."""
        if isinstance(old, InstanceRecord) and new is None:
            lost = self.book.apply(InstanceLost(old.instance_id, self.clock.unix_s()))
            if lost:
                self.spawn_guarded(self._carry_out_all(lost), f"loss of {old.instance_id}")

    async def _watch_deadlines(self) -> None:
        """Tick the book when the next deadline or lease is due; nothing else wakes this."""
        while True:
            due_s = self.book.next_deadline()
            wait_s = None if due_s is None else max(0.0, due_s - self.clock.unix_s())
            self._changed.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                await self._carry_out_all(self.book.apply(Tick(self.clock.unix_s())))

    # -- commands ---------------------------------------------------------------------------------

    async def _carry_out_all(self, commands: list[Command]) -> None:
        """Bus trouble with one command must not keep the others from being carried out."""
        self._changed.set()
        for command in commands:
            try:
                await self._carry_out(command)
            except BusError as error:
                self.log.warning("%s was not told: %s", type(command).__name__, error)

    async def _carry_out(self, command: Command) -> None:
        match command:
            case Start():
                await self._start(command)
            case Abort():
                await self._abort(
                    command.instance_id, command.handoff_id, command.epoch, command.reason
                )
            case Orphan():
                self._report_orphan(command)
            case Close():
                await self._close(command)

    async def _start(self, command: Start) -> None:
        paired = self._paired.get((command.handoff_id, command.epoch))
        peer = self.registry.instances.get(command.peer_id)
        if paired is None or peer is None:
            return  # over already, or the peer's loss is on the way and calls it off
        start = HandoffStart(
            handoff_id=command.handoff_id,
            request_id=paired.opening.request_id,
            epoch=command.epoch,
            side=command.side,
            peer_id=command.peer_id,
            peer_addresses=peer.kv_addresses,
            transport=paired.transport,
            deadline_s=command.deadline_s,
            lease_s=command.lease_s,
        )
        await self.bus.publish(self.subjects.control(command.instance_id), start)

    async def _abort(self, instance_id: str, handoff_id: str, epoch: int, reason: str) -> None:
        abort = HandoffAbort(handoff_id=handoff_id, epoch=epoch, reason=reason)
        await self.bus.publish(self.subjects.control(instance_id), abort)

    def _report_orphan(self, orphan: Orphan) -> None:
        paired = self._paired[orphan.handoff_id, orphan.epoch]
        self.log.error(
            "%s never freed its blocks of handoff %s", orphan.instance_id, orphan.handoff_id
        )
        metrics.orphaned(orphan.side, _num_blocks(paired))

    async def _close(self, close: Close) -> None:
        paired = self._paired.pop((close.handoff_id, close.epoch))
        if not self._paired:
            self._idle.set()
        metrics.closed(close, paired.transport)
        if tracing.is_on():
            record_transfer(close, paired.opening.traceparent, paired.transport)
        record = HandoffRecord(
            handoff_id=close.handoff_id,
            request_id=paired.opening.request_id,
            epoch=close.epoch,
            alpha_id=close.alpha_id,
            beta_id=close.beta_id,
            outcome=close.outcome,
            transport=paired.transport,
            num_bytes=close.num_bytes,
            transfer_s=close.transfer_s,
            exposed_s=close.exposed_s,
            total_s=close.total_s,
            kv_blocks_orphaned=len(close.orphans) * _num_blocks(paired),
            detail=close.reason,
            opened_at_s=close.opened_at_s,
            streaming_at_s=close.streaming_at_s,
            ready_at_s=close.ready_at_s,
            released_at_s=close.released_at_s,
        )
        await self.bus.publish(self.subjects.handoff_events, record)


def _num_blocks(paired: _Paired) -> int:
    return -(-paired.opening.cut // paired.block_size)
