"""What ``dynaserve bench`` can be told: flags, then ``DYNASERVE_BENCH_*``, then defaults."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import AliasChoices, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from dynaserve.bench.load import Arrivals, Load, check_load, read_load_trace
from dynaserve.bench.ramp import Ramp
from dynaserve.bench.slo import Slos, parse_slos
from dynaserve.bench.systems import System, parse_systems
from shared.errors import InvalidRequest


class BenchSettings(BaseSettings):
    """Replay traces against an OpenAI endpoint, or against a pool whose systems are compared."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="DYNASERVE_BENCH_",
        extra="forbid",
        populate_by_name=True,
        cli_prog_name="dynaserve bench",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    trace: tuple[str, ...] = Field(
        description="trace file (CSV, plain or .gz) or synthetic:PROMPT:OUTPUT; several make a "
        "hybrid of alternating windows"
    )
    url: tuple[str, ...] = Field(
        default=(),
        description="endpoints, in turn; default: the pool's gateways, else 127.0.0.1:8000",
    )
    model: str | None = Field(default=None, description="served name; default: the first served")
    nats: str | None = Field(default=None, description="NATS server of the pool, to switch systems")
    pool: str = Field(default="default", description="name of the pool on that server")
    api_key: str | None = Field(default=None, description="sent as bearer token")

    request_rate: float | None = Field(
        default=None,
        gt=0,
        description="requests per second; a recorded trace is stretched in time. With --ramp the "
        "first rate. Default: the trace's own",
    )
    arrivals: Arrivals = Field(
        default="auto", description="recorded, poisson, or auto: recorded where the trace has them"
    )
    burstiness: float = Field(
        default=1.0, gt=0, description="shape of gamma gaps: 1 is Poisson, below 1 comes in bursts"
    )
    window_s: float = Field(default=15.0, gt=0, description="length of a window of a hybrid")
    length_scale: float = Field(default=1.0, gt=0, description="factor on all token counts")
    max_model_len: int | None = Field(
        default=None, gt=2, description="longer requests are cut; default: what the server says"
    )
    vocab_size: int | None = Field(
        default=None, gt=10, description="of the model; default: from its folder, else 1000"
    )
    shared_prefix_tokens: int = Field(
        default=0, ge=0, description="so many first tokens of each prompt are shared ones"
    )
    num_shared_prefixes: int = Field(default=1, ge=1, description="different shared prefixes")
    seed: int = Field(default=0, description="of arrivals and prefixes; repeats add 1 each")
    prompt_seed: int | None = Field(
        default=None,
        description="of prompt ids; default: another each time, so that no prompt is cached",
    )

    duration_s: float = Field(
        default=60.0, gt=0, description="requests due in this time are measured (per ramp step)"
    )
    warmup_s: float = Field(default=0.0, ge=0, description="sent before that, not measured")
    num_warmups: int = Field(default=2, ge=0, description="requests sent before the clock starts")
    max_concurrency: int | None = Field(
        default=None, ge=1, description="at most so many under way; waiting counts into TTFT"
    )
    client_processes: int = Field(
        default=1, ge=1, description="processes that send, where one cannot keep up"
    )
    timeout_s: float = Field(default=600.0, gt=0, description="a request taking longer failed")

    slo_ttft_ms: tuple[str, ...] = Field(
        default=(), description="MS, or CLASS=MS for one traffic class (trace name)"
    )
    slo_ttft_ms_per_token: tuple[str, ...] = Field(
        default=(), description="added per prompt token: MS or CLASS=MS"
    )
    slo_tbt_ms: tuple[str, ...] = Field(
        default=(), description="P99 gap between a request's tokens: MS or CLASS=MS"
    )

    ramp: bool = Field(default=False, description="find the highest rate that meets --ramp-goal")
    ramp_growth: float = Field(default=1.5, gt=1, description="factor from one step to the next")
    ramp_goal: float = Field(default=0.9, gt=0, le=1, description="share of requests in SLO")
    ramp_precision: float = Field(
        default=0.05, gt=0, lt=1, description="stop when capacity is known this well"
    )
    ramp_max_rate: float = Field(default=1e6, gt=0, description="never try a higher rate")

    compare: tuple[str, ...] = Field(
        default=(),
        description="systems in turn on the same engines: POLICY/slo, POLICY/static:N, "
        "disaggregated:XpYd/...; needs --nats",
    )
    repeats: int = Field(default=1, ge=1, description="rounds over all systems, interleaved")
    settle_s: float = Field(default=1.0, ge=0, description="pause between runs")

    json_file: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("json", "json_file"),
        description="write all figures here",
    )
    plot: Path | None = Field(default=None, description="write a plot (PNG) here")
    save_detailed: bool = Field(default=False, description="every request goes into the JSON too")
    device: str | None = Field(
        default=None, description="device name for the JSON, where no registry tells it"
    )

    @property
    def slos(self) -> Slos:
        return parse_slos(self.slo_ttft_ms, self.slo_ttft_ms_per_token, self.slo_tbt_ms)

    @property
    def systems(self) -> tuple[System, ...]:
        return parse_systems(self.compare)

    @property
    def until_s(self) -> float:
        return self.warmup_s + self.duration_s

    def load(self) -> Load:
        """Reads the traces. ``max_model_len`` may still be unknown."""
        return Load(
            traces=tuple(read_load_trace(name) for name in self.trace),
            arrivals=self.arrivals,
            burstiness=self.burstiness,
            window_s=self.window_s,
            length_scale=self.length_scale,
            max_model_len=self.max_model_len,
            shared_prefix_tokens=self.shared_prefix_tokens,
            num_shared_prefixes=self.num_shared_prefixes,
            seed=self.seed,
        )

    def ramp_plan(self) -> Ramp | None:
        if not self.ramp:
            return None
        assert self.request_rate is not None
        return Ramp(
            self.request_rate,
            self.ramp_growth,
            self.ramp_goal,
            self.ramp_precision,
            self.ramp_max_rate,
        )


RAMP_OPTIONS = ("ramp_growth", "ramp_goal", "ramp_precision", "ramp_max_rate")


def check(settings: BenchSettings) -> Load:
    """The load. Raises InvalidRequest for contradictions and for options without effect."""
    load = settings.load()
    check_load(load, settings.request_rate)
    given = settings.model_fields_set
    if settings.compare and settings.nats is None:
        raise InvalidRequest("--compare switches a pool over NATS: give --nats", "nats")
    if settings.ramp and settings.request_rate is None:
        raise InvalidRequest("--ramp starts at --request-rate: give one", "request_rate")
    if not settings.ramp and (unused := given.intersection(RAMP_OPTIONS)):
        raise InvalidRequest(f"without --ramp {min(unused)} has no effect", min(unused))
    if "window_s" in given and len(load.traces) == 1:
        raise InvalidRequest("--window-s is for several traces", "window_s")
    if "num_shared_prefixes" in given and not settings.shared_prefix_tokens:
        raise InvalidRequest(
            "without --shared-prefix-tokens it has no effect", "num_shared_prefixes"
        )
    if settings.ramp and settings.slos == Slos():
        raise InvalidRequest("--ramp needs an objective, e.g. --slo-tbt-ms 100", "slo_tbt_ms")
    _ = settings.systems
    return load


def read_settings(arguments: Sequence[str]) -> BenchSettings:
    """Settings from flags, environment and defaults. Exits with usage on a wrong flag."""
    try:
        return BenchSettings(_cli_parse_args=list(arguments))
    except ValidationError as error:
        first = error.errors()[0]
        name = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
        raise InvalidRequest(f"{name}: {first['msg']}", name) from error
