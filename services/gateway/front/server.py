"""Runs the gateway: bus, actor, vLLM's front half and the HTTP server, until a signal."""

import argparse
import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI
from vllm import envs
from vllm.config import VllmConfig
from vllm.entrypoints.launchers.launcher import NoSignalServer, setup_server
from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config
from vllm.v1.metrics.stats import SchedulerStats

from services.gateway.actor import GatewayActor
from services.gateway.front.application import build_application, build_config
from services.gateway.front.client import PoolEngineClient
from services.gateway.front.front_half import build_front_half
from services.gateway.front.translate import Translator
from services.gateway.http_context import read_context
from services.gateway.middleware import PoolMiddleware
from services.gateway.settings import GatewaySettings
from shared.bus import Bus
from shared.registry import PoolRegistry
from shared.service import freeze_heap

LOAD_REPORT_S = 1.0
POOLING_WAIT_S = 600.0
"""Only an instance knows what a pooling model can do; the gateway waits this long for one."""


async def serve(settings: GatewaySettings, args: argparse.Namespace, bus: Bus) -> None:
    """Serve until SIGTERM or SIGINT: then take nothing new, let requests end, and leave."""
    address, listener = setup_server(args, reuse_port=False)
    with contextlib.closing(listener):
        config = build_config(args)
        client = PoolEngineClient(Translator(config, settings), lambda: read_context({}, settings))
        names = args.served_model_name or [args.model]
        actor = GatewayActor(bus, settings, client, url=address, model=names[0])
        client.connect(actor)
        async with _running(actor):
            client.supported_tasks = await _supported_tasks(config, actor.registry)
            llm = build_front_half(config, args, client, actor.problem)
            try:
                app = await build_application(llm, args, actor)
                freeze_heap()
                await _serve_http(app, listener, args, actor, settings, client)
            finally:
                llm.shutdown()


@contextlib.asynccontextmanager
async def _running(actor: GatewayActor) -> AsyncIterator[None]:
    """The actor beside the body; when either fails, both end."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(actor.run(), name="gateway")
        await actor.ready.wait()
        try:
            yield
        finally:
            actor.stop()


async def _supported_tasks(config: VllmConfig, registry: PoolRegistry) -> tuple[str, ...]:
    if config.model_config.runner_type == "generate":
        return ("generate",)
    async with asyncio.timeout(POOLING_WAIT_S):
        await registry.wait_until(lambda r: bool(r.instances))
    return tuple(next(iter(registry.instances.values())).supported_tasks)


async def _serve_http(
    app: FastAPI,
    listener: socket.socket,
    args: argparse.Namespace,
    actor: GatewayActor,
    settings: GatewaySettings,
    client: PoolEngineClient,
) -> None:
    server = build_server(app, args, settings)
    app.state.server = server

    def shut_down() -> None:
        server.should_exit = True
        actor.broadcast.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, shut_down)
    reporter = asyncio.create_task(report_load(actor, client))
    try:
        await server.serve(sockets=[listener])
    finally:
        reporter.cancel()


def build_server(
    app: FastAPI, args: argparse.Namespace, settings: GatewaySettings
) -> NoSignalServer:
    """uvicorn as ``vllm serve`` sets it up."""
    options = {} if (log := get_uvicorn_log_config(args)) is None else {"log_config": log}
    config = uvicorn.Config(
        PoolMiddleware(app, settings),
        host=args.host,
        port=args.port,
        log_level=args.uvicorn_log_level,
        access_log=not args.disable_uvicorn_access_log,
        timeout_keep_alive=envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
        ssl_ciphers=args.ssl_ciphers,
        **options,
    )
    config.h11_max_incomplete_event_size = args.h11_max_incomplete_event_size
    config.h11_max_header_count = args.h11_max_header_count  # type: ignore[attr-defined]
    config.load()
    return NoSignalServer(config)


async def report_load(actor: GatewayActor, client: PoolEngineClient) -> None:
    """Until cancelled: the pool's load, as vLLM's gauges show an engine's."""
    while True:
        loads = actor.loads.values()
        blocks = sum(load.num_blocks for load in loads)
        free = sum(load.free_blocks for load in loads)
        client.report_load(
            SchedulerStats(
                num_running_reqs=sum(load.num_running for load in loads),
                num_waiting_reqs=sum(load.num_waiting for load in loads),
                kv_cache_usage=1 - free / blocks if blocks else 0.0,
            )
        )
        await asyncio.sleep(LOAD_REPORT_S)
