"""Prompts may come as an iterator, which can be read once."""

import pytest

from services.gpu_instance.batcher import Batcher, StepLoad
from shared.latency_model import LatencyProfile


@pytest.mark.parametrize("num_decodes", [0, 4])
def test_prompts_given_as_an_iterator_get_the_same_budget_as_a_list(num_decodes: int) -> None:
    prompts = [(500, 0), (300, 100), (2000, 0)]
    budgets = [
        Batcher(LatencyProfile.load().model)
        .plan(StepLoad(num_decodes, 1000 * num_decodes, 100.0, given))
        .token_budget
        for given in (prompts, iter(prompts))
    ]
    assert budgets[0] == budgets[1] > num_decodes
