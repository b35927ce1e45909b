"""The connector's scheduler side: what is sent, held and expected; the truth about every handoff.

It sits between vLLM's scheduler (which asks it through the connector's hooks), the engine's thread
(which drives it through ``shared.kv_seam.KvScheduler``) and the workers (``StepTransfers`` out,
``WorkerNews`` in). No I/O; everything happens on the engine's thread.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request, RequestStatus

from services.kv_transfer.connector import continuity
from services.kv_transfer.connector.step import (
    TOLD,
    Expect,
    Filled,
    Offer,
    StepTransfers,
    WorkerNews,
)
from shared.kv_seam import HandoffSignal, LostSegment
from shared.schemas.handoff import HandoffAbort, HandoffPhase, HandoffStart, Side
from shared.schemas.message import unpack_tokens
from shared.schemas.segment import Continuation
from shared.telemetry import counter

_fallbacks = counter(
    "dynaserve_kv_link_fallbacks", "links that could not take their best transport", "link"
)

MAX_EARLY_MESSAGES = 4096
"""HandoffStart, HandoffAbort and Continuation that may wait for their request; oldest go first."""

ENDED_EARLY = "the request ended before the cut"
"""Why alpha withdraws then."""

LOST_GRACE_S = 0.5
"""After its handoff failed, a beta waits this long for tokens, or for word that there are none:
what comes over the link (alpha withdrew) may overtake what comes over the bus (a cancel, the end).
"""


@dataclass(slots=True)
class Handoff:
    """What both sides of a handoff have in common."""

    handoff_id: str
    request_id: str
    epoch: int
    cut: int
    request: Request
    deadline_s: float


@dataclass(slots=True)
class Alpha(Handoff):
    """This engine runs [0, cut) and sends its KV."""

    lease_end_s: float
    offered: bool = False
    num_given: int = 0
    """Block ids the workers know."""
    num_preemptions: int = 0
    staged: bool = False
    sent: bool = False
    failed: bool = False
    held: bool = False
    """The request is over, its blocks wait to be sent."""
    released: bool = False
    """It was told that no block is held for the handoff any more."""


@dataclass(slots=True)
class Beta(Handoff):
    """This engine runs on from the cut and waits for KV."""

    tokens_known: bool
    expected_first_block: int | None = None
    """Set while blocks wait for KV."""
    settled: bool = False
    """Nothing is asked of the peer any more: loaded, not needed, or computed here."""
    failed: bool = False
    patience_end_s: float = 0.0
    """Without alpha's tokens by then, the segment is lost."""
    continued_at_s: float | None = None
    completed: bool = False
    """It was heard that all KV is here."""
    adopted_at_s: float | None = None
    """Set when the request went on with KV from the peer before that was heard."""


