"""Composes the steps of the simulated engine: decodes first, then prompts in chunks.

Pure but for its own state: no loop, no timer. ``compose`` says what the next step computes and how
long it takes; ``apply`` moves the requests on and returns what came out.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from services.gpu_instance.batcher import (
    TAIL_TOKENS,
    Batcher,
    PromptSpeed,
    StepLoad,
    StepPlan,
    in_turn,
    prompt_ranks,
)
from services.gpu_instance.engine.seam import Emission
from services.gpu_instance.engine.simulated_prefixes import SimulatedPrefixes
from services.gpu_instance.engine.simulated_request import BlockPool, SimulatedRequest
from services.gpu_instance.engine.simulated_settings import SimulationSettings
from shared.latency_model import LatencyModel, StepShape


@dataclass(slots=True)
class Step:
    """What one step computes: (request, positions) pairs."""

    work: list[tuple[SimulatedRequest, int]]
    plan: StepPlan
    shape: StepShape
    duration_s: float


class StepComposer:
    """Owns the queues and the blocks. Invariant: a request's blocks cover what it has computed."""

    def __init__(self, settings: SimulationSettings, model: LatencyModel, batcher: Batcher) -> None:
        self.settings = settings
        self.model = model
        self.batcher = batcher
        self.pool = BlockPool(settings.num_blocks)
        self.prefixes = SimulatedPrefixes(settings.num_blocks, settings.block_size)
        self.waiting: deque[SimulatedRequest] = deque()
        self.running: list[SimulatedRequest] = []
        self.num_preemptions = 0
        self.num_generated = 0

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.settings.block_size)

    def compose(self, now_s: float) -> Step | None:
        """The next step, or None when nothing can be computed now."""
        decodes, prompts = self._running()
        self._order(prompts, now_s, self.prompt_speed(decodes))
        context = sum(request.computed for request in decodes)
        plan = self.batcher.plan(self._load(decodes, prompts, context, now_s))
        work = [(request, 1) for request in decodes if self._can_grow(request)]
        # A decode that was served may have been preempted for a later one.
        work = [(request, n) for request, n in work if request.phase == "running"]
        num_decodes = len(work)
        chunks, attended = self._chunks(prompts, plan.token_budget - num_decodes, now_s)
        work += chunks
        if not work:
            return None
        tokens = sum(n for _, n in chunks)
        shape = StepShape(num_decodes, context, tokens, attended)
        return Step(work, plan, shape, self.step_s(shape))

    def prompt_speed(self, decodes: list[SimulatedRequest]) -> PromptSpeed:
        """How fast prompts are computed beside these decodes."""
        context = sum(request.computed for request in decodes)
        tbt_s = min((request.slo_tbt_s for request in decodes), default=math.inf)
        return self.batcher.prompt_speed(len(decodes), context, 1e3 * tbt_s)

    def step_s(self, shape: StepShape) -> float:
        return self.settings.slowdown * self.model.step_ms(shape) / 1e3

    def apply(self, step: Step, now_s: float) -> list[Emission]:
        """The step is over: what it produced."""
        emissions = []
        for request, count in step.work:
            if request.phase != "running":
                continue  # cancelled or preempted meanwhile
            request.computed += count
            if not request.is_kept and request.computed >= min(
                request.num_prompt_tokens, request.end
            ):
                request.is_kept = True
                self.prefixes.keep(request)
            emission = self._advance(request, now_s)
            if emission is not None:
                emissions.append(emission)
        return emissions

    def finish(self, request: SimulatedRequest) -> None:
        """Forget the request and free its blocks."""
        self._unqueue(request)
        request.phase = "over"
        self.free_blocks(request)

    def leave(self, request: SimulatedRequest) -> None:
        """Out of the queues, blocks kept: alpha at the cut."""
        self._unqueue(request)
        request.phase = "sending"

    def free_blocks(self, request: SimulatedRequest) -> None:
        self.pool.give_back(request.blocks)
        request.blocks = 0

    def grow_to(self, request: SimulatedRequest, num_tokens: int) -> bool:
        """Blocks for ``num_tokens`` positions in all."""
        missing = self.blocks_for(num_tokens) - request.blocks
        if missing <= 0:
            return True
        if not self.pool.take(missing):
            return False
        request.blocks += missing
        return True

    def _running(self) -> tuple[list[SimulatedRequest], list[SimulatedRequest]]:
        decodes: list[SimulatedRequest] = []
        prompts: list[SimulatedRequest] = []
        for request in self.running:
            (decodes if request.is_decode else prompts).append(request)
        return decodes, prompts

    def _load(
        self,
        decodes: list[SimulatedRequest],
        prompts: list[SimulatedRequest],
        context: int,
        now_s: float,
    ) -> StepLoad:
        slacks = ((r.slo_tbt_s, r.slo_tbt_s - (now_s - r.last_token_s)) for r in decodes)
        slack_s = min((left if left > 0.0 else slo for slo, left in slacks), default=math.inf)
        in_turn = ((r.remaining, r.computed) for r in self._prompts_in_turn(prompts))
        return StepLoad(len(decodes), context, slack_s * 1e3, in_turn)

    def _order(self, prompts: list[SimulatedRequest], now_s: float, speed: PromptSpeed) -> None:
        """Running prompts by deadline; now and then the oldest lost one first."""
        if len(prompts) > 1 and self.batcher.mode == "slo":
            views = (request.prompt_view(request.remaining) for request in prompts)
            ranks = prompt_ranks(views, now_s, speed)
            prompts[:] = in_turn(prompts, ranks, self.batcher.lost_turn)

    def _chunks(
        self, prompts: list[SimulatedRequest], budget: int, now_s: float
    ) -> tuple[list[tuple[SimulatedRequest, int]], float]:
        """Chunks of running prompts, then of waiting ones as long as there is room for them."""
        chunks: list[tuple[SimulatedRequest, int]] = []
        attended = 0.0
        for request in self._prompts_in_turn(prompts):
            if budget <= 0:
                break
            if request.phase != "running" and not self._admit(request, now_s):
                if request.remaining <= TAIL_TOKENS:
                    continue  # it led; those that run hold their blocks
                break
            count = min(request.remaining, budget)
            attended += count * (request.computed + 0.5 * count)
            budget -= count
            chunks.append((request, count))
        return chunks, attended

    def _prompts_in_turn(self, prompts: list[SimulatedRequest]) -> list[SimulatedRequest]:
        """Running ones, then those that wait, but what has hardly anything left goes first."""
        running = [request for request in prompts if request.phase == "running"]
        room = self.settings.max_num_seqs - len(self.running)
        in_turn = running + list(islice(self.waiting, max(room, 0)))
        if self.batcher.static_tokens is None:
            in_turn.sort(key=lambda request: request.remaining > TAIL_TOKENS)
        return in_turn

    def _admit(self, request: SimulatedRequest, now_s: float) -> bool:
        """Take the first waiting request in, with blocks for all it knows; False: no room."""
        if not self.grow_to(request, request.computed + request.remaining):
            return False
        if request.computed == 0:
            request.computed = request.loaded_tokens = self.prefixes.cached_tokens(request)
        self.waiting.remove(request)
        self.running.append(request)
        request.phase = "running"
        if request.queued_s is None:
            request.queued_s = now_s - request.added_s
        return True

    def _can_grow(self, request: SimulatedRequest) -> bool:
        """A block for the next position, at the cost of the youngest other request if need be."""
        while request.phase == "running" and not self.grow_to(request, request.computed + 1):
            if self.running[-1] is request:
                return False  # only held blocks are in the way; they come free by themselves
            self._preempt(self.running[-1])
        return request.phase == "running"

    def _preempt(self, request: SimulatedRequest) -> None:
        self.running.remove(request)
        self.free_blocks(request)
        request.computed = 0
        request.loaded_tokens = 0
        request.num_preemptions += 1
        request.phase = "waiting"
        self.waiting.appendleft(request)
        self.num_preemptions += 1

    def _unqueue(self, request: SimulatedRequest) -> None:
        if request.phase == "running":
            self.running.remove(request)
        elif request.phase == "waiting":
            self.waiting.remove(request)

    def _advance(self, request: SimulatedRequest, now_s: float) -> Emission | None:
        """What the request has to say after its positions were computed; None: nothing yet."""
        tokens = request.tokens
        position = len(tokens)
        made: list[int] = []
        finish: Literal["stop", "length"] | None = None
        if request.computed == position and position < request.limit:
            token = request.next_token(self.settings.vocab_size)
            tokens.append(token)
            made.append(token)
            request.last_token_s = now_s
            self.num_generated += 1
            if token in request.stop_ids:
                finish = "stop"
        if finish is None and len(tokens) >= request.limit:
            finish = "length"
        reached_cut = (
            finish is None and request.segment.role == "alpha" and request.computed == request.end
        )
        if not (made or finish or reached_cut):
            return None
        first, request.reported = not request.reported, True
        return Emission(
            request_id=request.key[0],
            epoch=request.key[1],
            role=request.segment.role,
            position=position,
            token_ids=made,
            finish_reason=finish,
            stop_reason=made[-1] if finish == "stop" else None,
            num_cached_tokens=request.loaded_tokens if first else None,
            queued_s=request.queued_s if first else None,
            num_preemptions=request.num_preemptions,
            reached_cut=reached_cut,
        )
