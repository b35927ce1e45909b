"""A benchmark from settings to results: runs, ramps and comparisons, in turn on one endpoint."""

import asyncio
import contextlib
import secrets
from dataclasses import dataclass, replace
from typing import Protocol

from dynaserve.bench.client import ClientSettings
from dynaserve.bench.drive import Drive, Order
from dynaserve.bench.endpoint import SAFE_VOCAB_SIZE, Endpoint, find_endpoint
from dynaserve.bench.figures import Figures, figures
from dynaserve.bench.fleet import Fleet
from dynaserve.bench.load import Load, Schedule, make_schedule
from dynaserve.bench.observation import Observation
from dynaserve.bench.overhead import ClientOverhead, bottleneck
from dynaserve.bench.pool import PoolControl, connected
from dynaserve.bench.ramp import Ramp, RampStep, capacity_rps, misses_allowed, next_rate
from dynaserve.bench.settings import BenchSettings, check
from dynaserve.bench.slo import Slos
from dynaserve.bench.systems import System
from dynaserve.sim.traces import SimRequest
from shared.errors import DynaServeError

DEFAULT_URL = "http://127.0.0.1:8000"


class Audience(Protocol):
    """Who watches a run; ``dynaserve.bench.progress.Board`` is one."""

    def begins(self, title: str, schedule: Schedule) -> None: ...
    def sent(self, seen: Observation) -> None: ...
    def done(self, seen: Observation, good: bool) -> None: ...
    def ended(self, run: "Run") -> None: ...


@dataclass(frozen=True, slots=True)
class Run:
    """One schedule sent to one system at one rate."""

    system: str
    repeat: int
    rate_rps: float | None
    schedule: Schedule
    figures: Figures
    client: ClientOverhead
    distrust: tuple[str, ...]
    """Reasons why the client may have been the bottleneck."""
    cut_short: bool
    observations: tuple[Observation, ...]


@dataclass(frozen=True, slots=True)
class SystemRun:
    """One repeat of one system: a run, or the steps of a ramp and the capacity they show.

    ``at`` is the run whose figures stand for it: of a ramp, the one at its capacity.
    """

    system: str
    repeat: int
    runs: tuple[Run, ...]
    at: Run
    capacity_rps: float | None = None


