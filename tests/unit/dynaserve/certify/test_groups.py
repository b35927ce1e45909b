from dataclasses import replace

import pytest

from dynaserve.certify.groups import GROUPS, straddling_string
from tests.unit.dynaserve.certify.samples import PROBE


@pytest.mark.parametrize("name", GROUPS)
def test_every_group_makes_a_deterministic_request(name: str) -> None:
    body = GROUPS[name](PROBE, 5)
    assert body is not None
    assert body["temperature"] == 0 or "seed" in body


def test_the_stop_string_begins_in_one_token_and_ends_in_the_next() -> None:
    found = straddling_string(PROBE)
    assert found == "ea a"  # " sea" + " and"
    assert all(found not in text for text in PROBE.token_texts)


def test_no_stop_string_is_made_from_tokens_without_text() -> None:
    blank = replace(PROBE, token_texts=("",) * 10, text="")
    assert straddling_string(blank) is None
    assert GROUPS["stop_string"](blank, 1) is None
    assert GROUPS["stop_string_included"](blank, 1) is None


def test_a_stop_token_comes_up_for_the_first_time_in_the_second_half() -> None:
    repeated = replace(PROBE, token_ids=(1, 2, 3, 4, 5, 1, 2, 9, 9, 9))
    assert (GROUPS["stop_token_ids"](repeated, 1) or {})["stop_token_ids"] == [9]
    assert GROUPS["stop_token_ids"](replace(PROBE, token_ids=(1,) * 10), 1) is None


def test_bad_words_are_words_of_the_probe() -> None:
    assert (GROUPS["bad_words"](PROBE, 1) or {})["bad_words"] == sorted(
        ["the", "red", "boat", "is", "at", "sea", "and", "far", "off"]
    )[:6]
    assert GROUPS["bad_words"](replace(PROBE, token_texts=("1",) * 10), 1) is None
