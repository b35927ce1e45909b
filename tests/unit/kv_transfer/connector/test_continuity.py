"""A CPU generator that goes on where another engine stopped."""

import torch
from vllm.sampling_params import SamplingParams

from services.kv_transfer.connector.continuity import (
    RewindableGenerator,
    draw_cpu_sample_seed,
    prior_tokens,
    set_prior_tokens,
)


def draws(generator: torch.Generator, count: int) -> list[int]:
    return [int(torch.randint(0, 2**31, (1,), generator=generator)) for _ in range(count)]


def plain(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_starts_behind_the_tokens_that_were_made_elsewhere() -> None:
    generator = RewindableGenerator.after(7, outputs=[11, 12, 13])
    assert draws(generator, 4) == draws(plain(7), 7)[3:]


def test_the_draw_of_a_discarded_chunk_is_taken_back() -> None:
    outputs = [11]
    generator = RewindableGenerator.after(7, outputs)
    draw_cpu_sample_seed(generator)  # a prompt chunk's sample, thrown away
    generator.set_offset(generator.get_offset() - 4)
    assert draws(generator, 2) == draws(plain(7), 3)[1:]


def test_prior_tokens_travel_beside_what_the_user_passed() -> None:
    params = SamplingParams(extra_args={"mine": 1})
    set_prior_tokens(params, [4, 5])
    assert prior_tokens(params) == [4, 5]
    assert params.extra_args is not None
    assert params.extra_args["mine"] == 1
    assert prior_tokens(SamplingParams()) == []
    assert prior_tokens(None) == []
