"""What a scheduler shows of itself at each scrape."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from services.global_sched import metrics
from services.global_sched.policy.guard import GuardState

if TYPE_CHECKING:
    from services.global_sched.actor import SchedulerActor

QUANTILES = (0.1, 0.5, 0.9)


class SchedulerMeters:
    """Gauges of one scheduler; those of a traffic class begin when it is first seen."""

    def __init__(self, actor: SchedulerActor) -> None:
        self._actor = actor
        self._classes: set[str] = set()
        self._lengths: set[tuple[str, str]] = set()
        metrics.show_zeros()
        pool, error = actor.pool, actor.admission.error
        for state in ("ready", "draining"):
            actor.show(metrics.instances, partial(self._count, state), {"state": state})
        silent = partial(self._num_silent)
        actor.show(metrics.instances, silent, {"state": "silent"})
        for share in QUANTILES:
            read = partial(error.quantile, share)
            actor.show(metrics.ttft_ratio, read, {"quantile": f"{share:.1f}"})
        actor.show(metrics.prefix_chunks, lambda: actor.prefixes.index.num_held)
        actor.show(metrics.shadow, lambda: pool.num_unseen)
        actor.show(metrics.shadow_tokens, lambda: pool.unseen_tokens)
        actor.show(metrics.shadow_lost, lambda: pool.num_lost)

    def learned(self, model: str, traffic_class: str) -> None:
        """Something was learned of a class: show it from now on."""
        if traffic_class not in self._classes:
            self._classes.add(traffic_class)
            self._show_guard(traffic_class)
        if (model, traffic_class) not in self._lengths:
            self._lengths.add((model, traffic_class))
            self._show_lengths(model, traffic_class)

    def _show_guard(self, name: str) -> None:
        show = self._actor.show
        show(metrics.guard_off, lambda: self._guard(name, "is_off"), {"slo_class": name})
        for group in ("cut", "control"):
            labels = {"slo_class": name, "group": group}
            show(metrics.guard_score, partial(self._guard, name, f"{group}_score"), labels)
            show(metrics.guard_samples, partial(self._guard, name, f"{group}_samples"), labels)

    def _show_lengths(self, model: str, name: str) -> None:
        lengths, labels = self._actor.learning.lengths, {"model": model, "slo_class": name}
        kind = (model, name)
        self._actor.show(metrics.length_error, lambda: lengths.error.get(kind), labels)
        self._actor.show(metrics.length_over, lambda: lengths.over_p90.get(kind), labels)

    def _guard(self, name: str, field: str) -> float | None:
        state: GuardState | None = self._actor.learning.guard.state(name)
        value = getattr(state, field) if state is not None else None
        return None if value is None else float(value)

    def _count(self, state: str) -> int:
        return sum(r.state == state for r in self._actor.registry.instances.values())

    def _num_silent(self) -> int:
        return self._actor.pool.num_silent(self._actor.clock.monotonic_s())
