"""What a gateway counts. GenAI names where the semantic conventions have one.

Everything is recorded once per request, from its record, when it is over.
"""

from collections.abc import Callable

from services.gateway.phases import ttft_phases
from shared.cuts import reason_code, region
from shared.schemas.events import RequestRecord
from shared.schemas.request import Slo
from shared.telemetry import (
    Attributes,
    BoundedNames,
    Gauge,
    counter,
    gauge,
    histogram,
    signed_histogram,
    up_down,
)

# Bucket bounds of the semantic conventions.
_TTFT_S = [
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0),
]
_TOKEN_S = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5]
_REQUEST_S = [0.01 * 2**n for n in range(14)]
_PLACE_S = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0]
_ERROR_S = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
_ERROR_TOKENS = [0.0, 4.0, 16.0, 64.0, 256.0, 1024.0]
_WAIT_S = [0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0]

in_flight = up_down("dynaserve_gateway_requests_in_flight", "requests not yet over", "request")
recoveries = counter("dynaserve_gateway_recoveries", "placements made anew, by cause", "recovery")
refused = counter("dynaserve_gateway_deltas_refused", "late, doubled or unknown tokens", "delta")
instances_lost = counter("dynaserve_instances_lost", "instances that left the pool", "instance")

_ttft = histogram("gen_ai.server.time_to_first_token", "arrival to first token", _TTFT_S)
_tpot = histogram("gen_ai.server.time_per_output_token", "mean gap between tokens", _TOKEN_S)
_duration = histogram("gen_ai.server.request.duration", "arrival to last token", _REQUEST_S)
_tbt_p99 = histogram("dynaserve_tbt_p99_seconds", "P99 gap between one request's tokens", _TOKEN_S)
_place = histogram("dynaserve_gateway_place_seconds", "wait for a placement", _PLACE_S)
_phase = histogram("dynaserve_ttft_phase_seconds", "parts of the time to first token", _TTFT_S)

_requests = counter("dynaserve_gateway_requests", "requests over, by outcome", "request")
_judged = counter("dynaserve_slo_requests", "requests held to an objective", "request")
_good = counter("dynaserve_slo_good_requests", "requests that met the objective", "request")
_output = counter("dynaserve_output_tokens", "tokens made for clients", "token")
_prompt = counter("dynaserve_prompt_tokens", "tokens of prompts", "token")
_goodput = counter("dynaserve_goodput_tokens", "tokens of requests that met both SLOs", "token")
_groups = counter(
    "dynaserve_control_requests", "requests by group of the comparison and SLO", "request"
)
_refusals = counter("dynaserve_refused_requests", "requests refused, by reason", "request")
_wait = histogram("dynaserve_refused_wait_seconds", "wait predicted to the refused", _WAIT_S)
_ttft_error = signed_histogram(
    "dynaserve_ttft_prediction_error_seconds", "real less predicted TTFT", _ERROR_S
)
_length_error = signed_histogram(
    "dynaserve_output_length_error_tokens",
    "real less predicted output length",
    _ERROR_TOKENS,
    unit="token",
)
_objective = gauge("dynaserve_slo_objective_seconds", "objective the class last asked for", "s")

FINISHED = frozenset({"stop", "length", "repetition"})
OBJECTIVES = ("ttft", "tbt", "both")


