"""Observations made by hand, for tests of what is computed from them."""

from dynaserve.bench.observation import Observation, Outcome
from dynaserve.sim.traces import SimRequest


def request(
    request_id: str = "r-0",
    arrival_s: float = 0.0,
    prompt_tokens: int = 10,
    output_tokens: int = 3,
    traffic_class: str = "made",
) -> SimRequest:
    return SimRequest(request_id, arrival_s, prompt_tokens, output_tokens, traffic_class)


def observation(
    ttft_s: float = 0.1,
    gaps_s: tuple[float, ...] = (0.02, 0.02),
    outcome: Outcome = "ok",
    due_s: float = 100.0,
    traffic_class: str = "made",
    prompt_tokens: int = 10,
) -> Observation:
    """One token a chunk: the first after ``ttft_s``, the others after these gaps."""
    made = request(
        prompt_tokens=prompt_tokens, output_tokens=1 + len(gaps_s), traffic_class=traffic_class
    )
    seen = Observation(made, due_s, sent_s=due_s, outcome=outcome)
    at_s = due_s + ttft_s
    seen.saw_tokens(at_s, 1)
    for gap_s in gaps_s:
        at_s += gap_s
        seen.saw_tokens(at_s, 1)
    seen.done_s = at_s
    return seen
