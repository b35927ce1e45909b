"""Emissions of one step -> one token frame per gateway. The hot path of an instance."""

from collections.abc import Iterable

import msgspec
from pydantic import BaseModel

from services.gpu_instance.engine.seam import Emission
from shared.schemas.message import PROTOCOL_VERSION


def _encode_part(value: object) -> object:
    if isinstance(value, BaseModel):
        # Its own JSON: log-probabilities may be -inf, which msgspec writes as null.
        return msgspec.Raw(value.__pydantic_serializer__.to_json(value))
    raise TypeError(f"cannot send a {type(value).__name__}")


_ENCODER = msgspec.json.Encoder(enc_hook=_encode_part)


def build_frames(
    instance_id: str,
    emissions: Iterable[tuple[str, Emission]],
    sent_s: float | None = None,
) -> list[tuple[str, bytes]]:
    """(gateway, emission) pairs -> (gateway, encoded ``TokenFrame``) pairs, order kept.

    Written as JSON without making the messages: 1 us a delta instead of 5. The tests hold every
    field against ``TokenFrame``.
    """
    deltas: dict[str, list[dict[str, object]]] = {}
    for gateway_id, emission in emissions:
        if is_visible(emission):
            rows = deltas.get(gateway_id)
            if rows is None:
                rows = deltas[gateway_id] = []
            rows.append(_delta(emission))
    return [(gateway_id, _frame(instance_id, rows, sent_s)) for gateway_id, rows in deltas.items()]


def is_visible(emission: Emission) -> bool:
    """True when the gateway has to hear of it: tokens, results or the end of the request."""
    return bool(
        emission.token_ids
        or emission.finish_reason is not None
        or emission.prompt_logprobs is not None
        or emission.pooling_output is not None
    )


def _frame(instance_id: str, rows: list[dict[str, object]], sent_s: float | None) -> bytes:
    frame: dict[str, object] = {
        "v": PROTOCOL_VERSION,
        "kind": "tokens",
        "instance_id": instance_id,
        "deltas": rows,
    }
    if sent_s is not None:
        frame["sent_s"] = sent_s
    return _ENCODER.encode(frame)


def _delta(emission: Emission) -> dict[str, object]:
    delta: dict[str, object] = {
        "request_id": emission.request_id,
        "epoch": emission.epoch,
        "position": emission.position,
        "token_ids": emission.token_ids,
    }
    # Spelled out: a loop over names costs twice as much, and most are None most of the time.
    if emission.logprobs is not None:
        delta["logprobs"] = emission.logprobs
    if emission.num_cached_tokens is not None:
        delta["num_cached_tokens"] = emission.num_cached_tokens
    if emission.queued_s is not None:
        delta["queued_s"] = emission.queued_s
    if emission.num_preemptions:
        delta["num_preemptions"] = emission.num_preemptions
    if emission.finish_reason is not None:
        delta["finish_reason"] = emission.finish_reason
    if emission.stop_reason is not None:
        delta["stop_reason"] = emission.stop_reason
    if emission.prompt_logprobs is not None:
        delta["prompt_logprobs"] = emission.prompt_logprobs
    if emission.pooling_output is not None:
        delta["pooling_output"] = emission.pooling_output
    return delta
