import json

import pytest

from dynaserve.bench.client import finish, slo_headers
from dynaserve.bench.observation import Observation
from dynaserve.bench.slo import SloClass
from dynaserve.bench.sse import CompletionStream
from tests.unit.dynaserve.bench.made import request


def answered(made: int, prompt: int = 10, done: bool = True, extra: bytes = b"") -> Observation:
    seen = Observation(request(prompt_tokens=10, output_tokens=3), 0.0)
    usage = {"prompt_tokens": prompt, "completion_tokens": made}
    stream = CompletionStream()
    for choices in ([{"text": "x"}], []):
        event = json.dumps({"choices": choices, "usage": usage}).encode()
        if tokens := stream.feed(b"data: " + event + b"\n\n"):
            seen.saw_tokens(1.0, tokens)
    stream.feed(extra + (b"data: [DONE]\n\n" if done else b""))
    finish(stream, seen)
    return seen


def test_every_token_asked_for_is_a_success() -> None:
    seen = answered(3)

    assert (seen.outcome, seen.exact, seen.prompt_tokens) == ("ok", True, 10)


@pytest.mark.parametrize(
    ("seen", "detail"),
    [
        (answered(2), "another number of tokens"),
        (answered(3, prompt=11), "another prompt length"),
        (answered(3, done=False), "without [DONE]"),
        (answered(0), "no tokens"),
        (answered(3, extra=b'data: {"error": {"message": "died"}}\n\n'), "died"),
    ],
)
def test_anything_else_failed_and_says_why(seen: Observation, detail: str) -> None:
    assert seen.outcome == "failed"
    assert detail in seen.detail


def test_objectives_go_along_as_headers_only_where_there_are_any() -> None:
    assert slo_headers(SloClass(), request()) == {}
    assert slo_headers(SloClass(tbt_s=0.1), request(traffic_class="c" * 40)) == {
        "x-slo-tpot-ms": "100.000",
        "x-slo-class": "c" * 32,
    }
    assert (
        slo_headers(SloClass(1.0, 0.001), request(prompt_tokens=10))["x-slo-ttft-ms"] == "1010.000"
    )
