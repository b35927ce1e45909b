"""The whole pool as users meet it: the openai client, real engines, requests cut on the way."""

import asyncio
import json
import statistics
import time
import uuid
from typing import Any

import openai as openai_errors
import pytest
from openai import AsyncOpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam
from openai.types.shared_params import ResponseFormatJSONSchema

from dynaserve.accounts import holdings, leaks, until_balanced
from shared.schemas.segment import EngineAccounts
from tests.integration.pool_client import MODEL, PROMPT, UNCUT, Watcher, cut_at

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

P = len(PROMPT)
MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "Tell me of the boats in the harbour."}
]
TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "size": {"enum": [1, 22, 333]}},
    "required": ["colour", "size"],
    "additionalProperties": False,
}


FORMAT: ResponseFormatJSONSchema = {
    "type": "json_schema",
    "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True},
}


async def test_a_chat_streams_in_one_piece_over_a_cut_and_ends_with_its_usage(
    openai: AsyncOpenAI, watcher: Watcher
) -> None:
    request_id = uuid.uuid4().hex
    whole = await openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=24, temperature=0, extra_body=UNCUT
    )
    assert whole.usage is not None
    stream = await openai.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=cut_at(whole.usage.prompt_tokens + 9),
        extra_headers={"x-request-id": request_id},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    (plan,) = await watcher.plans(request_id)
    assert plan["cut"] == whole.usage.prompt_tokens + 9
    assert plan["alpha_id"] != plan["beta_id"]


@pytest.mark.parametrize("cut", [1, P - 1, P, P + 7])
@pytest.mark.parametrize("transport", ["shm", "tcp"])
async def test_a_completion_with_logprobs_is_the_same_cut_and_uncut(
    openai: AsyncOpenAI, cut: int, transport: str
) -> None:
    async def ask(extra: dict[str, Any]) -> Completion:
        return await openai.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0, logprobs=3, extra_body=extra
        )

    whole, split = await ask(UNCUT), await ask(cut_at(cut, transport))
    assert split.choices[0].text == whole.choices[0].text
    assert split.choices[0].model_extra == whole.choices[0].model_extra  # token ids, stop reason
    assert split.choices[0].logprobs == whole.choices[0].logprobs
    assert split.usage == whole.usage


async def test_each_of_several_choices_is_cut_and_has_its_own_seed(
    openai: AsyncOpenAI, watcher: Watcher
) -> None:
    request_id = uuid.uuid4().hex

    async def ask(extra: dict[str, Any]) -> Completion:
        return await openai.completions.create(
            model=MODEL,
            prompt=PROMPT,
            max_tokens=16,
            temperature=1.0,
            seed=11,
            n=2,
            extra_body=extra,
            extra_headers={"x-request-id": request_id},
        )

    split, whole = await ask(cut_at(P + 4)), await ask(UNCUT)
    texts = [choice.text for choice in sorted(split.choices, key=lambda c: c.index)]
    assert texts == [choice.text for choice in sorted(whole.choices, key=lambda c: c.index)]
    assert texts[0] != texts[1]
    plans = await watcher.plans(request_id, count=4)
    assert sorted(str(plan.get("cut")) for plan in plans) == ["74", "74", "None", "None"]


async def test_output_bound_to_a_json_schema_keeps_to_it_over_the_cut(openai: AsyncOpenAI) -> None:
    answer = await openai.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=150,  # the model likes blanks
        temperature=1.0,
        seed=3,
        response_format=FORMAT,
        extra_body={"vllm_xargs": {"dynaserve_cut": 45}},
    )
    assert answer.choices[0].finish_reason == "stop"
    thing = json.loads(answer.choices[0].message.content or "")
    assert thing["colour"] in ("red", "green")
    assert thing["size"] in (1, 22, 333)


async def test_a_request_with_tools_is_taken(openai: AsyncOpenAI) -> None:
    answer = await openai.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        max_tokens=200,
        temperature=0,
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "weather"


async def test_a_stop_string_that_begins_in_alpha_and_ends_in_beta_is_found(
    openai: AsyncOpenAI, watcher: Watcher
) -> None:
    before = await watcher.accounts()
    probe = await openai.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=20, temperature=0, logprobs=0, extra_body=UNCUT
    )
    texts = (probe.choices[0].logprobs and probe.choices[0].logprobs.tokens) or []
    whole_text = probe.choices[0].text
    index, stop = next(
        (i, texts[i][-1:] + texts[i + 1][:2])
        for i in range(6, 18)
        if whole_text.find(texts[i][-1:] + texts[i + 1][:2]) == len("".join(texts[: i + 1])) - 1
    )
    split = await openai.completions.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=20,
        temperature=0,
        stop=[stop],
        extra_body=cut_at(P + index),  # alpha's last token is the one the string begins in
    )
    assert split.choices[0].finish_reason == "stop"
    assert split.choices[0].text == whole_text[: whole_text.index(stop)]
    await until_balanced(watcher.bus, watcher.subjects, before, 5)


