"""vLLM's scheduler with the SLO batcher in front: how large each step is, and who goes first.

A mixin over both of vLLM's schedulers (``scheduler_cls``). Before a step it counts what runs, asks
the batcher for the budget and orders the queues; after it, the measured time goes back to the
batcher. It also lets the KV connector hear its workers before a step's outputs are processed, and
brings the grammar of a request that started elsewhere up to date.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from services.gpu_instance.batcher import (
    LOST,
    Batcher,
    BatcherSettings,
    PromptSpeed,
    PromptView,
    Rank,
    StepLoad,
    StepPlan,
    in_turn,
    prompt_ranks,
)
from services.gpu_instance.engine.prefix_events import PrefixEvents
from services.gpu_instance.engine.seam import EngineLoad
from services.gpu_instance.engine.tails import computed, is_tail, room_for_tails, to_compute
from services.gpu_instance.prefix_chunks import PrefixChanges
from services.gpu_instance.prompt_tally import PromptTally
from shared.latency_model import LatencyProfile, StepShape
from shared.online_latency_model import PROFILED, UNPROFILED
from shared.schemas.registry import LatencyCoefficients
from shared.schemas.request import Slo
from shared.schemas.segment import TimedStep

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.outputs import ModelRunnerOutput

RANK_INTERVAL_S = 0.02
"""Waiting prompts are put in order this often at most."""
MAX_TIMED_STEPS = 8192
MOST_INITIAL_MARGIN = 0.25
"""What the profile's own errors ask for at first; from then on measured steps say it."""
NO_SLO = Slo(ttft_s=60.0, tbt_s=60.0)


@dataclass(slots=True)
class Pace:
    """A request's objectives, and when its last token left (minus infinity before the first)."""

    arrival_s: float
    deadline_s: float
    tbt_s: float
    last_token_s: float


@dataclass(slots=True)
class StepInFlight:
    """A scheduled step whose result is not there yet."""

    output: SchedulerOutput
    plan: StepPlan
    shape: StepShape
    scheduled_s: float


# The mixin's place in the class order is in front of either scheduler.
if TYPE_CHECKING:
    _Base: TypeAlias = Scheduler
else:
    _Base = object


