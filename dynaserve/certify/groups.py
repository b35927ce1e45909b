"""Ways of sampling that a cut must not change. One function and one line in ``GROUPS`` each. Pure.

A group sees what the same prompt gives under greedy decoding (the probe), so that its stop strings,
stop tokens and forbidden words are some that really come up.
"""

from collections.abc import Callable
from itertools import accumulate

from pydantic import JsonValue

from dynaserve.certify.outcome import Outcome

Body = dict[str, JsonValue]
Group = Callable[[Outcome, int], Body | None]
"""(probe, seed) -> sampling part of the request; None when the probe does not lend itself."""

JSON_SCHEMA: Body = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "sizes": {"type": "array", "items": {"enum": [1, 2, 3, 44, 555]}, "minItems": 3},
    },
    "required": ["colour", "sizes"],
    "additionalProperties": False,
}


def greedy(probe: Outcome, seed: int) -> Body | None:
    return {"temperature": 0, "logprobs": 1}


def without_logprobs(probe: Outcome, seed: int) -> Body | None:
    return {"temperature": 0}


def logprobs(probe: Outcome, seed: int) -> Body | None:
    return {"temperature": 0, "logprobs": 5}


def seeded(probe: Outcome, seed: int) -> Body | None:
    return {"temperature": 1.0, "seed": seed, "logprobs": 1}


def seeded_top(probe: Outcome, seed: int) -> Body | None:
    return {"temperature": 0.9, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "seed": seed}


def presence_penalty(probe: Outcome, seed: int) -> Body | None:
    return {"temperature": 0, "presence_penalty": 1.5, "logprobs": 1}


def frequency_penalty(probe: Outcome, seed: int) -> Body | None:
    return {"temperature": 0, "frequency_penalty": 1.0, "logprobs": 1}


def repetition_penalty(probe: Outcome, seed: int) -> Body | None:
    return {"temperature": 0, "repetition_penalty": 1.3, "logprobs": 1}


def seeded_penalties(probe: Outcome, seed: int) -> Body | None:
    return {"temperature": 0.8, "seed": seed, "presence_penalty": 0.8, "frequency_penalty": 0.6}


def min_tokens(probe: Outcome, seed: int) -> Body | None:
    """A stop token that wants to come early must wait for the minimum, counted over both parts."""
    return {
        "temperature": 0,
        "stop_token_ids": [probe.token_ids[1]],
        "min_tokens": 2 * len(probe.token_ids) // 3,
        "logprobs": 1,
    }


def bad_words(probe: Outcome, seed: int) -> Body | None:
    words = {text.strip() for text in probe.token_texts if text.strip().isalpha()}
    forbidden: list[JsonValue] = [*sorted(words)[:6]]
    return {"temperature": 0, "bad_words": forbidden, "logprobs": 1} if words else None


def logit_bias(probe: Outcome, seed: int) -> Body | None:
    biased = {str(token): -4.0 for token in probe.token_ids[:4]}
    return {"temperature": 0, "logit_bias": {**biased, str(probe.token_ids[-1]): 2.0}}


def stop_token_ids(probe: Outcome, seed: int) -> Body | None:
    """A token that comes up for the first time late in the output ends it there."""
    ids = probe.token_ids
    late = [i for i in range(len(ids) // 2, len(ids) - 1) if ids[i] not in ids[:i]]
    return {"temperature": 0, "stop_token_ids": [ids[late[0]]], "logprobs": 1} if late else None


def stop_string(probe: Outcome, seed: int) -> Body | None:
    """A string made of the end of one token and the start of the next ends the output there."""
    found = straddling_string(probe)
    return {"temperature": 0, "stop": [found], "logprobs": 1} if found else None


def stop_string_included(probe: Outcome, seed: int) -> Body | None:
    found = straddling_string(probe)
    return (
        {"temperature": 0, "stop": [found], "include_stop_str_in_output": True} if found else None
    )


def regex(probe: Outcome, seed: int) -> Body | None:
    return {
        "temperature": 1.0,
        "seed": seed,
        "structured_outputs": {"regex": "[a-f]{9,14}-[0-9]{6,12}-(yes|no)"},
        "ignore_eos": False,
        "logprobs": 1,
    }


def json_schema(probe: Outcome, seed: int) -> Body | None:
    schema: Body = {"name": "thing", "schema": JSON_SCHEMA}
    return {
        "temperature": 1.0,
        "seed": seed,
        "response_format": {"type": "json_schema", "json_schema": schema},
        "ignore_eos": False,
        "logprobs": 1,
    }


GROUPS: dict[str, Group] = {
    "greedy": greedy,
    "without_logprobs": without_logprobs,
    "logprobs": logprobs,
    "seeded": seeded,
    "seeded_top": seeded_top,
    "presence_penalty": presence_penalty,
    "frequency_penalty": frequency_penalty,
    "repetition_penalty": repetition_penalty,
    "seeded_penalties": seeded_penalties,
    "min_tokens": min_tokens,
    "bad_words": bad_words,
    "logit_bias": logit_bias,
    "stop_token_ids": stop_token_ids,
    "stop_string": stop_string,
    "stop_string_included": stop_string_included,
    "regex": regex,
    "json_schema": json_schema,
}


def straddling_string(probe: Outcome) -> str | None:
    """A string whose first occurrence in the text begins in one token and ends in the next."""
    texts = probe.token_texts
    ends = list(accumulate(len(text) for text in texts))
    for index in range(len(texts) // 2, len(texts) - 1):
        head, tail = texts[index][-2:], texts[index + 1][:2]
        candidate = head + tail
        if head and tail and candidate.isascii() and candidate.isprintable():
            if "".join(texts).find(candidate) == ends[index] - len(head):
                return candidate
    return None
