"""What a scheduler counts."""

from shared.cuts import reason_code, region
from shared.schemas.place import Plan
from shared.telemetry import (
    BoundedNames,
    counter,
    gauge,
    histogram,
    signed_histogram,
    watched_counter,
)

_WAIT_S = [0.001, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0]
_DECISION_S = [5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2]
_ERROR_TOKENS = [0.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0]

dropped = counter("dynaserve_placements_dropped", "questions not answered", "placement")
decision = histogram("dynaserve_placement_decision_seconds", "time the policy took", _DECISION_S)
length_error = gauge(
    "dynaserve_output_length_error_ratio", "mean of |predicted - real| / real, lately", "1"
)
length_over = gauge(
    "dynaserve_output_length_over_p90_ratio",
    "share of requests longer than their predicted P90, lately; 0.1 when predictions are right",
    "1",
)
instances = gauge("dynaserve_pool_instances", "instances in the registry, by state", "instance")
ttft_ratio = gauge(
    "dynaserve_ttft_real_to_predicted_ratio", "real over predicted TTFT, by quantile", "1"
)
probes = counter("dynaserve_admission_probes", "late requests admitted to learn from", "probe")
guard_off = gauge("dynaserve_guard_off_ratio", "1 while cuts of the class are off", "1")
guard_score = gauge(
    "dynaserve_guard_score_ratio", "how badly a class fares, cut and not; 0 is best, 3 worst", "1"
)
guard_samples = gauge(
    "dynaserve_guard_requests", "requests the guard's scores are made from", "request"
)
shadow_error = signed_histogram(
    "dynaserve_shadow_load_error_tokens",
    "prompt tokens believed on an instance less those it reports with our placements",
    _ERROR_TOKENS,
    unit="token",
)
shadow = gauge("dynaserve_shadow_placements", "placements telemetry does not show yet", "placement")
shadow_tokens = gauge("dynaserve_shadow_load_tokens", "prompt tokens of these", "token")
shadow_lost = watched_counter(
    "dynaserve_shadow_lost_placements", "placements no telemetry ever showed", "placement"
)
prefix_error = signed_histogram(
    "dynaserve_prefix_cached_error_tokens",
    "prompt tokens believed cached less those the engine found",
    [0.0, 64.0, 128.0, 1024.0, 8192.0],
    unit="token",
)
prefix_chunks = gauge(
    "dynaserve_prefix_chunks", "prefix chunks known to be cached, over all instances", "chunk"
)
_placed = counter("dynaserve_placements", "placements by policy and kind", "placement")
_cuts = counter("dynaserve_placements_by_cut", "placements by cut region and reason", "placement")
_refused = counter("dynaserve_placements_refused", "questions answered with no", "placement")
_wait = histogram("dynaserve_placement_refused_wait_seconds", "wait predicted to them", _WAIT_S)
_policy_name = BoundedNames()


def show_zeros() -> None:
    """The series that alerts look at are there before anything happens."""
    for code in ("overloaded", "slo", "no_instance", "invalid"):
        _refused.add(0, {"code": code})
    for reason in ("deadline", "stale"):
        dropped.add(0, {"reason": reason})
    for reason in ("guard", "control_group"):
        _cuts.add(0, {"region": "none", "reason": reason})
    probes.add(0)


def placed(plan: Plan, num_prompt_tokens: int) -> None:
    """A plan was made."""
    kind = "whole" if plan.cut is None else "cut"
    _placed.add(1, {"policy": _policy_name(plan.policy), "kind": kind})
    where = region(plan.cut, num_prompt_tokens)
    _cuts.add(1, {"region": where, "reason": reason_code(plan.reason)})
    decision.record(plan.decision_s)


def refused(code: str, predicted_wait_s: float | None) -> None:
    """A question was answered with no."""
    _refused.add(1, {"code": code})
    if predicted_wait_s is not None:
        _wait.record(predicted_wait_s)
