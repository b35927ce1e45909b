"""A generation request as it crosses the bus: what an instance needs to run it."""

from pydantic import Field, JsonValue

from shared.schemas.message import PackedTokens, Part


class Slo(Part):
    """Latency objectives of one request; a request that misses either does not count as goodput."""

    ttft_s: float = Field(gt=0, description="time to first token, seconds")
    tbt_s: float = Field(gt=0, description="P99 gap between its consecutive tokens, seconds")
    name: str = Field(default="default", max_length=32, description="class shown in metrics")


class GenerationRequest(Part):
    """Everything that defines a request's output, independent of where it runs.

    ``output_token_ids`` is empty at first; after an instance is lost it holds the tokens the client
    already has, and the run goes on behind them (positions P .. P+k-1 are never made again).
    """

    request_id: str = Field(min_length=1, max_length=256)
    prompt_token_ids: PackedTokens
    output_token_ids: PackedTokens = b""
    sampling_params: dict[str, JsonValue] | None = Field(
        default=None, description="vLLM SamplingParams, fields at their defaults left out"
    )
    pooling_params: dict[str, JsonValue] | None = None
    max_tokens: int = Field(ge=0, description="output bound, counted from the prompt's end")
    priority: int = 0
    cache_salt: str | None = None
    arrival_time_s: float = Field(description="unix time at the gateway")
    deadline_s: float = Field(description="unix time after which nobody waits for the answer")
    slo: Slo
    splittable: bool = Field(default=True, description="False: must run on one instance")
    trace_headers: dict[str, str] | None = None
    reasoning_ended: bool | None = Field(
        default=None, description="structured output: the prompt already ends the reasoning"
    )
    reasoning_parser_kwargs: dict[str, JsonValue] | None = None
