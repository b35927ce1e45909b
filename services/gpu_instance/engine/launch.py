"""From an instance's settings to vLLM's configuration, and what the engine turned out to be."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from vllm.config import KVEventsConfig, KVTransferConfig, VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.version import __version__ as vllm_version

from services.gpu_instance.engine.seam import EngineInfo
from services.gpu_instance.settings import InstanceSettings
from shared.errors import InvalidRequest
from shared.host_cpu import cpu_name, num_cores
from shared.kv_seam import KvScheduler
from shared.latency_model import CPU_DEMO_PROFILE, DEFAULT_PROFILE, LatencyProfile
from shared.schemas.handoff import Transport
from shared.schemas.registry import Geometry, LatencyCoefficients

log = logging.getLogger("dynaserve.gpu_instance.engine")

CONNECTOR_MODULE = "services.kv_transfer.connector.connector"
SCHEDULERS = "services.gpu_instance.engine.slo_scheduler"
WHOLE_GRAPHS_BELOW_MS = 40.0
"""Of TBT. Measured on either side: 25 ms cannot be held without them, 50 ms can."""


def vllm_config(settings: InstanceSettings) -> VllmConfig:
    """The configuration of this instance's engine; vLLM's flags mean what they mean there.

    Raises InvalidRequest for flags that vLLM does not know or that this engine replaces.
    """
    args = _engine_args(settings)
    for flag in ("kv_transfer_config", "scheduler_cls"):
        if getattr(args, flag):
            raise InvalidRequest(f"--{flag.replace('_', '-')} is set by the instance itself", flag)
    args.kv_transfer_config = KVTransferConfig(
        kv_connector="DynaServeConnector",
        kv_connector_module_path=CONNECTOR_MODULE,
        kv_role="kv_both",
        kv_load_failure_policy="recompute",
        kv_connector_extra_config={
            "host": settings.kv_host,
            "host_id": settings.host_id,
            "staging_bytes": settings.kv_staging_mib * 2**20,
            "transports": list(settings.transports),
        },
    )
    if args.kv_events_config is None:  # else they are published too, as the flag says
        args.kv_events_config = KVEventsConfig(enable_kv_cache_events=True, publisher="null")
    args.additional_config = {
        **args.additional_config,
        "dynaserve_batcher": settings.batcher,
        "dynaserve_latency_profile": str(settings.latency_profile or shipped_profile()),
        "dynaserve_profiled": settings.latency_profile is not None,
    }
    if not torch.cuda.is_available() and args.tensor_parallel_size == 1:
        # The worker lives in this process: one process less, and a start twice as fast. (vLLM's
        # CPU platform puts it into a process of its own unless this variable says otherwise.)
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        args.distributed_executor_backend = args.distributed_executor_backend or "uni"
        args.enforce_eager = True
    if _wants_whole_graphs(args, settings.slo_tbt_ms):
        args.compilation_config.cudagraph_mode = CUDAGraphMode.FULL
    config = args.create_engine_config(UsageContext.ENGINE_CONTEXT)
    mode = "SloAsyncScheduler" if config.scheduler_config.async_scheduling else "SloScheduler"
    config.scheduler_config.scheduler_cls = f"{SCHEDULERS}.{mode}"
    return config


def _wants_whole_graphs(args: AsyncEngineArgs, slo_tbt_ms: float) -> bool:
    """Whether steps with prompts are to be captured whole, attention included.

    By default vLLM captures such a step in parts and launches them one by one: 13 to 24 ms of the
    host for 48 layers, whatever the step's size, so that prompts cannot be computed beside decodes
    within 25 ms. Whole, a step takes what its work does. Decodes of long contexts then take some
    5 % more (they have no graph of their own), so an SLO with room for launches goes without.
    FlashAttention 3, which is Hopper's, can be captured so; elsewhere vLLM would fall back.
    """
    chosen = args.compilation_config.cudagraph_mode is not None or args.enforce_eager
    return not chosen and slo_tbt_ms < WHOLE_GRAPHS_BELOW_MS and _is_hopper()


def _is_hopper() -> bool:
    return current_platform.is_cuda() and current_platform.is_device_capability_family(90)


def shipped_profile() -> Path:
    """The profile nearest to this machine; ``dynaserve profile`` makes one of its own."""
    return DEFAULT_PROFILE if torch.cuda.is_available() else CPU_DEMO_PROFILE


def _engine_args(settings: InstanceSettings) -> AsyncEngineArgs:
    parser = FlexibleArgumentParser(prog="dynaserve instance", exit_on_error=False)
    parser = AsyncEngineArgs.add_cli_args(parser)
    parsed, unknown = parser.parse_known_args(list(settings.engine_args))
    if unknown:
        _refuse_unless_for_the_gateway(unknown, list(settings.engine_args))
    parsed.model = settings.model
    return AsyncEngineArgs.from_cli_args(parsed)


def _refuse_unless_for_the_gateway(unknown: list[str], given: list[str]) -> None:
    """A pool is started with one set of flags: those of vLLM's HTTP server are the gateway's."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser  # half a second, rarely needed

    serve = make_arg_parser(FlexibleArgumentParser(prog="vllm serve", exit_on_error=False))
    _parsed, strange = serve.parse_known_args(given)
    if strange:
        raise InvalidRequest(f"neither vLLM nor this instance knows {' '.join(strange)}")
    log.info("without effect here, for gateways alone: %s", " ".join(unknown))


def model_hash(config: VllmConfig) -> str:
    """Equal for the same architecture and the same name of weights."""
    model = config.model_config
    shape: dict[str, Any] = {
        key: value
        for key, value in model.hf_config.to_dict().items()
        if key not in ("transformers_version", "_name_or_path")
    }
    text = json.dumps(shape, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def engine_info(config: VllmConfig, tasks: tuple[str, ...], kv: KvScheduler) -> EngineInfo:
    """What goes into the registry."""
    num_layers, block_bytes, layout = kv.kv_geometry
    model, cache, scheduler = config.model_config, config.cache_config, config.scheduler_config
    transports: list[Transport] = config.kv_transfer_config.kv_connector_extra_config["transports"]
    served = model.served_model_name or model.model
    return EngineInfo(
        geometry=Geometry(
            model=served if isinstance(served, str) else served[0],
            model_hash=model_hash(config),
            dtype=str(model.dtype).removeprefix("torch."),
            kv_dtype=str(cache.cache_dtype),
            block_size=cache.block_size,
            num_layers=num_layers,
            block_bytes=block_bytes,
            kv_layout=layout,
            tensor_parallel_size=config.parallel_config.tensor_parallel_size,
            vllm_version=vllm_version,
        ),
        kv_addresses=kv.kv_addresses,
        transports=transports,
        num_blocks=cache.num_gpu_blocks or 0,
        max_model_len=model.max_model_len,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        supported_tasks=list(tasks),
        device=device_name(),
        latency=_coefficients(config),
    )


def _coefficients(config: VllmConfig) -> LatencyCoefficients:
    """What the instance starts with; its load reports carry what it has learned since."""
    path = Path(config.additional_config["dynaserve_latency_profile"])
    return LatencyCoefficients.of(LatencyProfile.load(path).model)


def device_name() -> str:
    """The GPU's product name and identity (two instances may not share one), or the processor."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)} {torch.cuda.get_device_properties(0).uuid}"
    return f"cpu ({cpu_name()}, {num_cores()} cores)"
