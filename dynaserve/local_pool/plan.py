"""Which processes make up a pool: a pure function of settings and hardware."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from dynaserve.local_pool.hardware import Hardware, cpu_environment
from dynaserve.local_pool.settings import DEMO_ENGINE_ARGS, DEMO_GATEWAY_ARGS, PoolSettings
from shared.errors import InvalidRequest


@dataclass(frozen=True)
class Part:
    """One process: its name in the pool, the module it runs and what it is told."""

    name: str
    module: str
    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    metrics_address: str = ""
    """host:port that answers /metrics."""


def plan_parts(
    settings: PoolSettings, hardware: Hardware, nats_url: str, demo_model: str
) -> list[Part]:
    """All parts in the order they start. Raises InvalidRequest for what this machine cannot do."""
    bus = ("--nats", nats_url, "--pool", settings.pool)
    model, engine_args = _model(settings, demo_model)
    parts = [
        Part(f"kv-transfer-{n}", "services.kv_transfer", (*bus, "--id", f"kv-transfer-{n}"))
        for n in range(settings.coordinators)
    ]
    parts += [
        Part(
            f"scheduler-{n}",
            "services.global_sched",
            (*bus, "--id", f"scheduler-{n}", *_admission(settings), "--policy", settings.policy),
        )
        for n in range(settings.schedulers)
    ]
    parts += _instances(settings, hardware, bus, model, engine_args)
    parts += [_gateway(n, settings, bus, model, engine_args) for n in range(settings.gateways)]
    return parts


def _admission(settings: PoolSettings) -> tuple[str, ...]:
    flags: tuple[str, ...] = ("--admission", settings.admission)
    if settings.queue_classes:
        flags += ("--queue-classes", settings.queue_classes)
    if settings.max_queued is not None:
        flags += ("--max-queued", str(settings.max_queued))
    return flags


def num_instances(settings: PoolSettings, hardware: Hardware) -> int:
    """As asked; else one a GPU (or a tensor-parallel group of them), or 2 without a GPU."""
    return settings.instances or len(hardware.gpus) // _gpus_each(settings) or 2


def _model(settings: PoolSettings, demo_model: str) -> tuple[str, tuple[str, ...]]:
    if settings.model:
        return settings.model, tuple(settings.engine_args)
    return demo_model, (*DEMO_ENGINE_ARGS, *settings.engine_args)


def _instances(
    settings: PoolSettings,
    hardware: Hardware,
    bus: tuple[str, ...],
    model: str,
    engine_args: tuple[str, ...],
) -> list[Part]:
    count, each = num_instances(settings, hardware), _gpus_each(settings)
    if hardware.gpus and count * each > len(hardware.gpus):
        raise InvalidRequest(
            f"{count} instances of {each} GPU(s) need {count * each} GPUs, this machine shows "
            f"{len(hardware.gpus)}; lower --instances or --tensor-parallel-size",
            "instances",
        )
    roles = [role for role in settings.roles.split(",") if role]
    extra: tuple[str, ...] = ("--batcher", settings.batcher)
    extra += ("--slo-tbt-ms", str(settings.slo_tbt_ms))  # its CUDA graphs are made for it
    if settings.transports:
        names = ",".join(f'"{name}"' for name in settings.transports.split(","))
        extra += ("--transports", f"[{names}]")
    if settings.latency_profile is not None:
        extra += ("--latency-profile", str(settings.latency_profile))
    parts = []
    for n in range(count):
        if hardware.gpus:
            environment = {
                "CUDA_VISIBLE_DEVICES": ",".join(hardware.gpus[n * each : (n + 1) * each])
            }
        else:
            environment = cpu_environment(hardware, count, demo=not settings.model)
        role = ("--role", roles[n]) if n < len(roles) else ()
        arguments = (
            *(_simulated(model) if settings.engine == "simulated" else (model,)),
            *(*bus, "--id", f"instance-{n}", *role, *extra),
            *(settings.engine_args if settings.engine == "simulated" else engine_args),
        )
        parts.append(Part(f"instance-{n}", "services.gpu_instance", arguments, environment))
    return parts


def _simulated(model: str) -> tuple[str, ...]:
    """Tokens of a simulated engine must be ones that the model's tokenizer knows."""
    config = Path(model, "config.json")
    known = json.loads(config.read_text())["vocab_size"] if config.exists() else 32_000
    return (model, "--engine", "simulated", "--vocab-size", str(known))


def _gateway(
    n: int,
    settings: PoolSettings,
    bus: tuple[str, ...],
    model: str,
    engine_args: tuple[str, ...],
) -> Part:
    return Part(
        f"gateway-{n}",
        "services.gateway",
        (
            model,
            *bus,
            "--id",
            f"gateway-{n}",
            "--host",
            settings.host,
            "--port",
            str(settings.port + n),
            "--slo-tbt-ms",
            str(settings.slo_tbt_ms),
            "--slo-ttft-ms",
            str(settings.slo_ttft_ms),
            *(() if settings.model else DEMO_GATEWAY_ARGS),
            *_gateway_engine_args(settings, engine_args),
        ),
        # The gateway computes nothing. It may see GPUs (vLLM's configuration asks what kind they
        # are) but opens none.
        {"OMP_NUM_THREADS": "1"},
        f"{'127.0.0.1' if settings.host == '0.0.0.0' else settings.host}:{settings.port + n}",
    )


def _gateway_engine_args(settings: PoolSettings, engine_args: tuple[str, ...]) -> tuple[str, ...]:
    """The flags of a simulated engine are not vLLM's: the gateway's model is as it comes."""
    if settings.engine == "vllm":
        return engine_args
    return () if settings.model else DEMO_ENGINE_ARGS


def _gpus_each(settings: PoolSettings) -> int:
    """Value of --tensor-parallel-size (-tp) among vLLM's flags."""
    args = list(settings.engine_args)
    for index, argument in enumerate(args):
        flag, _, value = argument.partition("=")
        if flag in ("--tensor-parallel-size", "-tp"):
            return int(value or args[index + 1])
    return 1
