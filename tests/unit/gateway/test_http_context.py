"""What the headers of a request say."""

import pytest

from services.gateway.http_context import read_context
from services.gateway.settings import GatewaySettings
from shared.errors import InvalidRequest

SETTINGS = GatewaySettings(slo_ttft_ms=5000, slo_tbt_ms=50)


def test_without_headers_the_settings_hold_and_an_id_is_made() -> None:
    first, second = read_context({}, SETTINGS), read_context({}, SETTINGS)
    assert (first.slo.ttft_s, first.slo.tbt_s, first.slo.name) == (5.0, 0.05, "default")
    assert first.trace_headers is None
    assert first.request_id != second.request_id


def test_headers_set_objectives_id_and_trace() -> None:
    context = read_context(
        {
            "x-request-id": "mine",
            "x-slo-ttft-ms": "250",
            "x-slo-tpot-ms": "12.5",
            "x-slo-class": "chat",
            "traceparent": "00-1-2-01",
        },
        SETTINGS,
    )
    assert context.request_id == "mine"
    assert (context.slo.ttft_s, context.slo.tbt_s, context.slo.name) == (0.25, 0.0125, "chat")
    assert context.trace_headers == {"traceparent": "00-1-2-01"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-slo-ttft-ms", "soon"),
        ("x-slo-ttft-ms", "0"),
        ("x-slo-tpot-ms", "-1"),
        ("x-slo-tpot-ms", "nan"),
        ("x-slo-tpot-ms", "inf"),
        ("x-slo-class", "c" * 33),
        ("x-request-id", ""),
        ("x-request-id", "i" * 129),
        ("x-request-id", "a\x00b"),
    ],
)
def test_a_malformed_header_is_named(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_context({name: value}, SETTINGS)
    assert (caught.value.param or "").lower() == name
