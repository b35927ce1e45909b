"""How well each SLO class fared lately: bounded, whatever the number of requests. Pure."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.gateway.live.bins import Bins, bin_of, distribution, merge
from shared.schemas.events import RequestRecord
from shared.schemas.live import ClassStatus
from shared.schemas.request import Slo

SLICE_S = 10.0
WINDOW_SLICES = 6
HISTORY_SLICES = 60
MAX_CLASSES = 12
OTHERS = "(other)"


@dataclass(slots=True)
class Slice:
    """Ten seconds of one class."""

    number: int
    num_requests: int = 0
    num_met: int = 0
    num_refused: int = 0
    num_failed: int = 0
    num_tokens: int = 0
    num_late_ttft: int = 0
    num_late_tbt: int = 0
    ttft: Bins = field(default_factory=Counter)
    tbt: Bins = field(default_factory=Counter)

    def add(self, record: RequestRecord) -> None:
        self.num_requests += 1
        self.num_met += record.slo_met
        self.num_refused += record.outcome == "refused"
        self.num_failed += record.outcome == "error"
        self.num_tokens += record.num_output_tokens
        if record.ttft_s is not None:
            self.ttft[bin_of(record.ttft_s)] += 1
            self.num_late_ttft += record.ttft_s > record.slo.ttft_s
        if record.tbt_p99_s is not None:
            self.tbt[bin_of(record.tbt_p99_s)] += 1
            self.num_late_tbt += record.tbt_p99_s > record.slo.tbt_s


class Attainment:
    """Requests by class and slice of time; classes beyond ``MAX_CLASSES`` are counted together.

    A client that hung up says nothing of the pool and is not counted.
    """

    def __init__(self, started_s: float) -> None:
        self._started_s = started_s
        self._slices: dict[str, deque[Slice]] = {}
        self._slos: dict[str, Slo] = {}

    def add(self, record: RequestRecord, at_s: float) -> None:
        """``record`` is of a request that ended at ``at_s``, unix."""
        if record.outcome == "abort":
            return
        name = record.slo.name
        if name not in self._slices and len(self._slices) >= MAX_CLASSES:
            name = OTHERS
        self._slos[name] = record.slo
        slices = self._slices.setdefault(name, deque(maxlen=HISTORY_SLICES))
        number = int(at_s // SLICE_S)
        if not slices or slices[-1].number < number:
            slices.append(Slice(number))
        slices[-1].add(record)

    def window_s(self, now_s: float) -> float:
        """How long "the last minute" is now: whole slices and the one under way."""
        begin_s = (int(now_s // SLICE_S) - WINDOW_SLICES) * SLICE_S
        return max(1.0, now_s - max(begin_s, self._started_s))

    def statuses(self, now_s: float) -> list[ClassStatus]:
        """Classes seen in the last ten minutes, by name."""
        now = int(now_s // SLICE_S)
        for name in [n for n, s in self._slices.items() if s[-1].number <= now - HISTORY_SLICES]:
            del self._slices[name], self._slos[name]
        window_s = self.window_s(now_s)
        return [self._status(name, now, window_s) for name in sorted(self._slices)]

    def _status(self, name: str, now: int, window_s: float) -> ClassStatus:
        slices = self._slices[name]
        window = [s for s in slices if s.number >= now - WINDOW_SLICES]
        return ClassStatus(
            name=name,
            slo=self._slos[name],
            num_requests=sum(s.num_requests for s in window),
            num_met=sum(s.num_met for s in window),
            num_refused=sum(s.num_refused for s in window),
            num_failed=sum(s.num_failed for s in window),
            goodput_per_s=sum(s.num_met for s in window) / window_s,
            tokens_per_s=sum(s.num_tokens for s in window) / window_s,
            ttft=distribution(merge(s.ttft for s in window), sum(s.num_late_ttft for s in window)),
            tbt=distribution(merge(s.tbt for s in window), sum(s.num_late_tbt for s in window)),
            history=_history(slices, now),
        )


def _history(slices: Iterable[Slice], now: int) -> list[tuple[int, int]]:
    by_number = {s.number: (s.num_met, s.num_requests) for s in slices}
    return [by_number.get(n, (0, 0)) for n in range(now - HISTORY_SLICES + 1, now + 1)]
