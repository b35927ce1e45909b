"""Go on sampling where another engine stopped, on vLLM's V1 model runner.

A segment that starts behind P already has output tokens. The scheduler's ``Request`` says so (its
output list is filled before it is added), and the V2 runner takes it from there: it treats the
request as one resumed after preemption, and keys seeded noise by position. The V1 runner builds its
state of a *new* request from the prompt alone; here, at the moment a request joins its batch, the
prior tokens are put in and its random generator is brought to where it would be.
"""

from collections.abc import Callable
from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

PRIOR_TOKENS = "dynaserve_prior_tokens"

_original_add: Callable[[InputBatch, CachedRequestState], int] | None = None


class RewindableGenerator(torch.Generator):
    """A CPU generator that can take back the draw of a discarded prompt chunk.

    vLLM samples after every chunk of a prompt and rewinds the generator by its offset when the
    sample is to be thrown away; CPU generators have no offset ("CPU Generator does not use offset"
    ends the engine). One draw is made per token, so the state that belongs to a request is the
    seed advanced by the number of its output tokens.
    """

    outputs: list[int]

    @classmethod
    def after(cls, seed: int, outputs: list[int]) -> "RewindableGenerator":
        generator = cls()
        generator.outputs = outputs
        generator.manual_seed(seed)
        generator.set_offset(0)
        return generator

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> None:
        """Back to where the kept tokens left it; vLLM only ever asks for one draw less."""
        self.manual_seed(self.initial_seed())
        for _ in self.outputs:
            draw_cpu_sample_seed(self)


def draw_cpu_sample_seed(generator: torch.Generator) -> None:
    """What vLLM's CPU sampler draws for each token (forward_cpu in topk_topp_sampler)."""
    torch.randint(0, 2**31, (1,), generator=generator, dtype=torch.long)


def install() -> None:
    """Wrap ``InputBatch.add_request``; once per worker process, harmless under the V2 runner."""
    global _original_add
    if _original_add is None:
        _original_add = InputBatch.add_request
        InputBatch.add_request = _add_request


def set_prior_tokens(sampling_params: SamplingParams, prior_tokens: list[int]) -> None:
    """Scheduler side: the tokens travel to the worker inside the request's sampling parameters."""
    sampling_params.extra_args = {
        **(sampling_params.extra_args or {}),
        PRIOR_TOKENS: prior_tokens,
    }


def prior_tokens(sampling_params: SamplingParams | None) -> list[int]:
    """What ``set_prior_tokens`` put in; empty for a request that starts at its prompt."""
    extra = sampling_params.extra_args if sampling_params is not None else None
    return list(extra.get(PRIOR_TOKENS, ())) if extra else []


def _add_request(batch: InputBatch, request: CachedRequestState) -> int:
    assert _original_add is not None
    if not request.output_token_ids:  # else: it was preempted and comes back
        request.output_token_ids.extend(prior_tokens(request.sampling_params))
    generator = request.generator
    if generator is not None and not isinstance(generator, RewindableGenerator):
        request.generator = _continued(generator, request, batch.vocab_size)
    return _original_add(batch, request)


def _continued(generator: torch.Generator, request: Any, vocab_size: int) -> torch.Generator:
    if generator.device.type == "cpu":
        return RewindableGenerator.after(generator.initial_seed(), request.output_token_ids)
    if request.num_computed_tokens and request.output_token_ids:
        noise = torch.empty(vocab_size, device=generator.device)
        for _ in request.output_token_ids:
            noise.exponential_(generator=generator)
    return generator
