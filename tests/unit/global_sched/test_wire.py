"""Segments as bytes."""

from hypothesis import given
from hypothesis import strategies as st

from services.global_sched.wire import segment_messages
from shared.bus import encode
from shared.schemas.message import pack_tokens
from shared.schemas.place import PLACE
from shared.schemas.segment import HandoffRef, Segment
from tests.unit.global_sched.pool_stage import question

REF = HandoffRef(handoff_id="r.1", cut=3, peer_id="b", coordinator_id="c", deadline_s=9.5)


@given(
    tokens=st.lists(st.integers(0, 2**32 - 1), max_size=20),
    salt=st.one_of(st.none(), st.text(max_size=8)),
    stop=st.text(max_size=8),
)
def test_a_segment_reads_as_if_it_had_been_encoded_whole(
    tokens: list[int], salt: str | None, stop: str
) -> None:
    params = {"stop": [stop, '"request":{}']}
    asked = question(prompt_token_ids=pack_tokens(tokens), cache_salt=salt, sampling_params=params)
    place_json = encode(asked)
    request = PLACE.validate_json(place_json).request
    segments = [
        ("a", Segment(role="alpha", epoch=1, gateway_id="g", request=request, handoff=REF)),
        ("b", Segment(role="whole", epoch=1, gateway_id="g", request=request, sent_s=2.0)),
    ]
    sent = [
        (name, Segment.model_validate_json(message))
        for name, message in segment_messages(segments, place_json)
    ]
    assert sent == segments
