"""The engine seam: what an instance's actor asks of an engine, and what the engine tells it.

Two implementations: ``vllm_engine.VllmEngine`` and ``simulated.SimulatedEngine``. The actor lives
on its event loop; an engine may live on a thread of its own. Calls into the engine are queued to it
and never block (``start`` and ``stop`` do); calls back come from the engine's thread, and
``EngineEvents`` has to hand them over to the loop.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Protocol

from services.gpu_instance.prefix_chunks import PrefixChanges
from shared.kv_seam import HandoffSignal as HandoffSignal
from shared.schemas.handoff import HandoffAbort, HandoffStart, Transport
from shared.schemas.registry import Geometry, LatencyCoefficients
from shared.schemas.segment import Continuation, Role, Segment, SetBatcher, TimedStep
from shared.schemas.telemetry import LinkLoad
from shared.schemas.tokens import FailureCode, FinishReason, TokenLogprobs


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine turned out to be once it was loaded."""

    geometry: Geometry
    kv_addresses: list[str]
    transports: list[Transport]
    num_blocks: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    supported_tasks: list[str]
    device: str
    latency: LatencyCoefficients | None = None


@dataclass(slots=True)
class Emission:
    """What one step produced for one segment; not frozen, as that would triple its cost.

    A segment's last emission has a ``finish_reason``, ``reached_cut`` or a ``failure``; after it
    the engine says nothing more of that (request_id, epoch). Alpha at the cut: ``reached_cut`` and
    no finish reason; it may carry no token (cut inside the prompt).
    """

    request_id: str
    epoch: int
    role: Role
    position: int
    """Index of the first token in prompt + output."""
    token_ids: list[int]
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: TokenLogprobs | None = None
    pooling_output: list[float] | list[list[float]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int | None = None
    """Prompt tokens not computed here; on a segment's first emission."""
    queued_s: float | None = None
    """Wait in the engine before the first step; on a segment's first emission."""
    num_preemptions: int = 0
    reached_cut: bool = False
    failure: tuple[FailureCode, str] | None = None
    """Why the segment ends without its result: code and message."""

    @property
    def is_last(self) -> bool:
        return self.reached_cut or self.finish_reason is not None or self.failure is not None


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The part of ``InstanceLoad`` that the engine knows; same names and units."""

    num_running: int
    num_waiting: int
    num_decodes: int
    context_sum: int
    outstanding_prefill_tokens: int
    free_blocks: int
    num_blocks: int
    max_num_batched_tokens: int
    num_waiting_for_kv: int = 0
    late_prefill_tokens: int = 0
    inbound_prefill_tokens: int = 0
    num_pending_decodes: int = 0
    pending_decode_context_tokens: int = 0
    batcher_mode: str = "static"
    step_margin: float = 0.0
    budget_tokens: int = 0
    step_s: float = 0.0
    predicted_step_s: float = 0.0
    slo_headroom: float = 1.0
    num_steps: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    links: list[LinkLoad] = field(default_factory=list)
    latency: LatencyCoefficients | None = None
    """The latency model as the steps so far have corrected it."""
    num_added: int | None = None
    """Segments ever added that this load knows of; None: all. One that was added while a step ran
    is not in the load taken at its end."""


@dataclass(slots=True)
class StepOutputs:
    """All that came out of one step. ``load`` and ``prefixes`` (what changed in the prefix cache)
    are there at most 20 times a second."""

    emissions: list[Emission]
    load: EngineLoad | None = None
    prefixes: PrefixChanges | None = None


@dataclass(frozen=True, slots=True)
class EngineHoldings:
    """What the engine holds right now; the engine's part of ``EngineAccounts``."""

    num_blocks: int
    free_blocks: int
    num_requests: int
    open_handoffs: int
    kv_blocks_orphaned: int
    staging_bytes_in_use: int
    batcher_mode: str


class EngineEvents(Protocol):
    """What the engine tells. Called from the engine's thread; hand over and return at once."""

    def on_step(self, outputs: StepOutputs) -> None:
        """After each step that produced something, and when only the load has changed."""

    def on_handoff(self, event: HandoffSignal) -> None:
        """A handoff moved on."""

    def on_failed(self, error: BaseException) -> None:
        """The engine is dead; nothing that was added will ever be answered."""


class Engine(Protocol):
    """One engine. ``start`` blocks; everything else is thread-safe and returns at once."""

    def start(self, events: EngineEvents) -> EngineInfo:
        """Load and be ready; called once, on a thread that may block. Raises EngineFailed."""

    def add(self, segment: Segment) -> None:
        """Run a segment; what is wrong with it comes back as an emission with a failure."""

    def cancel(self, request_id: str, epoch: int, reason: str) -> Future[None]:
        """Drop the request's segments up to and including ``epoch``: free at once, emit nothing.

        A handoff it was part of is signalled 'cancelled'. Done when the blocks are free, but for
        those that a transfer is reading or writing at that moment.
        """

    def continue_with(self, continuation: Continuation) -> None:
        """Beta: the tokens alpha made, or (``ended``) that there is nothing to go on with.

        May come before its segment. ``ended`` drops the segment, which emits nothing.
        """

    def start_handoff(self, start: HandoffStart) -> None:
        """Both sides: the link to use. May come before its segment."""

    def abort_handoff(self, abort: HandoffAbort) -> None:
        """Free what is held for the handoff and signal it; beta recomputes if it can.

        Alpha goes on to the cut: beta may need its tokens.
        """

    def set_batcher(self, mode: SetBatcher) -> None:
        """Switch the local batcher from the next step on."""

    def reset_prefix_cache(self) -> Future[bool]:
        """Forget cached prefixes; False when blocks are in use."""

    def accounts(self) -> Future[EngineHoldings]:
        """What is held now."""

    def take_timed_steps(self) -> Future[list[TimedStep]]:
        """The last steps, at most a few thousand; taken ones are forgotten."""

    def stop(self, deadline_s: float) -> None:
        """End within ``deadline_s`` seconds; blocks until then. Emits nothing more."""


EngineName = Literal["vllm", "simulated"]