class SloBatching(_Base):
    """Invariant: the budget never exceeds what vLLM's buffers are made for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.configured_tokens: int = self.scheduler_config.max_num_batched_tokens
        extra = self.vllm_config.additional_config
        profile = LatencyProfile.load(Path(extra["dynaserve_latency_profile"]))
        self.batcher = Batcher(
            profile.model,
            BatcherSettings(
                max_num_batched_tokens=self.configured_tokens,
                graph_tokens=_graph_tokens(self.vllm_config),
            ),
            mode=extra["dynaserve_batcher"],
            initial_margin=min(profile.error.p99, MOST_INITIAL_MARGIN),
            trust=PROFILED if extra["dynaserve_profiled"] else UNPROFILED,
        )
        self.prefix_events = PrefixEvents.follow_cache_of(self)
        self.slo_tbt_s: float | None = None
        self.paces: dict[str, Pace] = {}
        self._in_flight: deque[StepInFlight] = deque()
        self._tails: dict[str, tuple[int, int]] = {}
        self._last_done_s = 0.0
        self._ranked_s = 0.0
        self._grammars_seen: set[str] = set()
        self.num_steps = 0
        self._timed_steps: deque[tuple[StepShape, float, float, float, float]] = deque(
            maxlen=MAX_TIMED_STEPS
        )
        """What was computed; measured, seen, predicted and limit in seconds."""
        self.num_preempted = 0
        self.num_generated = 0
        self.last_step_s = 0.0
        self.last_predicted_s = 0.0
        self.last_budget = self.configured_tokens

    # -- a step --------------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        now_s = time.monotonic()
        waited_s = max(0.0, time.time() - request.arrival_time)
        slo: Slo = getattr(request, "slo", NO_SLO)
        arrival_s = now_s - waited_s
        self.paces[request.request_id] = Pace(
            arrival_s, arrival_s + slo.ttft_s, slo.tbt_s, last_token_s=-math.inf
        )
        super().add_request(request)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        self._hear_arrivals()
        now_s = time.monotonic()
        load = self._survey(now_s)
        plan = self.batcher.plan(load)
        self.last_budget = max(1, min(plan.token_budget, self.configured_tokens))
        self.max_num_scheduled_tokens = self.last_budget
        with self._room_for_tails(load.num_decodes):
            output: SchedulerOutput = super().schedule(throttle_prefills)
        if output.total_num_scheduled_tokens:
            shape = self._shape(output, load)
            self._in_flight.append(StepInFlight(output, plan, shape, time.monotonic()))
        return output

    def _hear_arrivals(self) -> None:
        """KV that came since the last step makes its requests ready for this one."""
        arrived = self.connector.hear_arrivals() if self.connector is not None else None
        if arrived is not None:
            self.connector.hear_workers(arrived)
            self._update_from_kv_xfer_finished(arrived)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        now_s = time.monotonic()
        self._measure(scheduler_output, now_s)
        transfers = model_runner_output.kv_connector_output
        if transfers is not None:
            self.connector.hear_workers(transfers)
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(
            scheduler_output, model_runner_output
        )
        self._note_tokens(outputs, now_s)
        return outputs

    def get_grammar_bitmask(self, scheduler_output: SchedulerOutput) -> GrammarOutput | None:
        self._catch_up_grammars(scheduler_output)
        return super().get_grammar_bitmask(scheduler_output)

    # -- before a step -------------------------------------------------------------------------

    def _survey(self, now_s: float) -> StepLoad:
        """What runs and how tight it is, the queues put in order: one pass over what runs."""
        prompts: list[Request] = []
        context = 0
        due_s = tightest_s = math.inf
        paces, uniform_s = self.paces, self.slo_tbt_s
        for request in self.running:
            if request.is_prefill_chunk:
                prompts.append(request)
                continue
            context += request.num_computed_tokens
            pace = paces[request.request_id]
            tbt_s = uniform_s or pace.tbt_s
            if tbt_s < tightest_s:
                tightest_s = tbt_s
            next_s = pace.last_token_s + tbt_s
            if next_s <= now_s:  # late already, or its first token is still to come
                next_s = now_s + tbt_s
            if next_s < due_s:
                due_s = next_s
        num_decodes = len(self.running) - len(prompts)
        self._tails = {}
        if self.batcher.static_tokens is None:
            speed = self.batcher.prompt_speed(num_decodes, context, 1e3 * tightest_s)
            prompts = self._order(prompts, now_s, speed)
            self._tails = self._waiting_tails()
        return StepLoad(num_decodes, context, (due_s - now_s) * 1e3, self._prompts(prompts))

    def _prompts(self, running: list[Request]) -> Iterator[tuple[int, int]]:
        """(tokens to compute, tokens computed) in the order of service; read as far as needed.

        ``running``: the prompts that run, in their order."""
        yield from self._tails.values()
        for request in running:
            yield request.num_tokens - request.num_computed_tokens, request.num_computed_tokens
        for request in chain(self.kv_holding_waiting, self.waiting):
            if request.request_id not in self._tails and self._is_due(request):
                yield to_compute(request), computed(request)

    def _waiting_tails(self) -> dict[str, tuple[int, int]]:
        """Those that need hardly any step time, by request id: above all betas whose KV is there,
        or could be asked for. The queue of those without KV is in order: they stand in front."""
        held = (request for request in self.kv_holding_waiting if self._is_due(request))
        tails = chain(filter(is_tail, held), takewhile(is_tail, self.waiting))
        return {request.request_id: (to_compute(request), computed(request)) for request in tails}

    def _room_for_tails(self, num_decodes: int) -> AbstractContextManager[None]:
        chunks = sum(r.is_prefill_chunk for r in self.running) if self._tails else 0
        wanted = sum(tokens for tokens, _ in self._tails.values())
        left = self.last_budget - num_decodes
        return room_for_tails(self.scheduler_config, left, wanted, chunks)

    def _is_due(self, request: Request) -> bool:
        """False while its KV is on the way: vLLM changes the status only when it looks next."""
        on_the_way = request.status == RequestStatus.WAITING_FOR_REMOTE_KVS
        return not on_the_way or request.request_id in self.finished_recving_kv_req_ids

    def _order(self, prompts: list[Request], now_s: float, speed: PromptSpeed) -> list[Request]:
        """Decodes first; prompts by deadline, those that have lost theirs behind.

        ``prompts``: those among the running, returned in their new order; without any the decodes
        stand as they should. In a turn of the lost ones the first that waits leads only if none of
        those runs: vLLM serves what runs first, and one of them is enough.
        """
        lost_turn = self.batcher.lost_turn
        if prompts:
            ranks = self._ranks(prompts, now_s, speed)
            prompts = in_turn(prompts, ranks, lost_turn)
            if self.running[-len(prompts) :] != prompts:
                decodes = [request for request in self.running if not request.is_prefill_chunk]
                self.running[:] = decodes + prompts
            lost_turn = lost_turn and max(ranks)[0] != LOST
        first_come = isinstance(self.waiting, FCFSRequestQueue)  # else: by the user's priority
        due = lost_turn or now_s - self._ranked_s > RANK_INTERVAL_S
        if first_come and len(self.waiting) > 1 and due:
            self._ranked_s = -math.inf if lost_turn else now_s  # it leads this step, not the next
            waiting = list(self.waiting)
            ranked = in_turn(waiting, self._ranks(waiting, now_s, speed), lost_turn)
            if ranked != waiting:
                self.waiting.clear()
                self.waiting.extend(ranked)
        return prompts

    def _ranks(self, requests: list[Request], now_s: float, speed: PromptSpeed) -> list[Rank]:
        paces = [self.paces[request.request_id] for request in requests]
        views = [
            (pace.arrival_s, pace.deadline_s, request.num_tokens - computed(request))
            for request, pace in zip(requests, paces, strict=True)
        ]
        return prompt_ranks(views, now_s, speed)

    def _prompt_view(self, request: Request) -> PromptView:
        pace = self.paces[request.request_id]
        remaining = max(request.num_tokens - computed(request), 0)
        return PromptView(pace.arrival_s, pace.deadline_s, remaining)

    # -- after a step --------------------------------------------------------------------------

    def _shape(self, output: SchedulerOutput, load: StepLoad) -> StepShape:
        """What the step computes; ``load`` is what it was planned from."""
        requests, scheduled = self.requests, output.num_scheduled_tokens
        chunks = []
        more = output.total_num_scheduled_tokens - len(scheduled)
        for pair in reversed(scheduled.items()):  # prompts come last
            if more <= 0:
                break
            if pair[1] != 1:
                chunks.append(pair)
                more -= pair[1] - 1
        num_decodes, context = load.num_decodes, load.decode_context_tokens
        if len(scheduled) - len(chunks) != num_decodes:  # one sits out, or a prompt's last token
            chunks = [pair for pair in scheduled.items() if not self._is_decode(*pair)]
            num_decodes = len(scheduled) - len(chunks)
            computed = sum(requests[request_id].num_computed_tokens for request_id in scheduled)
            context = (
                computed
                - num_decodes
                - sum(requests[request_id].num_computed_tokens for request_id, _ in chunks)
            )
        prefill_context = 0.0
        for request_id, num_tokens in chunks:
            start = requests[request_id].num_computed_tokens - num_tokens
            prefill_context += num_tokens * (start + 0.5 * num_tokens)
        prefill = sum(num_tokens for _, num_tokens in chunks)
        return StepShape(num_decodes, context, prefill, prefill_context)

    def _is_decode(self, request_id: str, num_tokens: int) -> bool:
        return num_tokens == 1 and self.requests[request_id].num_computed_tokens > 1

    def _measure(self, output: SchedulerOutput, now_s: float) -> None:
        """Time of a step: steps that overlap (async scheduling) begin when the last one ended."""
        if not self._in_flight or self._in_flight[0].output is not output:
            return
        step = self._in_flight.popleft()
        seen_s = now_s - max(step.scheduled_s, self._last_done_s)
        device_s = None
        if self.connector is not None:
            device_s = self.connector.take_step_s(step.scheduled_s < self._last_done_s)
        self.last_step_s = seen_s if device_s is None else device_s
        self.last_predicted_s = self.batcher.online.step_ms(step.shape) / 1e3
        coming = self._in_flight[0].output.total_num_scheduled_tokens if self._in_flight else 0
        self.batcher.observe(step.plan, step.shape, self.last_step_s * 1e3, seen_s * 1e3, coming)
        self._last_done_s = now_s
        self.num_steps += 1
        self._timed_steps.append(
            (
                step.shape,
                self.last_step_s,
                seen_s,
                self.last_predicted_s,
                1e-3 * step.plan.limit_ms,
            )
        )

    def _note_tokens(self, outputs: dict[int, EngineCoreOutputs], now_s: float) -> None:
        paces, generated = self.paces, 0
        for batch in outputs.values():
            for output in batch.outputs:
                generated += len(output.new_token_ids)
                pace = paces.get(output.request_id)
                if pace is not None:
                    pace.last_token_s = now_s
        self.num_generated += generated

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        self.paces.pop(request.request_id, None)
        self._grammars_seen.discard(request.request_id)
        self.num_preempted += request.num_preemptions
        return super()._free_request(request, delay_free_blocks)

    def _catch_up_grammars(self, output: SchedulerOutput) -> None:
        """A request that started elsewhere: its grammar accepts the tokens made there, once."""
        for request_id in output.num_scheduled_tokens:
            request = self.requests.get(request_id)  # asynchronous: it may have ended meanwhile
            structured = request.structured_output_request if request is not None else None
            if request is None or structured is None or request_id in self._grammars_seen:
                continue
            self._grammars_seen.add(request_id)
            prior = list(request.output_token_ids)
            if prior and structured.grammar is not None:
                structured.grammar.accept_tokens(request_id, prior)

    # -- for the engine ------------------------------------------------------------------------

    def load(self) -> EngineLoad:
        """A snapshot of the load; O(running + waiting)."""
        decodes = [request for request in self.running if not request.is_prefill_chunk]
        context = sum(request.num_computed_tokens for request in decodes)
        speed = self.batcher.prompt_speed(len(decodes), context, 1e3 * self._tightest_s(decodes))
        prompts = PromptTally(time.monotonic(), speed)
        chunks = (request for request in self.running if request.is_prefill_chunk)
        for request in chain(chunks, self.waiting, self.kv_holding_waiting):
            prompts.add(
                self._prompt_view(request),
                request.num_tokens,
                waits_for_kv=not self._is_due(request)
                or computed(request) > request.num_computed_tokens,
                will_decode=request.max_tokens > 1,  # an alpha that ends with its prompt does not
            )
        pool = self.kv_cache_manager.block_pool
        slo_s = self.slo_tbt_s or min((p.tbt_s for p in self.paces.values()), default=0.0)
        return EngineLoad(
            num_running=len(self.running),
            num_waiting=len(self.waiting),
            num_waiting_for_kv=len(self.kv_holding_waiting),
            num_decodes=len(decodes),
            context_sum=context,
            outstanding_prefill_tokens=prompts.outstanding,
            late_prefill_tokens=prompts.late,
            inbound_prefill_tokens=prompts.inbound,
            num_pending_decodes=prompts.num_pending,
            pending_decode_context_tokens=prompts.pending_context,
            free_blocks=pool.get_num_free_blocks(),
            num_blocks=pool.num_gpu_blocks,
            max_num_batched_tokens=self.configured_tokens,
            batcher_mode=self.batcher.mode,
            step_margin=self.batcher.margin,
            budget_tokens=self.last_budget,
            step_s=self.last_step_s,
            predicted_step_s=self.last_predicted_s,
            slo_headroom=1.0 - self.last_step_s / slo_s if slo_s else 1.0,
            num_steps=self.num_steps,
            num_generated_tokens=self.num_generated,
            num_preemptions=self.num_preempted,
            latency=LatencyCoefficients.of(self.batcher.model),
        )

    def _tightest_s(self, decodes: list[Request]) -> float:
        paces = (self.paces[request.request_id].tbt_s for request in decodes)
        return self.slo_tbt_s or min(paces, default=math.inf)

    def take_prefix_changes(self) -> PrefixChanges | None:
        """What entered and left the prefix cache; also what no step has published yet."""
        self.prefix_events.follow(self.kv_cache_manager.take_events())
        return self.prefix_events.chunks.take()

    def take_timed_steps(self) -> list[TimedStep]:
        """What ran lately and how long it took; forgotten here."""
        taken = [
            TimedStep(
                **shape._asdict(),
                step_s=step_s,
                seen_s=seen_s,
                predicted_s=predicted_s,
                limit_s=limit_s if math.isfinite(limit_s) else None,
            )
            for shape, step_s, seen_s, predicted_s, limit_s in self._timed_steps
        ]
        self._timed_steps.clear()
        return taken

    def num_orphaned_blocks(self) -> int:
        """Blocks in use that belong to no request known here; 0 unless there is a leak."""
        pool = self.kv_cache_manager.block_pool
        owned: set[int] = set()
        for request_id in self.requests:
            owned.update(self.kv_cache_manager.get_block_ids(request_id)[0])
        in_use = {block.block_id for block in pool.blocks if block.ref_cnt > 0}
        return len(in_use - owned - {pool.null_block.block_id})


def _graph_tokens(config: VllmConfig) -> int:
    """Tokens of the largest step with prompts that vLLM captured as CUDA graphs; 0 without."""
    compilation = config.compilation_config
    mode = compilation.cudagraph_mode
    if config.model_config.enforce_eager or mode is None or not mode.mixed_mode():
        return 0
    return int(compilation.max_cudagraph_capture_size or 0)


class SloScheduler(SloBatching, Scheduler):
    """For synchronous scheduling."""


class SloAsyncScheduler(SloBatching, AsyncScheduler):
    """For asynchronous scheduling (a step is scheduled while the last one still runs)."""