@dataclass(frozen=True, slots=True)
class BenchResult:
    settings: BenchSettings
    endpoint: Endpoint
    slos: Slos
    prompt_seed: int
    vocab_size: int
    max_model_len: int | None
    devices: dict[str, int]
    results: tuple[SystemRun, ...]


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything that stays the same from run to run."""

    settings: BenchSettings
    load: Load
    slos: Slos
    client: ClientSettings
    control: PoolControl | None
    audience: Audience

    async def all_systems(self) -> list[SystemRun]:
        """Every system in every repeat; a repeat finishes before the next, so that drift shows.

        Each repeat begins with another system: none always meets the engines as they start.
        """
        systems: tuple[System | None, ...] = self.settings.systems or (None,)
        results = []
        for repeat in range(self.settings.repeats):
            first = repeat % len(systems)
            for system in systems[first:] + systems[:first]:
                if system is not None and self.control is not None:
                    await self.control.use(system, _finite(self.slos.tightest_tbt_s))
                results.append(await self._one_system(system, repeat))
        return results

    async def _one_system(self, system: System | None, repeat: int) -> SystemRun:
        name = system.name if system else self.client.urls[0]
        ramp = self.settings.ramp_plan()
        if ramp is not None:
            return await self._ramp(ramp, name, repeat)
        run = await self._run(name, repeat, 0, self.settings.request_rate)
        return SystemRun(name, repeat, (run,), run)

    async def _ramp(self, ramp: Ramp, name: str, repeat: int) -> SystemRun:
        runs: list[Run] = []
        steps: list[RampStep] = []
        while (rate := next_rate(ramp, steps)) is not None:
            run = await self._run(name, repeat, len(steps), rate, ramp)
            runs.append(run)
            steps.append(_step(rate, run))
        capacity = capacity_rps(ramp, steps)
        at = next((r for r in runs if r.figures["offered_rps"] == capacity), runs[-1])
        return SystemRun(name, repeat, tuple(runs), at, capacity)

    async def _run(
        self, name: str, repeat: int, step: int, rate: float | None, ramp: Ramp | None = None
    ) -> Run:
        load = replace(self.load, seed=self.load.seed + repeat)
        schedule = make_schedule(load, rate, self.settings.until_s)
        measured = sum(self._is_measured(request) for request in schedule.requests)
        if not measured:
            raise DynaServeError("no request is due in the measured time: longer, or more a second")
        self.audience.begins(_title(name, repeat, rate), schedule)
        client = replace(
            self.client,
            run_id=f"bench-{secrets.token_hex(4)}",
            prompt_seed=self.client.prompt_seed + 1000 * repeat + step,
        )
        allowed = misses_allowed(ramp, measured) if ramp else None
        run = await self._measure(name, repeat, rate, schedule, client, allowed)
        self.audience.ended(run)
        await self._settle()
        return run

    async def _measure(
        self,
        name: str,
        repeat: int,
        rate: float | None,
        schedule: Schedule,
        client: ClientSettings,
        allowed_misses: int | None,
    ) -> Run:
        order = Order(
            client,
            schedule.requests,
            self.settings.warmup_s,
            self.settings.max_concurrency,
            self.settings.num_warmups,
        )
        judge = _Judge(self.slos, self.audience, allowed_misses)
        if self.settings.client_processes > 1:
            driven = await Fleet(order, self.settings.client_processes, judge).run()
        else:
            driven = await Drive(order, judge).run()
        slots_bound = self.settings.max_concurrency is not None
        return Run(
            system=name,
            repeat=repeat,
            rate_rps=rate,
            schedule=schedule,
            figures=figures(driven.observations, self.slos, self.settings.duration_s),
            client=driven.overhead,
            distrust=tuple(bottleneck(driven.overhead, self.slos.tightest_tbt_s, slots_bound)),
            cut_short=driven.stopped,
            observations=driven.observations,
        )

    async def _settle(self) -> None:
        """The next run begins on an idle server, prefix cache empty where that can be asked for."""
        if self.control is not None:
            await self.control.wait_until_idle()
            await self.control.reset_prefix_caches()
        await asyncio.sleep(self.settings.settle_s)

    def _is_measured(self, request: SimRequest) -> bool:
        return request.arrival_s >= self.settings.warmup_s


class _Judge:
    """Tells the audience of each answer, and ends the run once too many missed."""

    def __init__(self, slos: Slos, audience: Audience, allowed_misses: int | None) -> None:
        self._slos = slos
        self._audience = audience
        self._left = allowed_misses

    def sent(self, seen: Observation) -> None:
        self._audience.sent(seen)

    def done(self, seen: Observation) -> bool:
        good = self._slos.of(seen.request.traffic_class).is_met(seen)
        self._audience.done(seen, good)
        if self._left is None or good or not seen.measured:
            return False
        self._left -= 1
        return self._left < 0


async def bench(settings: BenchSettings, audience: Audience) -> BenchResult:
    """Run what the settings say. Raises DynaServeError when it cannot start."""
    load = check(settings)
    async with contextlib.AsyncExitStack() as stack:
        control = None
        if settings.nats is not None:
            control = await stack.enter_async_context(connected(settings.nats, settings.pool))
        urls = settings.url or (await control.gateway_urls() if control else (DEFAULT_URL,))
        endpoints = [await find_endpoint(url, settings.model, _headers(settings)) for url in urls]
        endpoint = endpoints[0]
        max_model_len = settings.max_model_len or endpoint.max_model_len
        vocab_size = settings.vocab_size or endpoint.vocab_size or SAFE_VOCAB_SIZE
        seed = settings.prompt_seed if settings.prompt_seed is not None else secrets.randbits(31)
        client = ClientSettings(
            urls=tuple(each.url for each in endpoints),
            model=endpoint.model,
            vocab_size=vocab_size,
            run_id="bench",
            prompt_seed=seed,
            timeout_s=settings.timeout_s,
            slos=settings.slos,
            headers=_headers(settings),
        )
        load = replace(load, max_model_len=max_model_len)
        results = await Bench(
            settings, load, settings.slos, client, control, audience
        ).all_systems()
        return BenchResult(
            settings,
            endpoint,
            settings.slos,
            seed,
            vocab_size,
            max_model_len,
            _devices(settings, control),
            tuple(results),
        )


def _headers(settings: BenchSettings) -> dict[str, str]:
    return {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}


def _devices(settings: BenchSettings, control: PoolControl | None) -> dict[str, int]:
    if settings.device is not None:
        return {settings.device: 1}
    names = [record.device for record in control.instances.values()] if control else []
    return {name: names.count(name) for name in names}


def _step(rate: float, run: Run) -> RampStep:
    return RampStep(
        rate,
        run.figures["offered_rps"],
        run.figures["attainment"],
        run.figures["goodput_rps"],
        run.cut_short,
    )


def _finite(seconds: float) -> float | None:
    return seconds if seconds < float("inf") else None


def _title(name: str, repeat: int, rate: float | None) -> str:
    at = f" at {rate:.3g}/s" if rate is not None else ""
    return f"{name}{at}" + (f", repeat {repeat + 1}" if repeat else "")