async def leave_in_mid_stream(openai: AsyncOpenAI, watcher: Watcher, cut: int) -> float:
    """Seconds from a client's leaving until no instance holds anything for it."""
    stream = await openai.completions.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=600,
        temperature=0,
        stream=True,
        extra_body=cut_at(cut),
    )
    async for _chunk in stream:
        break
    assert holdings(await watcher.accounts())
    left_s = time.monotonic()
    await stream.close()
    async with asyncio.timeout(5):
        while holdings(await watcher.accounts()):
            pass
    return time.monotonic() - left_s


@pytest.mark.parametrize("cut", [60, P + 200])
async def test_a_client_that_leaves_frees_both_instances_within_100_ms(
    openai: AsyncOpenAI, watcher: Watcher, cut: int
) -> None:
    """With the cut far behind, beta only holds blocks; with it in the prompt, beta decodes."""
    before = await watcher.accounts()
    freed_s = [await leave_in_mid_stream(openai, watcher, cut) for _ in range(5)]
    assert leaks(before, await watcher.accounts()) == []
    assert statistics.median(freed_s) < 0.1, freed_s


async def test_a_prompt_that_is_handed_over_does_not_wait_for_the_decodes_it_finds_to_end(
    openai: AsyncOpenAI,
) -> None:
    ended: list[int] = []
    begun = [asyncio.Event() for _ in range(6)]

    async def decode(number: int) -> None:
        stream = await openai.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=900, stream=True, extra_body=UNCUT
        )
        async for _ in stream:
            begun[number].set()
        ended.append(number)

    decodes = [asyncio.create_task(decode(number)) for number in range(len(begun))]
    try:
        await asyncio.gather(*(each.wait() for each in begun))
        answer = await openai.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=2, extra_body=cut_at(P - 1)
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 2
        assert not ended
    finally:
        for each in decodes:
            each.cancel()
        await asyncio.gather(*decodes, return_exceptions=True)


async def test_ids_are_echoed_and_the_record_tells_the_plan(
    openai: AsyncOpenAI, watcher: Watcher
) -> None:
    raw = await openai.completions.with_raw_response.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=4,
        extra_body=cut_at(P),
        extra_headers={"x-request-id": "my-own-id"},
    )
    assert raw.headers["x-request-id"] == "my-own-id"
    (record,) = await watcher.records("my-own-id")
    assert record["plan"]["reason"].startswith("forced by the request")
    assert {segment["role"] for segment in record["segments"]} == {"alpha", "beta"}
    assert record["num_output_tokens"] == 4


async def test_an_unknown_model_is_not_found(openai: AsyncOpenAI) -> None:
    with pytest.raises(openai_errors.NotFoundError):
        await openai.completions.create(model="other", prompt="a", max_tokens=2)


async def test_a_prompt_longer_than_the_model_is_refused(openai: AsyncOpenAI) -> None:
    with pytest.raises(openai_errors.BadRequestError):
        await openai.completions.create(model=MODEL, prompt=[5] * 3000, max_tokens=2)


@pytest.mark.parametrize("cut", [0, P + 4 - 1, "middle"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_cut_out_of_range_is_refused_by_name(
    openai: AsyncOpenAI, cut: object, stream: bool
) -> None:
    with pytest.raises(openai_errors.BadRequestError) as refused:
        await openai.completions.create(
            model=MODEL,
            prompt=PROMPT,
            max_tokens=4,
            stream=stream,
            extra_body={"vllm_xargs": {"dynaserve_cut": cut}},
        )
    assert refused.value.param == "vllm_xargs.dynaserve_cut"


async def test_a_transport_that_does_not_exist_is_refused_by_name(openai: AsyncOpenAI) -> None:
    with pytest.raises(openai_errors.BadRequestError) as refused:
        await openai.completions.create(
            model=MODEL,
            prompt=PROMPT,
            max_tokens=4,
            extra_body=cut_at(P, "pigeon"),
        )
    assert refused.value.param == "vllm_xargs.dynaserve_transport"


async def test_what_cannot_be_split_runs_uncut_or_is_refused_when_the_cut_is_forced(
    openai: AsyncOpenAI,
) -> None:
    async def ask(extra: dict[str, Any]) -> Completion:
        return await openai.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=4, extra_body={"prompt_logprobs": 1, **extra}
        )

    answer = await ask({})
    assert answer.choices[0].finish_reason in ("length", "stop")
    with pytest.raises(openai_errors.BadRequestError):
        await ask(cut_at(P))


async def test_at_rest_no_instance_holds_anything(watcher: Watcher) -> None:
    def is_at_rest(each: EngineAccounts) -> bool:
        return each.num_requests == 0 and each.free_blocks >= each.num_blocks - 1

    async with asyncio.timeout(5):
        while not all(map(is_at_rest, (await watcher.accounts()).values())):
            pass
    assert holdings(await watcher.accounts()) == []
