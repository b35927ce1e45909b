from dataclasses import replace

import pytest

from dynaserve.certify.outcome import Outcome, compare
from tests.unit.dynaserve.certify.samples import PROBE

CHOICE = {
    "text": " a b",
    "token_ids": [7, 8],
    "finish_reason": "stop",
    "stop_reason": 8,
    "logprobs": {
        "tokens": [" a", " b"],
        "token_logprobs": [-0.5, None],
        "top_logprobs": [{" a": -0.5}, None],
    },
}


def test_a_choice_is_read_with_and_without_logprobs() -> None:
    outcome = Outcome.from_choice(CHOICE)
    assert (outcome.token_ids, outcome.stop_reason) == ((7, 8), 8)
    assert outcome.logprobs == (-0.5, None)
    assert outcome.top_logprobs == ({" a": -0.5}, {})
    bare = Outcome.from_choice({**CHOICE, "logprobs": None})
    assert bare.logprobs == ()
    assert bare.token_texts == ()


def test_an_outcome_equals_itself() -> None:
    assert compare(PROBE, PROBE, 0.0).difference is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"token_ids": (*PROBE.token_ids[:4], 9, *PROBE.token_ids[5:])}, "token 4 is 9, not 104"),
        ({"token_ids": PROBE.token_ids[:-1]}, "token 9 is None, not 109"),
        ({"token_ids": (*PROBE.token_ids, 1)}, "token 10 is 1, not None"),
        ({"text": "other"}, "text is 'other'"),
        ({"finish_reason": "stop"}, "finish_reason is 'stop', not 'length'"),
        ({"stop_reason": 3}, "stop_reason is 3"),
        ({"logprobs": PROBE.logprobs[:-1]}, "9 logprobs, not 10"),
        ({"logprobs": (*PROBE.logprobs[:-1], -1.4)}, "logprobs of output token 9 differ by 0.5"),
        ({"logprobs": (*PROBE.logprobs[:-1], None)}, "differ by inf"),
        ({"top_logprobs": ({" the": -9.0}, *PROBE.top_logprobs[1:])}, "token 0 differ by 8.9"),
        ({"top_logprobs": ({" x": -0.1}, *PROBE.top_logprobs[1:])}, "token 0 differ by inf"),
    ],
)
def test_the_first_difference_is_named(change: dict[str, object], named: str) -> None:
    other = replace(PROBE, **change)  # type: ignore[arg-type]
    assert named in (compare(PROBE, other, 1e-3).difference or "")


def test_rounding_within_the_tolerance_is_measured_and_let_pass() -> None:
    rounded = replace(PROBE, logprobs=(*PROBE.logprobs[:-1], -0.9 + 1e-5))
    compared = compare(PROBE, rounded, 1e-4)
    assert compared.difference is None
    assert compared.max_logprob_difference == pytest.approx(1e-5)
