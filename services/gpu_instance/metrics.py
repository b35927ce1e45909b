"""What an instance shows: its last load at each scrape, and its steps as they were sampled."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from services.gpu_instance.engine.seam import EngineLoad
from shared.actor import Actor
from shared.telemetry import (
    Gauge,
    counter,
    gauge,
    histogram,
    signed_histogram,
    up_down,
    watched_counter,
)

_STEP_S = [0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1.0]
_ERROR_S = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]
_RATIO = [0.1, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 5.0]
_FREE_S = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]

segments = counter("dynaserve_instance_segments", "segments by role and how they ended", "segment")
refused = counter("dynaserve_instance_segments_refused", "segments not taken", "segment")
alive = up_down("dynaserve_instance_segments_alive", "segments the engine has", "segment")
orphaned = gauge(
    "dynaserve_instance_kv_blocks_orphaned", "blocks nobody owns, looked for at rest", "block"
)
_cancel_to_free = histogram(
    "dynaserve_cancel_to_free_seconds", "a cancel's arrival to blocks being free", _FREE_S
)
_step = histogram("dynaserve_step_seconds", "engine steps, sampled 20 times a second", _STEP_S)
_step_error = signed_histogram(
    "dynaserve_step_prediction_error_seconds", "real less predicted step time", _ERROR_S
)
_step_slo = histogram(
    "dynaserve_step_slo_ratio", "step time over the tightest TBT objective", _RATIO, unit="1"
)

_SHOWN: dict[str, Gauge] = {
    name: gauge(f"dynaserve_instance_{shown}", text, unit)
    for name, shown, text, unit in (
        ("num_running", "running_requests", "requests in the engine's batch", "request"),
        ("num_waiting", "waiting_requests", "requests that wait for the batch", "request"),
        ("num_waiting_for_kv", "waiting_for_kv_requests", "requests that wait for KV", "request"),
        ("num_decodes", "decoding_requests", "requests of the batch that decode", "request"),
        ("context_sum", "decode_context_tokens", "context over all that decode", "token"),
        ("outstanding_prefill_tokens", "prefill_tokens", "prompt tokens to compute", "token"),
        ("free_blocks", "kv_blocks_free", "KV blocks free", "block"),
        ("num_blocks", "kv_blocks", "KV blocks in all", "block"),
        ("budget_tokens", "batcher_budget_tokens", "bound of the last step", "token"),
        ("step_margin", "batcher_margin_ratio", "steps are planned for SLO / (1 + this)", "1"),
        ("max_num_batched_tokens", "batcher_bound_tokens", "bound of every step", "token"),
        ("step_s", "last_step_seconds", "the last step", "s"),
        ("predicted_step_s", "last_step_predicted_seconds", "the last step as predicted", "s"),
        ("slo_headroom", "slo_headroom_ratio", "1 - step / tightest TBT objective", "1"),
    )
} | {
    name: watched_counter(f"dynaserve_instance_{shown}", text, unit)
    for name, shown, text, unit in (
        ("num_generated_tokens", "generated_tokens", "tokens made since the start", "token"),
        ("num_steps", "steps", "steps since the start", "step"),
        ("num_preemptions", "preempted_requests", "preemptions since the start", "request"),
    )
}
_mode = gauge("dynaserve_instance_batcher_mode", "1 for the mode that is on", "mode")


class LoadMeter:
    """Shows the newest load of one instance and samples its steps."""

    def __init__(self, actor: Actor) -> None:
        self._load: EngineLoad | None = None
        self.blocks_orphaned: int | None = None
        for name, shown in _SHOWN.items():
            actor.show(shown, partial(self._read, name))
        for mode in ("slo", "static"):
            actor.show(_mode, partial(self._is_mode, mode), {"mode": mode})
        actor.show(orphaned, lambda: self.blocks_orphaned)

    def update(self, load: EngineLoad) -> None:
        """A new load, at most 20 times a second; its step is one sample if it is a new one."""
        is_new = self._load is None or load.num_steps != self._load.num_steps
        self._load = load
        if is_new and load.step_s > 0.0:
            _step.record(load.step_s)
            _step_error.record(load.step_s - load.predicted_step_s)
            if load.slo_headroom < 1.0:
                _step_slo.record(1.0 - load.slo_headroom)

    def _read(self, name: str) -> float | None:
        return None if self._load is None else float(getattr(self._load, name))

    def _is_mode(self, mode: str) -> float | None:
        return None if self._load is None else float(self._load.batcher_mode.startswith(mode))


def time_cancel(cancel: Callable[[], Future[None]]) -> None:
    """Measure from now until the engine says that what was cancelled is free."""
    started_s = time.perf_counter()
    freed = cancel()
    freed.add_done_callback(lambda _: _cancel_to_free.record(time.perf_counter() - started_s))
