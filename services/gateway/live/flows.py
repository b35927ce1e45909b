"""Handoffs of the last minute: the newest of them, and how much went between whom. Pure."""

from collections import deque

from shared.schemas.handoff import HandoffRecord
from shared.schemas.live import Flow, HandoffRow

WINDOW_S = 60.0
MAX_KEPT = 4096
MAX_FLOWS = 12
MAX_ROWS = 24


class Flows:
    """The last handoffs, at most ``MAX_KEPT``."""

    def __init__(self) -> None:
        self._kept: deque[tuple[float, HandoffRecord]] = deque(maxlen=MAX_KEPT)

    def add(self, record: HandoffRecord, at_s: float) -> None:
        self._kept.append((at_s, record))

    def rows(self) -> list[HandoffRow]:
        """The newest first."""
        newest = [self._kept[-1 - n] for n in range(min(MAX_ROWS, len(self._kept)))]
        return [
            HandoffRow(
                handoff_id=record.handoff_id,
                at_s=at_s,
                alpha_id=record.alpha_id,
                beta_id=record.beta_id,
                outcome=record.outcome,
                transport=record.transport,
                num_bytes=record.num_bytes,
                transfer_s=record.transfer_s,
                exposed_s=record.exposed_s,
            )
            for at_s, record in newest
        ]

    def busiest(self, now_s: float) -> tuple[list[Flow], int]:
        """The pairs that moved the most bytes, and how many pairs there were."""
        while self._kept and self._kept[0][0] < now_s - WINDOW_S:
            self._kept.popleft()
        pairs: dict[tuple[str, str], list[HandoffRecord]] = {}
        for _, record in self._kept:
            pairs.setdefault((record.alpha_id, record.beta_id), []).append(record)
        flows = [_flow(alpha_id, beta_id, those) for (alpha_id, beta_id), those in pairs.items()]
        flows.sort(key=lambda flow: (-flow.num_bytes, -flow.count, flow.alpha_id, flow.beta_id))
        return flows[:MAX_FLOWS], len(flows)


def _flow(alpha_id: str, beta_id: str, records: list[HandoffRecord]) -> Flow:
    return Flow(
        alpha_id=alpha_id,
        beta_id=beta_id,
        count=len(records),
        num_failed=sum(record.outcome in ("failed", "recomputed") for record in records),
        num_bytes=sum(record.num_bytes for record in records),
        longest_exposed_s=max(record.exposed_s for record in records),
    )
