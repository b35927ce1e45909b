import asyncio

from dynaserve.certify.run import in_parallel, request_body
from tests.unit.dynaserve.certify.samples import subject


def test_a_request_names_its_cut_and_transport_and_shares_prefixes_by_salt() -> None:
    body = request_body(subject(num_prompt=2), 1, "salt", "tcp")
    assert body == {
        "prompt": [0, 1],
        "max_tokens": 10,
        "cache_salt": "salt",
        "vllm_xargs": {"dynaserve_cut": 1, "dynaserve_transport": "tcp"},
        "temperature": 0,
    }
    assert request_body(subject(), "never", "s")["vllm_xargs"] == {"dynaserve_cut": "never"}


async def test_work_is_done_in_order_with_a_bound_on_what_is_under_way() -> None:
    under_way = most = 0
    counted: list[int] = []

    async def work(number: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return number

    found = await in_parallel([work(n) for n in range(10)], 3, counted.append)
    assert found == list(range(10))
    assert most == 3
    assert counted == list(range(1, 11))
