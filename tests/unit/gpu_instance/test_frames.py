"""Frames written by hand must read as the messages they stand for."""

from hypothesis import given
from hypothesis import strategies as st

from services.gpu_instance.engine.seam import Emission
from services.gpu_instance.frames import build_frames
from shared.schemas.tokens import GATEWAY, TokenDelta, TokenFrame, TokenLogprobs

TOKENS = st.lists(st.integers(0, 2**31), max_size=3)
FLOATS = st.floats(-1e3, 1e3, allow_nan=False)
LOGPROBS = st.builds(
    TokenLogprobs,
    token_ids=st.lists(TOKENS, max_size=2),
    # A token that must not come has -inf.
    logprobs=st.lists(st.lists(FLOATS | st.just(float("-inf")), max_size=3), max_size=2),
    ranks=TOKENS,
)
EMISSIONS = st.builds(
    Emission,
    request_id=st.text(min_size=1, max_size=8),
    epoch=st.integers(1, 9),
    role=st.sampled_from(["whole", "alpha", "beta"]),
    position=st.integers(0, 10**6),
    token_ids=TOKENS,
    logprobs=st.none() | LOGPROBS,
    prompt_logprobs=st.none() | LOGPROBS,
    pooling_output=st.none() | st.lists(FLOATS) | st.lists(st.lists(FLOATS, min_size=1)),
    finish_reason=st.none() | st.sampled_from(["stop", "length", "abort", "error", "repetition"]),
    stop_reason=st.none() | st.integers(0, 9) | st.text(max_size=3),
    num_cached_tokens=st.none() | st.integers(0, 99),
    queued_s=st.none() | st.floats(0, 9),
    num_preemptions=st.integers(0, 3),
)


def said(emission: Emission) -> TokenDelta | None:
    """The delta, made the plain way; None when there is nothing to say."""
    fields = {name: getattr(emission, name) for name in TokenDelta.model_fields}
    silent = (emission.finish_reason, emission.prompt_logprobs, emission.pooling_output)
    if not emission.token_ids and silent == (None, None, None):
        return None
    return TokenDelta.model_validate(fields)


@given(st.lists(st.tuples(st.sampled_from("gh"), EMISSIONS), max_size=5))
def test_each_gateway_gets_its_deltas_in_order_with_every_field(
    emissions: list[tuple[str, Emission]],
) -> None:
    expected: dict[str, list[TokenDelta]] = {}
    for gateway_id, emission in emissions:
        delta = said(emission)
        if delta is not None:
            expected.setdefault(gateway_id, []).append(delta)
    frames = build_frames("i", emissions)
    read = {gateway_id: GATEWAY.validate_json(frame) for gateway_id, frame in frames}
    assert read == {
        gateway_id: TokenFrame(instance_id="i", deltas=deltas)
        for gateway_id, deltas in expected.items()
    }
