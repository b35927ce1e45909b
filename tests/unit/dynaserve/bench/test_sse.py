import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dynaserve.bench.sse import CompletionStream, Usage


def chunk(made: int | None, text: str = "x") -> bytes:
    content: dict[str, object] = {"choices": [{"index": 0, "text": text}]}
    if made is not None:
        content["usage"] = {"prompt_tokens": 7, "total_tokens": 7 + made, "completion_tokens": made}
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def final(made: int, cached: int | None = None) -> bytes:
    usage: dict[str, object] = {"prompt_tokens": 7, "completion_tokens": made}
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def test_counts_tokens_of_each_chunk_exactly() -> None:
    stream = CompletionStream()

    assert [stream.feed(chunk(made)) for made in (1, 2, 5)] == [1, 1, 3]
    assert stream.feed(final(5, cached=4) + DONE) == 0
    assert stream.ended and stream.exact and stream.continuous
    assert stream.usage == Usage(7, 5, 4)


def test_without_usage_a_chunk_with_text_is_one_token_and_known_to_be_inexact() -> None:
    stream = CompletionStream()

    assert stream.feed(chunk(None) + chunk(None, text="") + chunk(None)) == 2
    stream.feed(DONE)
    assert stream.ended and not stream.exact and stream.usage is None


def test_the_final_account_betrays_chunks_of_several_tokens() -> None:
    stream = CompletionStream()
    stream.feed(chunk(None) + final(3) + DONE)

    assert stream.tokens == 1
    assert not stream.exact


def test_text_that_looks_like_a_count_is_not_one() -> None:
    stream = CompletionStream()

    assert stream.feed(chunk(1, text='"completion_tokens":99')) == 1


def test_comments_and_other_fields_are_passed_over() -> None:
    stream = CompletionStream()

    assert stream.feed(b": ping\r\n\r\nevent: x\r\n" + chunk(1).replace(b"\n", b"\r\n")) == 1


def test_an_error_in_the_stream_is_kept() -> None:
    stream = CompletionStream()
    stream.feed(b'data: {"error": {"message": "engine died"}}\n\n')

    assert stream.error is not None and "engine died" in stream.error
    assert not stream.ended


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=20), st.lists(st.integers(0, 3000), max_size=9)
)
def test_pieces_may_end_anywhere(tokens: list[int], cuts: list[int]) -> None:
    made = [sum(tokens[: n + 1]) for n in range(len(tokens))]
    whole = b"".join(chunk(each) for each in made) + final(made[-1]) + DONE
    edges = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    stream = CompletionStream()
    found = sum(stream.feed(whole[a:b]) for a, b in pairwise(edges))

    assert found == made[-1]
    assert stream.exact and stream.ended