class SchedulerSide:
    """See the module's docstring; vLLM's hooks first, then ``KvScheduler``."""

    def __init__(
        self, block_size: int, num_ranks: int, unix_s: Callable[[], float] = time.time
    ) -> None:
        self._unix_s = unix_s
        self._block_size = block_size
        self._num_ranks = num_ranks
        self._alphas: dict[str, Alpha] = {}
        self._betas: dict[str, Beta] = {}
        self._by_request: dict[str, Alpha | Beta] = {}
        self._early: dict[str, list[HandoffStart | HandoffAbort | Continuation]] = {}
        self._orders = StepTransfers()
        self._signals: list[HandoffSignal] = []
        self._ranks_said: dict[tuple[str, str], int] = {}
        self.kv_addresses: list[str] = []
        self.kv_geometry: tuple[int, int, str] = (0, 0, "")
        self._staging_bytes: dict[int, int] = {}  # by rank

    # -- vLLM's hooks --------------------------------------------------------------------------

    def on_new_request(self, request: Request) -> None:
        """Take up the handoff that the engine wrote into the request's parameters."""
        params = request.kv_transfer_params
        if not params or "handoff_id" not in params:
            if request.num_output_tokens and request.sampling_params is not None:
                # It goes on behind what an instance that was lost has made.
                made = list(request.output_token_ids)
                continuity.set_prior_tokens(request.sampling_params, made)
            return
        common = {
            "handoff_id": params["handoff_id"],
            "request_id": params["request_id"],
            "epoch": params["epoch"],
            "cut": params["cut"],
            "request": request,
            "deadline_s": params["deadline_s"],
        }
        side: Alpha | Beta
        if params["side"] == "alpha":
            side = Alpha(**common, lease_end_s=params["deadline_s"] + params["lease_s"])
            self._alphas[side.handoff_id] = side
            if params["transport"]:
                self._offer(side, params["peer_addresses"], params["transport"])
        else:
            side = Beta(
                **common,
                tokens_known=request.num_output_tokens == 0,
                patience_end_s=params["deadline_s"],
            )
            self._betas[side.handoff_id] = side
        self._by_request[request.request_id] = side
        for message in self._early.pop(side.handoff_id, ()):
            self._deliver(message)

    def num_matched_tokens(self, request: Request, num_local: int) -> tuple[int | None, bool]:
        """Tokens beyond ``num_local`` that will come from the peer; None: ask again later."""
        beta = self._beta_of(request)
        if beta is None or beta.settled or request.num_preemptions:
            return 0, False
        if beta.cut > num_local and not beta.failed:
            return beta.cut - num_local, True
        return (0, False) if beta.tokens_known else (None, False)

    def on_allocated(self, request: Request, block_ids: list[int], num_external: int) -> None:
        """Blocks are held: have the workers expect KV in those that come from the peer."""
        beta = self._beta_of(request)
        if beta is None or beta.settled:
            return
        if num_external == 0:
            self._on_admitted(beta)
            return
        first_block = (beta.cut - num_external) // self._block_size
        beta.expected_first_block = first_block
        self._orders.expects.append(
            Expect(
                handoff_id=beta.handoff_id,
                epoch=beta.epoch,
                engine_request_id=request.request_id,
                first_block=first_block,
                block_ids=block_ids[first_block : self._num_blocks(beta.cut)],
                deadline_s=beta.deadline_s,
                admitted=beta.tokens_known,
            )
        )
        self._signal(beta, "held")

    def build_orders(self, output: SchedulerOutput) -> StepTransfers:
        """This step's orders; blocks that become final with it are listed as filled."""
        for alpha in self._alphas.values():
            if not alpha.held and alpha.request.num_preemptions > alpha.num_preemptions:
                alpha.num_preemptions = alpha.request.num_preemptions
                alpha.num_given = 0
                self._orders.filled.append(Filled(alpha.handoff_id, [], 0, restart=True))
        if self._alphas and output.kv_connector_block_state is not None:
            self._list_filled(output, output.kv_connector_block_state.resolve_block_ids)
        orders, self._orders = self._orders, StepTransfers()
        orders.computes = bool(output.num_scheduled_tokens)
        return orders

    def admit_at_once(self, admit: Callable[[str], bool]) -> None:
        """Between steps: tell a worker in this process whose tokens are known, as far as it is
        ready to hear it; the rest goes with the next orders."""
        self._orders.admitted = [each for each in self._orders.admitted if not admit(each)]

    def hear(self, news: WorkerNews) -> None:
        """Take in what the workers said of a step, before the step's outputs are processed."""
        self._staging_bytes.update(news.staging_bytes)
        _fallbacks.add(news.fallbacks)
        for (handoff_id, what), tally in news.tallies.items():
            ranks = self._ranks_said.get((handoff_id, what), 0) + tally.num_ranks
            self._ranks_said[handoff_id, what] = ranks
            everyone = ranks >= self._num_ranks
            if handoff_id in self._alphas:
                alpha = self._alphas[handoff_id]
                self._hear_alpha(alpha, what, everyone, tally.num_bytes, tally.transfer_s)
                if what == "send_failed" and not alpha.failed:
                    self._fail_alpha(alpha, tally.detail)
                elif what == "unwanted" and not alpha.failed:
                    self._let_go(alpha)
            elif handoff_id in self._betas:
                beta = self._betas[handoff_id]
                if what == "complete" and everyone:
                    self._on_complete(beta, tally.num_bytes, tally.transfer_s)
                elif what == "receive_failed":
                    self._fail_beta(beta, tally.detail)

    def on_transfers_finished(self, sent: set[str], received: set[str]) -> None:
        """vLLM is about to free blocks that were held (sent) or to run what was received."""
        for request_id in sent:
            side = self._by_request.get(request_id)
            if isinstance(side, Alpha):
                self._release(side)
        for request_id in received:
            side = self._by_request.get(request_id)
            if isinstance(side, Beta):
                self._on_admitted(side)

    def on_request_finished(self, request: Request) -> bool:
        """True: the blocks stay held until the workers have sent them."""
        side = self._by_request.get(request.request_id)
        if isinstance(side, Beta):
            self._on_beta_finished(side)
            return False
        if isinstance(side, Alpha):
            return self._on_alpha_finished(side)
        return False

    # -- KvScheduler ---------------------------------------------------------------------------

    @property
    def num_open(self) -> int:
        return len(self._alphas) + len(self._betas)

    @property
    def is_expecting(self) -> bool:
        """KV may still come from a peer."""
        return any(not beta.settled for beta in self._betas.values())

    @property
    def is_sending(self) -> bool:
        """Bytes are under way that nobody in the engine waits for: keep the steps coming."""
        unfinished = any(a.request.is_finished() for a in self._alphas.values())
        return unfinished or self.staging_bytes_in_use > 0

    @property
    def staging_bytes_in_use(self) -> int:
        return sum(self._staging_bytes.values())

    @property
    def num_held_blocks(self) -> int:
        return sum(self._num_blocks(a.cut) for a in self._alphas.values() if a.held)

    def start(self, start: HandoffStart) -> None:
        if not self._keep_if_early(start):
            self._deliver(start)

    def abort(self, abort: HandoffAbort) -> None:
        if not self._keep_if_early(abort):
            self._deliver(abort)

    def cancel(self, request_id: str, epoch: int) -> None:
        for alpha in list(self._alphas.values()):
            if alpha.held and alpha.request_id == request_id and alpha.epoch <= epoch:
                alpha.failed = True
                self._orders.withdrawn[alpha.handoff_id] = "the request was cancelled"
                self._signal(alpha, "cancelled")

    def continue_with(self, continuation: Continuation) -> bool:
        if self._keep_if_early(continuation):
            return False
        self._deliver(continuation)
        return True

    def expire(self, now_s: float) -> list[LostSegment]:
        for alpha in list(self._alphas.values()):
            if alpha.held and now_s > alpha.lease_end_s and not alpha.failed:
                self._fail_alpha(alpha, "lease expired before the KV was sent")
            elif alpha.request.is_finished() and not alpha.held and now_s > alpha.lease_end_s:
                self._forget(alpha)
        return [
            LostSegment(beta.request.request_id, "the first segment's KV and tokens did not come")
            for beta in self._betas.values()
            if not beta.settled and not beta.tokens_known and now_s > beta.patience_end_s
        ]

    def take_signals(self) -> list[HandoffSignal]:
        signals, self._signals = self._signals, []
        return signals

    # -- alpha ---------------------------------------------------------------------------------

    def _list_filled(
        self, output: SchedulerOutput, block_ids_of: Callable[[str], tuple[list[int], ...]]
    ) -> None:
        starts = {r.req_id: r.num_computed_tokens for r in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        starts.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for request_id, num_scheduled in output.num_scheduled_tokens.items():
            alpha = self._by_request.get(request_id)
            if isinstance(alpha, Alpha) and not alpha.failed:
                end = min(starts[request_id] + num_scheduled, alpha.cut)
                num_final = self._num_blocks(end) if end == alpha.cut else end // self._block_size
                if num_final > alpha.num_given:
                    block_ids = block_ids_of(request_id)[0][alpha.num_given : num_final]
                    self._orders.filled.append(Filled(alpha.handoff_id, block_ids, num_final))
                    alpha.num_given = num_final

    def _hear_alpha(
        self, alpha: Alpha, what: str, everyone: bool, num_bytes: int, transfer_s: float
    ) -> None:
        if what == "first_chunk" and everyone:
            self._signal(alpha, "first_chunk")
        elif what == "staged" and everyone:
            alpha.staged = True
        elif what == "sent" and everyone:
            self._signal(alpha, "sent_all", num_bytes, transfer_s)
            alpha.staged = alpha.sent = True
            if alpha.request.is_finished() and not alpha.held:
                self._forget(alpha)

    def _on_alpha_finished(self, alpha: Alpha) -> bool:
        request = alpha.request
        reached_cut = request.status == RequestStatus.FINISHED_LENGTH_CAPPED
        if not reached_cut:
            aborted = request.status == RequestStatus.FINISHED_ABORTED
            self._signal(alpha, "cancelled" if aborted else "ended")
            self._orders.withdrawn[alpha.handoff_id] = ENDED_EARLY
            alpha.failed = True
            self._release(alpha)
            return False
        if alpha.staged or alpha.failed:
            self._release(alpha)
            return False
        alpha.held = True
        self._orders.held[alpha.handoff_id] = request.request_id
        return True

    def _fail_alpha(self, alpha: Alpha, reason: str) -> None:
        """Give the handoff up; a running request goes on to its cut, held blocks come free."""
        alpha.failed = True
        self._orders.withdrawn[alpha.handoff_id] = reason
        self._signal(alpha, "failed", detail=reason)
        if alpha.request.is_finished() and not alpha.held:
            self._forget(alpha)

    def _let_go(self, alpha: Alpha) -> None:
        """Beta wants no KV (any more) and says itself why: a running request goes on to its cut."""
        alpha.failed = True
        if alpha.held:
            return  # the workers give its blocks back with the next step
        self._signal_released(alpha)
        if alpha.request.is_finished():
            self._forget(alpha)

    def _signal_released(self, alpha: Alpha) -> None:
        if not alpha.released:
            alpha.released = True
            self._signal(alpha, "released")

    def _release(self, alpha: Alpha) -> None:
        """Its blocks are free; it stays in the book while bytes are under way."""
        alpha.held = False
        self._signal_released(alpha)
        if alpha.failed or alpha.sent:
            self._forget(alpha)

    # -- beta ----------------------------------------------------------------------------------

    def _on_complete(self, beta: Beta, num_bytes: int, transfer_s: float) -> None:
        """It may come with a step's output when the request already runs (see adopted_at_s)."""
        beta.completed = True
        exposed_s = 0.0
        if beta.continued_at_s is not None:
            exposed_s = max(0.0, (beta.adopted_at_s or self._unix_s()) - beta.continued_at_s)
        self._signal(beta, "complete", num_bytes, transfer_s, exposed_s)
        if beta.adopted_at_s is not None:
            self._signal(beta, "adopted")

    def _on_admitted(self, beta: Beta) -> None:
        """The request goes on here, with what was loaded, found or has to be computed."""
        beta.settled = True
        if beta.expected_first_block is None:
            phase: HandoffPhase = "not_needed" if not beta.failed else "recomputed"
            self._orders.cancelled.append(beta.handoff_id)
        else:
            phase = "recomputed" if beta.failed else "adopted"
        beta.expected_first_block = None
        if phase == "adopted" and not beta.completed:
            beta.adopted_at_s = self._unix_s()  # said behind "complete": it closes the record
        else:
            self._signal(beta, phase)

    def _fail_beta(self, beta: Beta, reason: str) -> None:
        """The KV will not come. With its tokens known the request computes it; else it is lost."""
        if not beta.failed:
            beta.failed = True
            grace_end_s = self._unix_s() + LOST_GRACE_S
            beta.patience_end_s = min(beta.patience_end_s, grace_end_s)
            # That alpha ended is no failure: the word of it, over the bus, is merely the slower.
            if not beta.tokens_known and not reason.endswith(ENDED_EARLY):
                self._signal(beta, "failed", detail=reason)

    def _on_beta_finished(self, beta: Beta) -> None:
        if beta.adopted_at_s is not None and not beta.completed:
            self._signal(beta, "adopted")
        if not beta.settled:
            self._orders.cancelled.append(beta.handoff_id)
            self._signal(beta, "cancelled")
        self._forget(beta)

    def _patch_tokens(self, beta: Beta, token_ids: list[int]) -> None:
        """Put the real tokens in place of the placeholders, before anything looks at them."""
        request = beta.request
        if len(token_ids) != request.num_output_tokens:
            self._fail_beta(beta, f"alpha made {len(token_ids)} tokens, not the number cut for")
            return
        request._output_token_ids[:] = token_ids
        request._all_token_ids[request.num_prompt_tokens :] = token_ids
        request.update_block_hashes()
        if request.sampling_params is not None:
            continuity.set_prior_tokens(request.sampling_params, token_ids)
        beta.tokens_known = True
        self._orders.admitted.append(beta.handoff_id)

    # -- messages ------------------------------------------------------------------------------

    def _keep_if_early(self, message: HandoffStart | HandoffAbort | Continuation) -> bool:
        if message.handoff_id in self._alphas or message.handoff_id in self._betas:
            return False
        self._early.setdefault(message.handoff_id, []).append(message)
        if len(self._early) > MAX_EARLY_MESSAGES:
            del self._early[next(iter(self._early))]
        return True

    def _deliver(self, message: HandoffStart | HandoffAbort | Continuation) -> None:
        side = self._alphas.get(message.handoff_id) or self._betas.get(message.handoff_id)
        if side is None or message.epoch != side.epoch:
            return
        if isinstance(message, HandoffStart) and isinstance(side, Alpha):
            side.lease_end_s = message.deadline_s + message.lease_s
            self._offer(side, message.peer_addresses, message.transport)
        elif isinstance(message, HandoffAbort):
            self._abort(side, message.reason)
        elif isinstance(message, Continuation) and isinstance(side, Beta):
            side.continued_at_s = self._unix_s()
            if not side.tokens_known:
                self._patch_tokens(side, unpack_tokens(message.token_ids))

    def _offer(self, alpha: Alpha, peer_addresses: list[str], transport: str) -> None:
        if alpha.offered or alpha.failed:
            return
        alpha.offered = True
        self._orders.offers.append(
            Offer(
                handoff_id=alpha.handoff_id,
                epoch=alpha.epoch,
                num_blocks=self._num_blocks(alpha.cut),
                peer_addresses=peer_addresses,
                transport=transport,
                deadline_s=alpha.deadline_s,
            )
        )

    def _abort(self, side: Alpha | Beta, reason: str) -> None:
        if isinstance(side, Alpha):
            if not side.failed:
                self._fail_alpha(side, reason)
        elif not side.settled:
            self._orders.failed.append(side.handoff_id)
            self._fail_beta(side, reason)

    # -- small things --------------------------------------------------------------------------

    def _beta_of(self, request: Request) -> Beta | None:
        side = self._by_request.get(request.request_id)
        return side if isinstance(side, Beta) else None

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    def _forget(self, side: Alpha | Beta) -> None:
        self._alphas.pop(side.handoff_id, None)
        self._betas.pop(side.handoff_id, None)
        self._by_request.pop(side.request.request_id, None)
        for what in TOLD:
            self._ranks_said.pop((side.handoff_id, what), None)

    def _signal(
        self,
        side: Alpha | Beta,
        phase: HandoffPhase,
        num_bytes: int = 0,
        transfer_s: float = 0.0,
        exposed_s: float = 0.0,
        detail: str = "",
    ) -> None:
        which: Side = "alpha" if isinstance(side, Alpha) else "beta"
        self._signals.append(
            HandoffSignal(
                handoff_id=side.handoff_id,
                request_id=side.request_id,
                epoch=side.epoch,
                side=which,
                phase=phase,
                num_bytes=num_bytes,
                transfer_s=transfer_s,
                exposed_s=exposed_s,
                detail=detail,
            )
        )
