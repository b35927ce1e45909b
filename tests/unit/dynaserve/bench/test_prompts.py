from hypothesis import given
from hypothesis import strategies as st

from dynaserve.bench.prompts import STOCK_TOKENS, Prompts
from dynaserve.sim.traces import SimRequest


def made(name: str, tokens: int, prefix: str = "", prefix_tokens: int = 0) -> SimRequest:
    return SimRequest(name, 0.0, tokens, 1, "made", prefix, prefix_tokens)


def ids(prompts: Prompts, request: SimRequest) -> list[int]:
    return [int(each) for each in prompts.ids(request).split(",")]


PROMPTS = Prompts(2048, seed=3)


@given(st.text(max_size=5), st.integers(1, 3000), st.integers(0, 4000))
def test_a_prompt_has_exactly_its_tokens_all_in_the_vocabulary(
    name: str, tokens: int, prefix_tokens: int
) -> None:
    found = ids(PROMPTS, made(name, tokens, "p", prefix_tokens))

    assert len(found) == tokens
    assert all(0 <= each < 2048 for each in found)


def test_prompts_longer_than_the_stock_are_whole_too() -> None:
    assert len(ids(PROMPTS, made("long", 2 * STOCK_TOKENS + 5))) == 2 * STOCK_TOKENS + 5


def test_the_same_seed_gives_the_same_prompt_and_another_seed_another() -> None:
    request = made("r", 50)

    assert ids(Prompts(2048, 3), request) == ids(PROMPTS, request)
    assert ids(Prompts(2048, 4), request)[:8] != ids(PROMPTS, request)[:8]


def test_requests_share_no_first_block_unless_they_share_a_prefix() -> None:
    assert ids(PROMPTS, made("a", 64))[:8] != ids(PROMPTS, made("b", 64))[:8]
    one, other = (ids(PROMPTS, made(name, 64, "p", 40)) for name in "ab")
    assert one[:40] == other[:40]
    assert one[40:] != other[40:]


def test_a_tiny_vocabulary_is_enough() -> None:
    assert set(ids(Prompts(3, 0), made("a", 100))) <= {0, 1, 2}
