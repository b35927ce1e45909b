"""What a gateway counts. GenAI names where the semantic conventions have one."""

from services.gateway.in_flight import InFlight
from shared.telemetry import counter, histogram, up_down

_LATENCY_S = [0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]
_TOKEN_S = [0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0]
_PLACE_S = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0]

in_flight = up_down("dynaserve_gateway_requests_in_flight", "requests not yet over", "request")
recoveries = counter("dynaserve_gateway_recoveries", "placements made anew, by cause", "recovery")
refused = counter("dynaserve_gateway_deltas_refused", "late, doubled or unknown tokens", "delta")
_requests = counter("dynaserve_gateway_requests", "requests over, by outcome", "request")
_slo = counter("dynaserve_gateway_slo", "requests over, by class and whether both SLOs held")
_place = histogram("dynaserve_gateway_place", "wait for a placement", _PLACE_S)
_ttft = histogram("gen_ai.server.time_to_first_token", "arrival to first token", _LATENCY_S)
_tpot = histogram("gen_ai.server.time_per_output_token", "mean gap between tokens", _TOKEN_S)


def observe_over(entry: InFlight, slo_met: bool) -> None:
    """Count a request that is over."""
    _requests.add(1, {"outcome": entry.outcome or "error"})
    if entry.outcome != "abort":
        _slo.add(1, {"slo": entry.ask.request.slo.name, "met": str(slo_met).lower()})
    _place.record(entry.place_s)
    if (ttft_s := entry.timeline.ttft_s) is not None:
        _ttft.record(ttft_s)
    if (tpot_s := entry.timeline.tpot_s) is not None:
        _tpot.record(tpot_s)
