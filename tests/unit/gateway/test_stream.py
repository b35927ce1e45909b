"""Tokens reach the client exactly once and in order, however they arrive."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway import stream
from services.gateway.stream import GapTooLarge, TokenStream, trim
from shared.schemas.tokens import TokenDelta, TokenLogprobs

P = 7


def delta(position: int, tokens: list[int], epoch: int = 1, finish: bool = False) -> TokenDelta:
    return TokenDelta(
        request_id="r",
        epoch=epoch,
        position=position,
        token_ids=tokens,
        logprobs=TokenLogprobs(
            token_ids=[[t] for t in tokens],
            logprobs=[[-float(t)] for t in tokens],
            ranks=[1] * len(tokens),
        ),
        finish_reason="length" if finish else None,
    )


def fresh() -> TokenStream:
    new = TokenStream(P)
    new.restart(1)
    return new


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[list[int], list[TokenDelta]]:
    """A sequence, and deltas that cover it: overlapping, doubled, stale, in any order."""
    tokens = draw(st.lists(st.integers(0, 999), min_size=1, max_size=30))
    cuts = draw(st.lists(st.integers(0, len(tokens)), max_size=8))
    edges = sorted({0, len(tokens), *cuts})
    pieces = [
        delta(P + a, tokens[a:b], finish=b == len(tokens)) for a, b in itertools.pairwise(edges)
    ]
    spans = draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=6))
    for a, b in spans:
        low, high = sorted((min(a, len(tokens)), min(b, len(tokens))))
        if low < high:
            pieces.append(delta(P + low, tokens[low:high], finish=high == len(tokens)))
    pieces += [delta(P, [1000], epoch=0), delta(P + 2, [1001], epoch=2)]
    return tokens, draw(st.permutations(pieces))


@given(arrivals())
def test_every_token_comes_out_once_and_in_order(case: tuple[list[int], list[TokenDelta]]) -> None:
    tokens, deltas = case
    subject = fresh()
    delivered = [each for d in deltas for each in subject.accept(d)]
    assert [t for d in delivered for t in d.token_ids] == tokens
    assert subject.token_ids == tokens
    assert [d.finish_reason for d in delivered if d.finish_reason] == ["length"]
    assert delivered[-1].finish_reason == "length"
    position = P
    for each in delivered:
        assert each.position == position
        assert each.logprobs is not None
        assert each.logprobs.token_ids == [[t] for t in each.token_ids]
        assert len(each.logprobs.ranks) == len(each.token_ids)
        position += len(each.token_ids)


@given(arrivals())
def test_no_token_overtakes_an_earlier_one(case: tuple[list[int], list[TokenDelta]]) -> None:
    tokens, deltas = case
    subject = fresh()
    for each in deltas:
        before = len(subject.token_ids)
        ready = subject.accept(each)
        assert subject.token_ids == tokens[: len(subject.token_ids)]
        assert sum(len(d.token_ids) for d in ready) == len(subject.token_ids) - before


def test_a_delta_in_order_is_passed_on_as_it_is() -> None:
    first = delta(P, [1])
    assert fresh().accept(first) == [first]


def test_a_gap_holds_tokens_back_until_it_closes() -> None:
    subject = fresh()
    assert subject.accept(delta(P + 1, [2], finish=True)) == []
    assert subject.has_gap
    ready = subject.accept(delta(P, [1]))
    assert [d.token_ids for d in ready] == [[1], [2]]
    assert not subject.has_gap
    assert subject.finished


def test_another_epoch_is_refused() -> None:
    subject = fresh()
    subject.accept(delta(P, [1]))
    subject.restart(2)
    assert subject.accept(delta(P + 1, [9], epoch=1)) == []
    assert subject.num_refused == 1
    assert subject.accept(delta(P + 1, [2], epoch=2)) != []
    assert subject.token_ids == [1, 2]


def test_what_waited_is_forgotten_with_its_epoch() -> None:
    subject = fresh()
    subject.accept(delta(P + 1, [9]))
    subject.restart(2)
    subject.accept(delta(P, [1], epoch=2))
    assert subject.token_ids == [1]


def test_nothing_is_delivered_after_the_end() -> None:
    subject = fresh()
    subject.accept(delta(P, [1], finish=True))
    assert subject.accept(delta(P + 1, [2])) == []


def test_an_end_without_tokens_is_delivered() -> None:
    subject = fresh()
    subject.accept(delta(P, [1]))
    ready = subject.accept(delta(P + 1, [], finish=True))
    assert [d.finish_reason for d in ready] == ["length"]


def test_an_end_whose_tokens_are_all_known_is_delivered_without_them() -> None:
    subject = fresh()
    subject.accept(delta(P, [1, 2]))
    ready = subject.accept(delta(P, [1, 2], finish=True))
    assert [(d.token_ids, d.finish_reason) for d in ready] == [([], "length")]


def test_a_gap_that_does_not_close_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_BUFFERED_TOKENS", 3)
    subject = fresh()
    subject.accept(delta(P + 1, [1, 2, 3]))
    with pytest.raises(GapTooLarge, match="position 7"):
        subject.accept(delta(P + 4, [4]))


def test_trimming_keeps_what_has_no_logprobs() -> None:
    bare = TokenDelta(request_id="r", epoch=1, position=3, token_ids=[1, 2])
    assert trim(bare, 1) == TokenDelta(request_id="r", epoch=1, position=4, token_ids=[2])
    assert trim(bare, 2) is None
    assert trim(bare, 3) is None
