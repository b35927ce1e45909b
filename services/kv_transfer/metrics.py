"""What a coordinator counts: handoffs, what they moved, how much of it anybody waited for."""

from functools import partial

from services.kv_transfer.book import HandoffBook
from services.kv_transfer.handoff import Close, Phase
from shared.actor import Actor
from shared.schemas.handoff import Side, Transport
from shared.telemetry import BoundedNames, counter, gauge, histogram, up_down, watched_counter

_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
_BYTES_PER_S = [1e6 * 10 ** (n / 2) for n in range(13)]
_BYTES = [2.0**n for n in range(14, 36, 2)]

STATES: tuple[Phase, ...] = ("opened", "streaming", "ready", "adopted", "failed")
OUTCOMES = ("adopted", "not_needed", "recomputed", "ended", "cancelled", "failed")

_handoffs = counter("dynaserve_handoffs", "handoffs by outcome and transport", "handoff")
_bytes = counter("dynaserve_handoff_bytes", "KV handed over", "By")
_sent = counter("dynaserve_handoff_sent_bytes", "KV handed over, by who sent it", "By")
_received = counter("dynaserve_handoff_received_bytes", "the same, by who got it", "By")
_instance_name = BoundedNames(256)
_size = histogram("dynaserve_handoff_size_bytes", "KV of one handoff", _BYTES, unit="By")
_bandwidth = histogram(
    "dynaserve_handoff_bandwidth_bytes_per_second",
    "KV over the time the link was busy with it",
    _BYTES_PER_S,
    unit="By/s",
)
_exposed = histogram("dynaserve_handoff_exposed_seconds", "beta waited after alpha's end", _S)
_hidden = histogram("dynaserve_handoff_hidden_seconds", "KV moved while alpha computed", _S)
_total = histogram("dynaserve_handoff_seconds", "from opening to the last release", _S)
_orphaned = counter("dynaserve_kv_blocks_orphaned", "blocks nobody confirmed as freed", "block")
_leases = counter("dynaserve_leases_expired", "leases that ran out unconfirmed", "lease")
_ignored = watched_counter(
    "dynaserve_handoff_events_ignored", "events that fit no handoff", "event"
)
_states = gauge("dynaserve_handoffs_in_state", "open handoffs by state", "handoff")
open_now = up_down("dynaserve_handoffs_open", "handoffs under way", "handoff")


def show_book(actor: Actor, book: HandoffBook, max_open: int) -> None:
    """Show the book at each scrape; the series alerts look at begin at zero."""
    actor.show_queue("handoffs", lambda: len(book), max_open)
    actor.show(_ignored, lambda: book.ignored)
    for state in STATES:
        actor.show(_states, partial(book.count, state), {"state": state})
    for side in ("alpha", "beta"):
        _orphaned.add(0, {"side": side})
        _leases.add(0, {"side": side})
    for outcome in OUTCOMES:
        _handoffs.add(0, {"outcome": outcome, "transport": "tcp"})
    open_now.add(0)


def orphaned(side: Side, num_blocks: int) -> None:
    """A lease ran out and nobody said that the blocks are free."""
    _orphaned.add(num_blocks, {"side": side})
    _leases.add(1, {"side": side})


def refused(transport: Transport) -> None:
    """A handoff that never began."""
    _handoffs.add(1, {"outcome": "failed", "transport": transport})


def closed(close: Close, transport: Transport) -> None:
    """A handoff is over."""
    open_now.add(-1)
    by_transport = {"transport": transport}
    _handoffs.add(1, {"outcome": close.outcome, **by_transport})
    _bytes.add(close.num_bytes, by_transport)
    _sent.add(close.num_bytes, {"instance_id": _instance_name(close.alpha_id)})
    _received.add(close.num_bytes, {"instance_id": _instance_name(close.beta_id)})
    _total.record(close.total_s)
    if close.num_bytes:
        _size.record(close.num_bytes)
    if close.num_bytes and close.transfer_s > 0.0:
        _bandwidth.record(close.num_bytes / close.transfer_s, by_transport)
    if close.outcome == "adopted":
        _exposed.record(close.exposed_s)
        if close.ready_at_s is not None and close.streaming_at_s is not None:
            _hidden.record(max(0.0, close.ready_at_s - close.streaming_at_s - close.exposed_s))
