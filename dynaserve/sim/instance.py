"""One simulated engine: a queue of prompts, a set of decodes, one step at a time.

Decodes are kept as aggregates (count and context sum); each knows the index of the step in which
it ends. A step therefore costs the same whether 1 or 500 requests decode, and the gaps between
a request's tokens are a slice of the instance's step durations.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from services.gpu_instance.batcher import (
    TAIL_TOKENS,
    Batcher,
    PromptSpeed,
    StepLoad,
    StepPlan,
    misses,
)
from shared.latency_model import LatencyModel, StepShape

if TYPE_CHECKING:
    from dynaserve.sim.record import RequestRecord


class Segment:
    """A micro-request on one instance: prompt tokens to compute, then decode steps to run."""

    __slots__ = (
        "cancelled",
        "context",
        "deadline_s",
        "decode_steps",
        "emits_first",
        "finish_step",
        "join_context",
        "join_step",
        "last_token_s",
        "lost",
        "record",
        "remaining",
        "role",
        "started",
    )

    def __init__(
        self,
        record: RequestRecord,
        role: str,
        remaining: int,
        context: int,
        decode_steps: int,
        emits_first: bool,
        deadline_s: float,
    ) -> None:
        self.record = record
        self.role = role
        self.remaining = remaining
        self.context = context
        self.decode_steps = decode_steps
        self.emits_first = emits_first
        self.deadline_s = deadline_s
        self.last_token_s = -1.0
        self.started = False
        self.cancelled = False
        self.lost = False
        self.finish_step = 0
        self.join_step = 0
        self.join_context = 0


Chunk = tuple[Segment, int]
"""A part of a prompt, and how many tokens of it a step computes."""


class StepResult:
    """What a finished step brought about."""

    __slots__ = ("chunks", "finished", "prefilled")

    def __init__(
        self, chunks: Sequence[Chunk], prefilled: Sequence[Segment], finished: Sequence[Segment]
    ) -> None:
        self.chunks, self.prefilled, self.finished = chunks, prefilled, finished


ONE_MORE_TOKEN = StepResult((), (), ())
"""Of a step with decodes alone, none of which ended."""


def nobody_cares(_segment: Segment) -> None:
    """Of a prompt whose deadline is lost."""


def _arrival_s(segment: Segment) -> float:
    return segment.record.arrival_s


class SimInstance:
    """Invariant: ``0 <= kv_used <= kv_capacity``; ``num_decodes`` and ``context_sum`` match
    ``running``."""

    def __init__(
        self,
        instance_id: str,
        truth: LatencyModel,
        batcher: Batcher,
        *,
        slo_tbt_s: float,
        kv_capacity: int,
        max_num_seqs: int,
        role: str = "any",
    ) -> None:
        self.instance_id = instance_id
        self.role = role
        self.truth = truth
        self.launch_ms = 0.0
        """The least time of a step with prompts."""
        self.batcher = batcher
        self.slo_ms = 1e3 * slo_tbt_s
        self.kv_capacity = kv_capacity
        self.max_num_seqs = max_num_seqs
        self.fifo = batcher.mode != "slo"
        self.alive = True
        self.busy = False
        # prompts
        self._ordered: list[tuple[tuple[bool, float], int, Segment]] = []
        self._lost: list[Segment] = []
        """Oldest first."""
        self._cancelled: list[Segment] = []
        self._sequence = 0
        # decodes
        self.running: dict[Segment, None] = {}
        self._ends: dict[int, list[Segment]] = {}
        self._joined_slack_ms = math.inf
        self.num_decodes = 0
        self.context_sum = 0
        self.kv_used = 0
        # the step in progress
        self._chunks: list[Chunk] = []
        self._plan: StepPlan | None = None
        self._shape = (0, 0, 0, 0.0)
        """As `StepShape`."""
        # history, one entry per step
        self.step_index = 0
        self.durations_ms: list[float] = []
        self.end_times_s: list[float] = []
        self.decode_counts: list[int] = []
        self.slow_steps: list[int] = [0]
        """Running count of steps over the TBT SLO; entry i counts the first i steps."""
        self.busy_ms = 0.0
        # views of the scheduler
        self.outstanding_tokens = 0
        self._inbound: dict[Segment, None] = {}
        self.inbound_tokens = 0
        """Of parts of prompts whose KV has not come yet."""
        self.lost_tokens = 0
        """Part of the outstanding tokens that belongs to prompts which yield to all others."""
        self.pending: dict[RequestRecord, int] = {}
        """Requests that will decode here and can still be in time, with their prompt tokens."""
        self.pending_context = 0
        self.on_lost: Callable[[Segment], None] = nobody_cares

    @property
    def kv_free(self) -> int:
        return self.kv_capacity - self.kv_used

    @property
    def lacks_room(self) -> bool:
        """For the next token of every decode."""
        return self.kv_used + self.num_decodes > self.kv_capacity

    @property
    def has_work(self) -> bool:
        return bool(self.num_decodes or self._ordered or self._lost)

    @property
    def num_lost(self) -> int:
        """Prompts whose deadline is lost."""
        return len(self._lost)

    def expect(self, record: RequestRecord, prompt: int) -> None:
        """The request will decode here."""
        self.pending[record] = prompt
        self.pending_context += prompt

    def settle(self, record: RequestRecord) -> None:
        """It decodes now, or will not in time; asked again, nothing happens."""
        self.pending_context -= self.pending.pop(record, 0)

    def expect_part(self, segment: Segment) -> None:
        """Part of a prompt that is cut elsewhere will come here."""
        self._inbound[segment] = None
        self.inbound_tokens += segment.remaining

    def settle_part(self, segment: Segment) -> None:
        """It came, or will not; asked again, nothing happens."""
        if segment in self._inbound:
            del self._inbound[segment]
            self.inbound_tokens -= segment.remaining

    # ---- prompts -------------------------------------------------------------------------

    def add_prompt(self, segment: Segment, *, first: bool = False) -> None:
        """Queue it by deadline, tails first; in static mode by age, or before all others."""
        self._sequence += 1
        key = (segment.remaining > TAIL_TOKENS, segment.deadline_s)
        if self.fifo:
            key = (True, -float(self._sequence) if first else float(self._sequence))
        bisect.insort(self._ordered, (key, self._sequence, segment))

    def drop_all(self) -> list[Segment]:
        """Lose the instance: everything on it, in no particular order."""
        self.alive = False
        held = [entry[2] for entry in self._ordered] + self._lost
        held += [segment for segment, _ in self._chunks if segment not in held]
        for segment in list(self.running):
            self.leave_decodes(segment)
            held.append(segment)
        self._ordered.clear()
        self._lost.clear()
        self._ends.clear()
        self._chunks = []
        self.kv_used = 0
        return held

    def cancel(self, segment: Segment) -> None:
        """Drop the segment: now if idle, else when the step in progress has ended."""
        segment.cancelled = True
        self._cancelled.append(segment)
        if not self.busy:
            self.sweep()

    def sweep(self) -> None:
        """Remove cancelled segments and free what they hold. Handoffs in flight free their own."""
        if not self._cancelled:
            return
        for segment in self._cancelled:
            if segment in self.running:
                self.free(self.leave_decodes(segment))
            elif self._unqueue(segment):
                self.free(segment.context)
                self.outstanding_tokens -= segment.remaining
                self.lost_tokens -= segment.remaining if segment.lost else 0
        self._cancelled.clear()

    def _unqueue(self, segment: Segment) -> bool:
        if segment in self._lost:
            self._lost.remove(segment)
            return True
        kept = [entry for entry in self._ordered if entry[2] is not segment]
        found = len(kept) < len(self._ordered)
        self._ordered = kept
        return found

    def _queue(self, now_s: float) -> list[Segment]:
        """Prompts in the order of service, as far as one step can reach.

        The order of ``prompt_ranks``, kept as it changes: one found lost moves to the lost ones.
        """
        reach = self.batcher.settings.max_num_batched_tokens
        ordered, lost, queue = self._ordered, self._lost, []
        head = lost[0] if lost and self.batcher.lost_turn else None
        if head is not None:
            queue.append(head)
        fifo = self.fifo
        speed: PromptSpeed | None = None
        index = 0
        while index < len(ordered) and reach > 0:
            segment = ordered[index][2]
            remaining = segment.remaining
            if fifo or remaining <= TAIL_TOKENS:
                is_lost = False
            else:
                speed = speed or self.batcher.prompt_speed(
                    self.num_decodes, self.context_sum, self.slo_ms
                )
                is_lost = misses(segment.deadline_s, remaining, now_s, speed)
            if not is_lost:
                queue.append(segment)
                reach -= remaining
                index += 1
            else:
                del ordered[index]
                bisect.insort(lost, segment, key=_arrival_s)
                segment.lost = True
                self.on_lost(segment)
                self.lost_tokens += remaining
        for segment in lost:
            if reach <= 0:
                break
            if segment is not head:
                reach -= segment.remaining
                queue.append(segment)
        return queue

    def _dequeue(self, segment: Segment) -> None:
        if self._ordered and self._ordered[0][2] is segment:
            del self._ordered[0]
        else:
            self._unqueue(segment)

    # ---- decodes -------------------------------------------------------------------------

    def join_decodes(self, segment: Segment, now_s: float) -> None:
        """The segment decodes from the next step on. Its KV is already counted."""
        segment.join_step = self.step_index + self.busy
        segment.finish_step = segment.join_step + segment.decode_steps - 1
        segment.join_context = segment.context
        self.running[segment] = None
        self._ends.setdefault(segment.finish_step, []).append(segment)
        self.num_decodes += 1
        self.context_sum += segment.context
        if segment.last_token_s >= 0.0:
            slack = self.slo_ms - 1e3 * (now_s - segment.last_token_s)
            if slack > 0.0:
                self._joined_slack_ms = min(self._joined_slack_ms, slack)

    def leave_decodes(self, segment: Segment) -> int:
        """Stop decoding and record the gaps; returns the context tokens the segment holds."""
        del self.running[segment]
        steps = max(self.step_index - segment.join_step, 0)
        if steps:
            self._record_gaps(segment)
        context = segment.join_context + steps
        self.num_decodes -= 1
        self.context_sum -= context
        return context

    def _record_gaps(self, segment: Segment) -> None:
        """Gaps are step durations, but the first one after a handoff or a restart is longer."""
        record, first = segment.record, segment.join_step
        if segment.last_token_s >= 0.0:
            record.long_gaps_ms.append(1e3 * (self.end_times_s[first] - segment.last_token_s))
            first += 1
        record.ranges.append((self, first, self.step_index))
        record.emitted += self.step_index - segment.join_step

    def free(self, tokens: int) -> None:
        self.kv_used -= tokens

    def can_hold(self, tokens: int) -> bool:
        """Room for them, and for one more token of each decode, a new one included."""
        return self.kv_used + tokens + self.num_decodes + 1 <= self.kv_capacity

    def hold(self, tokens: int) -> None:
        self.kv_used += tokens

    # ---- steps ---------------------------------------------------------------------------

    def start_step(self, now_s: float) -> float | None:
        """Compose the next step; returns its duration in ms, None when there is nothing to do."""
        num_decodes = self.num_decodes
        queue = self._queue(now_s) if self._ordered or self._lost else []
        if not queue and num_decodes == 0:
            return None
        slack_ms = min(self.slo_ms, self._joined_slack_ms) if num_decodes else math.inf
        self._joined_slack_ms = math.inf
        context_sum, tokens, context2 = self.context_sum, 0, 0.0
        if queue:
            prompts = [(segment.remaining, segment.context) for segment in queue]
            plan = self.batcher.plan(StepLoad(num_decodes, context_sum, slack_ms, prompts))
            tokens, context2 = self._fill(plan, queue)
            if tokens == 0 and num_decodes == 0:
                return None
        else:
            plan = self.batcher.plan(StepLoad(num_decodes, context_sum, slack_ms))
        self.kv_used += num_decodes
        self._plan, self._shape = plan, (num_decodes, context_sum, tokens, context2)
        self.busy = True
        step_ms = self.truth.step_ms(self._shape)
        return max(step_ms, self.launch_ms) if tokens else step_ms

    def _fill(self, plan: StepPlan, queue: list[Segment]) -> tuple[int, float]:
        """Give the budget to prompts; returns prefill tokens and their context sum."""
        left = plan.token_budget - self.num_decodes
        room = self.kv_capacity - self.kv_used - self.num_decodes
        if room <= 0 and self.num_decodes == 0:
            room = self._make_room(queue[0])
        seats = self.max_num_seqs - self.num_decodes
        total, context2 = 0, 0.0
        for segment in queue[: max(seats, 0)]:
            take = min(segment.remaining, left - total, room - total)
            if take <= 0:
                break
            context2 += take * (segment.context + 0.5 * take)
            total += take
            segment.started = True
            self._chunks.append((segment, take))
            if take == segment.remaining:
                self._dequeue(segment)
        self.kv_used += total
        return total, context2

    def _make_room(self, keep: Segment) -> int:
        """Nothing decodes and prompts hold all KV: forget the progress of one; returns the room."""
        self._forget_progress(keep)
        return self.kv_capacity - self.kv_used

    def _forget_progress(self, keep: Segment | None, *, begun: bool = False) -> bool:
        """The last prompt in turn that holds KV starts over; False when there is none.

        ``begun``: of those that an engine's step held, not of those whose KV came by handoff only.
        """
        others = [entry[2] for entry in self._ordered] + self._lost
        for segment in reversed(others):
            if segment is not keep and segment.context > 0 and (segment.started or not begun):
                self.kv_used -= segment.context
                self.outstanding_tokens += segment.context
                self.lost_tokens += segment.context if segment.lost else 0
                segment.remaining += segment.context
                segment.context = 0
                segment.started = False
                return True
        return False

    def finish_step(self, now_s: float, duration_ms: float, learn: bool) -> StepResult:
        """Account for the step that just ended."""
        index, num_decodes = self.step_index, self._shape[0]
        self.durations_ms.append(duration_ms)
        self.end_times_s.append(now_s)
        self.decode_counts.append(num_decodes)
        slow = num_decodes > 0 and duration_ms > self.slo_ms + 1e-6
        self.slow_steps.append(self.slow_steps[-1] + slow)
        self.busy_ms += duration_ms
        self.step_index = index + 1
        self.context_sum += num_decodes
        self.busy = False
        if learn and self._plan is not None:
            self.batcher.observe(self._plan, StepShape(*self._shape), duration_ms)
        ending, chunks = self._ends.pop(index, None), self._chunks
        if ending is None and not chunks:
            return ONE_MORE_TOKEN
        self._chunks = []
        finished = self._finish_decodes(ending, index) if ending else ()
        return StepResult(chunks, self._finish_chunks(chunks), finished)

    def _finish_decodes(self, ending: list[Segment], index: int) -> list[Segment]:
        """Those that still run and end with this step."""
        finished: list[Segment] = []
        for segment in ending:
            if segment in self.running and segment.finish_step == index:
                segment.context = self.leave_decodes(segment)
                finished.append(segment)
        return finished

    def _finish_chunks(self, chunks: list[Chunk]) -> list[Segment]:
        """Their progress; returns the prompts that are done."""
        prefilled: list[Segment] = []
        for segment, take in chunks:
            segment.context += take
            segment.remaining -= take
            self.outstanding_tokens -= take
            if segment.lost:
                self.lost_tokens -= take
            if segment.remaining == 0:
                prefilled.append(segment)
        return prefilled

    def preempt(self) -> list[Segment]:
        """Make the next token of every decode fit: between steps prompts that were begun lose their
        progress, then the newest decodes leave, to start over as prompts (vLLM's recompute)."""
        preempted: list[Segment] = []
        while self.lacks_room:
            if self._forget_progress(None, begun=True):
                continue
            if self.num_decodes <= 1:
                if self._forget_progress(None):
                    continue
                break
            segment = next(reversed(self.running))
            done = self.step_index - segment.join_step
            context = self.leave_decodes(segment)
            self.kv_used -= context
            segment.context = context
            segment.decode_steps -= done
            preempted.append(segment)
        return preempted
