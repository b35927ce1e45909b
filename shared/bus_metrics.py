"""How late the bus is, what it lost, and how full the queues behind it are."""

from shared.telemetry import counter, gauge, histogram

LAG_S = [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0]
SAMPLED = 16

queue_depth = gauge("dynaserve_queue_depth_items", "what waits in a bounded queue", "item")
queue_bound = gauge("dynaserve_queue_bound_items", "the bound of that queue", "item")
dropped = counter("dynaserve_bus_messages_dropped", "messages that could not be read", "message")
failed = counter("dynaserve_handler_errors", "handlers that raised", "error")
slow_consumers = counter(
    "dynaserve_bus_slow_consumers", "times messages were dropped as a reader was slow", "consumer"
)
bus_errors = counter("dynaserve_bus_errors", "errors the bus client reported", "error")
reconnects = counter("dynaserve_bus_reconnects", "times the server was reached again", "reconnect")
_lag = histogram(
    "dynaserve_bus_lag_seconds", f"publish to handling, one message of {SAMPLED}", LAG_S
)
_worst = gauge("dynaserve_bus_lag_worst_seconds", "longest lag since the last scrape", "s")


class LagMeter:
    """Lag of one stream of messages. Every message counts for the worst, one of 16 for the
    distribution: recording costs more than handling a small message."""

    def __init__(self, stream: str) -> None:
        self._attributes = {"stream": stream}
        self._num_seen = 0
        self._worst_s: float | None = None
        self.forget = _worst.watch(self._take_worst, self._attributes)

    def observe(self, lag_s: float) -> None:
        """Clocks of two hosts may differ: a negative lag counts as none."""
        if self._worst_s is None or lag_s > self._worst_s:
            self._worst_s = lag_s
        if self._num_seen % SAMPLED == 0:
            _lag.record(max(lag_s, 0.0), self._attributes)
        self._num_seen += 1

    def _take_worst(self) -> float | None:
        worst_s, self._worst_s = self._worst_s, None
        return None if worst_s is None else max(worst_s, 0.0)
