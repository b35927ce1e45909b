"""Closed-loop streaming load on one server: TTFT, TPOT and throughput at each concurrency."""

from dataclasses import dataclass

from dynaserve.bench.client import ClientSettings, CompletionClient, open_session
from dynaserve.bench.endpoint import SAFE_VOCAB_SIZE, find_endpoint
from dynaserve.bench.figures import milliseconds
from dynaserve.bench.observation import Observation
from dynaserve.bench.overhead import ClientOverhead, OverheadMeter
from dynaserve.bench.replay import closed_loop
from dynaserve.sim.traces import SimRequest
from shared.errors import DynaServeError

WARMUPS = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """The load: lengths of every request, how many users at once, requests at each level."""

    prompt_tokens: int
    output_tokens: int
    concurrencies: tuple[int, ...]
    requests: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """One server at one concurrency. Times in ms, tokens per second of output."""

    concurrency: int
    requests: int
    ttft_mean_ms: float
    ttft_median_ms: float
    ttft_p99_ms: float
    tpot_mean_ms: float
    tpot_median_ms: float
    e2el_mean_ms: float
    output_tokens_s: float
    client: ClientOverhead


async def measure(url: str, shape: Shape, seed: int) -> list[Level]:
    """Every concurrency in turn. Raises DynaServeError when a request fails."""
    endpoint = await find_endpoint(url, None, {})
    settings = ClientSettings(
        urls=(endpoint.url,),
        model=endpoint.model,
        vocab_size=endpoint.vocab_size or SAFE_VOCAB_SIZE,
        run_id=f"overhead-{seed}",
        prompt_seed=seed,
    )
    levels = []
    for users, number in zip(shape.concurrencies, shape.requests, strict=True):
        meter = OverheadMeter()
        async with open_session(settings) as session:
            client = CompletionClient(session, settings, meter)
            await closed_loop(client.send, _requests(f"warm-{users}", WARMUPS, shape), users)
            async with meter.running():
                seen = await closed_loop(
                    client.send, _requests(f"level-{users}", number, shape), users
                )
        levels.append(_level(users, seen, meter))
    return levels


def _requests(name: str, number: int, shape: Shape) -> list[SimRequest]:
    return [
        SimRequest(f"{name}-{n}", 0.0, shape.prompt_tokens, shape.output_tokens, "overhead")
        for n in range(number)
    ]


def _level(users: int, seen: list[Observation], meter: OverheadMeter) -> Level:
    lost = [each for each in seen if each.outcome != "ok"]
    if lost:
        raise DynaServeError(f"{len(lost)} of {len(seen)} requests failed: {lost[0].detail}")
    ttft = milliseconds(each.ttft_s for each in seen)
    tpot = milliseconds(each.tpot_s for each in seen)
    took_s = max(each.done_s for each in seen) - min(each.sent_s for each in seen)
    return Level(
        concurrency=users,
        requests=len(seen),
        ttft_mean_ms=float(ttft.mean()),
        ttft_median_ms=float(_median(ttft.tolist())),
        ttft_p99_ms=sorted(ttft.tolist())[-1 - len(seen) // 100],
        tpot_mean_ms=float(tpot.mean()),
        tpot_median_ms=float(_median(tpot.tolist())),
        e2el_mean_ms=float(milliseconds(each.e2el_s for each in seen).mean()),
        output_tokens_s=sum(each.tokens for each in seen) / took_s,
        client=meter.summary(each.late_s for each in seen),
    )


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[-1 - middle]) / 2