class RequestMeter:
    """Counts requests that are over. SLO classes come from clients: only so many are told apart."""

    def __init__(self, model: str = "") -> None:
        self._class_name = BoundedNames()
        self._model = model
        self._slos: dict[str, Slo] = {}
        instances_lost.add(0, {"how": "lost"})
        for reason in ("unknown", "late or doubled"):
            refused.add(0, {"reason": reason})
        for code in ("instance_lost", "handoff_lost", "engine_failed", "tokens_lost"):
            recoveries.add(0, {"code": code})
        for outcome in ("stop", "length", "abort", "error", "refused"):
            _requests.add(0, {"outcome": outcome})
        for reason in ("overloaded", "other"):
            _refusals.add(0, {"reason": reason})

    def over(self, record: RequestRecord, operation: str = "text_completion") -> None:
        """A request's record is complete."""
        _requests.add(1, {"outcome": record.outcome})
        slo_class = {"slo_class": self._class_name(record.slo.name)}
        self._show_objectives(slo_class["slo_class"], record.slo)
        _prompt.add(record.num_prompt_tokens, slo_class)
        _output.add(record.num_output_tokens, slo_class)
        _goodput.add(record.num_output_tokens if record.slo_met else 0, slo_class)
        if record.outcome != "abort":  # a client that left judges nothing
            self._judge(record, slo_class)
        self._time(record, slo_class, operation)
        self._compare(record)

    def refused(self, reason: str, predicted_wait_s: float | None) -> None:
        """A request was turned away before anything of it ran."""
        _refusals.add(1, {"reason": reason})
        if predicted_wait_s is not None:
            _wait.record(predicted_wait_s)

    def _judge(self, record: RequestRecord, slo_class: dict[str, str]) -> None:
        for objective, met in zip(OBJECTIVES, _met(record), strict=True):
            attributes = {**slo_class, "objective": objective}
            _judged.add(1, attributes)
            _good.add(met, attributes)
        if record.plan is not None and reason_code(record.plan.reason) != "forced":
            _groups.add(1, {"group": _group(record), "slo": "met" if record.slo_met else "missed"})

    def _time(self, record: RequestRecord, slo_class: dict[str, str], operation: str) -> None:
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "dynaserve",
            "gen_ai.request.model": self._model,
            **slo_class,
        }
        if record.outcome in FINISHED:
            _duration.record(record.e2e_s, attributes)
        else:
            _duration.record(record.e2e_s, {**attributes, "error.type": record.outcome})
        _place.record(record.place_s)
        if record.ttft_s is not None:
            _ttft.record(record.ttft_s, attributes)
            for phase, spent_s in ttft_phases(record).items():
                _phase.record(spent_s, {"phase": phase})
        if record.tpot_s is not None:
            _tpot.record(record.tpot_s, attributes)
        if record.tbt_p99_s is not None:
            _tbt_p99.record(record.tbt_p99_s, slo_class)

    def _compare(self, record: RequestRecord) -> None:
        """Predicted against real; a request that was placed anew is no judge of a prediction."""
        plan = record.plan
        if plan is None or record.epochs > 1 or record.outcome not in FINISHED:
            return
        if plan.chosen is not None and record.ttft_s is not None:
            where = {"region": region(plan.cut, record.num_prompt_tokens)}
            _ttft_error.record(record.ttft_s - plan.chosen.ttft_s, where)
        if plan.predicted_output_tokens is not None:
            _length_error.record(record.num_output_tokens - plan.predicted_output_tokens)

    def _show_objectives(self, name: str, slo: Slo) -> None:
        is_new = name not in self._slos
        self._slos[name] = slo
        if is_new:
            _watch(_objective, lambda: self._slos[name].ttft_s, name, "ttft")
            _watch(_objective, lambda: self._slos[name].tbt_s, name, "tbt")


def _watch(shown: Gauge, read: Callable[[], float], name: str, objective: str) -> None:
    attributes: Attributes = {"slo_class": name, "objective": objective}
    shown.watch(read, attributes)


def _met(record: RequestRecord) -> tuple[bool, bool, bool]:
    """Whether TTFT, gaps, and both were in time. What did not finish missed everything."""
    if record.outcome not in FINISHED:
        return False, False, False
    ttft = record.ttft_s is not None and record.ttft_s <= record.slo.ttft_s
    tbt = record.tbt_p99_s is None or record.tbt_p99_s <= record.slo.tbt_s
    return ttft, tbt, record.slo_met


def _group(record: RequestRecord) -> str:
    """The control group is never cut; 'cut' and 'uncut' are what the policy chose for the rest."""
    if record.plan is None or record.plan.control_group:
        return "control"
    return "uncut" if record.plan.cut is None else "cut"
