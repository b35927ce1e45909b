"""Questions to the scheduler at an open-loop rate, or as many as it answers."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from shared.bus_nats import NatsBus
from shared.errors import BusError
from shared.schemas.message import pack_tokens
from shared.schemas.place import PLACE_REPLY, Place, Plan
from shared.schemas.request import GenerationRequest, Slo
from shared.subjects import Subjects

ASK_TIMEOUT_S = 2.0


@dataclass
class Answers:
    """What came back. Latency runs from when a question was due, not from when it left."""

    latencies_s: list[float] = field(default_factory=list)
    decisions_s: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    started_s: float = 0.0
    ended_s: float = 0.0

    def summary(self) -> dict[str, object]:
        p50, p90, p99, worst = np.percentile(self.latencies_s, [50, 90, 99, 100]) * 1e3
        decided = np.percentile(self.decisions_s or [0.0], [50, 99]) * 1e3
        return {
            "answers": dict(self.outcomes),
            "answers_per_s": round(len(self.latencies_s) / (self.ended_s - self.started_s), 1),
            "latency_ms": {
                "p50": round(p50, 3),
                "p90": round(p90, 3),
                "p99": round(p99, 3),
                "max": round(worst, 3),
            },
            "decision_ms": {"p50": round(decided[0], 3), "p99": round(decided[1], 3)},
        }


class Asker:
    """A gateway that only asks. Prompts differ in length: log-normal, mean near 600 tokens."""

    def __init__(self, bus: NatsBus, run: str, seed: int, max_tokens: int) -> None:
        self._bus = bus
        self._subjects = Subjects("default")
        self._run = run
        self._random = random.Random(seed)
        self._max_tokens = max_tokens
        self._prompt = pack_tokens(range(4096))
        self.answers = Answers()

    async def at_rate(self, count: int, rate: float) -> Answers:
        """Poisson arrivals, whatever the answers do."""
        self.answers.started_s = due_s = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                due_s += self._random.expovariate(rate)
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                tasks.create_task(self._ask(number, due_s))
        self.answers.ended_s = time.perf_counter()
        return self.answers

    async def at_most(self, count: int, concurrency: int) -> Answers:
        """As fast as they are answered, ``concurrency`` open at once."""
        numbers = iter(range(count))

        async def one_after_the_other() -> None:
            for number in numbers:
                await self._ask(number, time.perf_counter())

        self.answers.started_s = time.perf_counter()
        await asyncio.gather(*(one_after_the_other() for _ in range(concurrency)))
        self.answers.ended_s = time.perf_counter()
        return self.answers

    async def _ask(self, number: int, due_s: float) -> None:
        place = self._question(number)
        try:
            reply = await self._bus.request(self._subjects.place, place, ASK_TIMEOUT_S)
        except BusError as error:
            self.answers.outcomes[type(error).__name__] += 1
            return
        self.answers.latencies_s.append(time.perf_counter() - due_s)
        answer = PLACE_REPLY.validate_json(reply.data)
        if isinstance(answer, Plan):
            self.answers.decisions_s.append(answer.decision_s)
            self.answers.outcomes["whole" if answer.cut is None else "cut"] += 1
        else:
            self.answers.outcomes[answer.code] += 1

    def _question(self, number: int) -> Place:
        length = min(4096, max(16, int(self._random.lognormvariate(6.1, 0.8))))
        now_s = time.time()
        return Place(
            request=GenerationRequest(
                request_id=f"{self._run}-{number}",
                prompt_token_ids=self._prompt[: 4 * length],
                max_tokens=self._max_tokens,
                arrival_time_s=now_s,
                deadline_s=now_s + 60.0,
                slo=Slo(ttft_s=2.0, tbt_s=0.05),
            ),
            epoch=1,
            gateway_id="bench",
            answer_by_s=now_s + ASK_TIMEOUT_S,
        )
