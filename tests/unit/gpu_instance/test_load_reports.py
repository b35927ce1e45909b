"""Load reports: fresh, bounded in rate, and never silent while the instance lives."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

from services.gpu_instance.engine.seam import EngineLoad
from services.gpu_instance.load_reports import KEEPALIVE_S, LoadReporter
from shared.clock import ManualClock
from shared.schemas.telemetry import InstanceLoad


def engine_load(waiting: int = 0, added: int | None = None) -> EngineLoad:
    return EngineLoad(
        num_added=added,
        num_running=0,
        num_waiting=waiting,
        num_decodes=0,
        context_sum=0,
        outstanding_prefill_tokens=0,
        free_blocks=1,
        num_blocks=1,
        max_num_batched_tokens=1,
    )


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def reporting(
    interval_s: float = 0.05,
) -> AsyncIterator[tuple[LoadReporter, ManualClock, list[InstanceLoad]]]:
    clock, sent = ManualClock(), list[InstanceLoad]()
    reporter = LoadReporter("i", clock, interval_s, sent.append)
    running = asyncio.create_task(reporter.run())
    await settle()
    try:
        yield reporter, clock, sent
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_an_idle_instance_reports_several_times_a_second() -> None:
    async with reporting() as (reporter, clock, sent):
        reporter.update(engine_load())
        for _ in range(100):
            await settle()
            clock.advance(0.01)
        assert 4 <= len(sent) <= 6
        assert all(report.report_every_s == KEEPALIVE_S for report in sent)


async def test_the_margin_of_the_engines_batcher_is_told_on_the_bus() -> None:
    async with reporting() as (reporter, _, sent):
        reporter.update(replace(engine_load(), step_margin=0.25))
        await settle()
        assert InstanceLoad.model_validate_json(sent[0].model_dump_json()).step_margin == 0.25


async def test_a_busy_engine_is_reported_at_the_interval_with_its_newest_load() -> None:
    async with reporting() as (reporter, clock, sent):
        for number in range(100):
            reporter.update(engine_load(number))
            await settle()
            clock.advance(0.01)
        assert 18 <= len(sent) <= 22
        assert [report.sequence for report in sent] == list(range(1, len(sent) + 1))
        assert sent[-1].num_waiting >= 94


async def test_who_reports_rarely_says_so() -> None:
    async with reporting(interval_s=2.0) as (reporter, clock, sent):
        reporter.update(engine_load())
        for _ in range(45):
            await settle()
            clock.advance(0.1)
        assert 2 <= len(sent) <= 3
        assert sent[0].report_every_s == 2.0


async def test_a_segment_is_named_in_one_report_alone() -> None:
    async with reporting() as (reporter, clock, sent):
        reporter.admitted("r")
        reporter.update(engine_load())
        for _ in range(10):
            await settle()
            clock.advance(0.1)
        assert [report.admitted_request_ids for report in sent][:2] == [["r"], []]


async def test_a_segment_that_came_while_a_step_ran_is_named_with_the_load_that_counts_it() -> None:
    async with reporting() as (reporter, clock, sent):
        reporter.admitted("before")
        reporter.admitted("while")
        reporter.update(engine_load(added=1))
        await settle()
        assert sent[-1].admitted_request_ids == ["before"]
        clock.advance(KEEPALIVE_S)
        await settle()
        assert sent[-1].admitted_request_ids == []
        clock.advance(KEEPALIVE_S)
        reporter.update(engine_load(waiting=1, added=2))
        await settle()
        clock.advance(KEEPALIVE_S)
        await settle()
        assert [r.admitted_request_ids for r in sent if r.admitted_request_ids][-1] == ["while"]
