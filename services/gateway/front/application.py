"""vLLM's HTTP application over a pool: its own routes, plus three routes of ours."""

import argparse
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.logger import configure_logging_from_args
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser

from services.gateway.actor import GatewayActor
from services.gateway.front.front_half import FrontHalf
from services.gateway.live.routes import live_routes
from services.gateway.middleware import error_response
from services.gateway.pool_view import pool_view, request_view

NO_EFFECT = {
    "enable_lora": "LoRA adapters are not served by a pool",
    "lora_modules": "LoRA adapters are not served by a pool",
    "enable_prompt_embeds": "prompt embeddings are not served by a pool",
    "headless": "the gateway is the HTTP server",
    "grpc": "the gateway speaks HTTP",
    "kv_transfer_config": "instances set up their own KV transfer",
}
"""Flags of ``vllm serve`` that would silently do nothing here, and why."""


def parse_vllm_args(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of ``vllm serve``; exits with usage on a wrong one or one without effect."""
    parser = make_arg_parser(
        FlexibleArgumentParser(
            prog="dynaserve gateway", description="Flags of `vllm serve` that a gateway takes."
        )
    )
    args = parser.parse_args(list(arguments))
    for name, why in NO_EFFECT.items():
        if getattr(args, name, None):
            parser.error(f"--{name.replace('_', '-')} has no effect: {why}")
    if args.data_parallel_size != 1:
        parser.error("--data-parallel-size has no effect: start more instances instead")
    if args.api_server_count not in (None, 1):
        parser.error("--api-server-count has no effect: start more gateways instead")
    if args.model_tag is not None:
        args.model = args.model_tag
    configure_logging_from_args(args)
    validate_parsed_serve_args(args)
    return args


def build_config(args: argparse.Namespace) -> VllmConfig:
    """The engine configuration that the instances have too."""
    engine_args = AsyncEngineArgs.from_cli_args(args)
    return engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)


async def build_application(
    llm: FrontHalf, args: argparse.Namespace, actor: GatewayActor
) -> FastAPI:
    """The application, to be served behind ``PoolMiddleware``."""
    tasks = await llm.get_supported_tasks()
    app = build_app(args, tasks, llm.model_config)
    await init_app_state(llm, app.state, args, tasks)
    app.router.routes[:0] = pool_routes(actor)
    return app


def pool_routes(actor: GatewayActor) -> list[Route]:
    """Routes of ours; they come before vLLM's of the same path."""

    async def health(_request: Request) -> Response:
        problem = actor.problem()
        if problem is None:
            return Response(status_code=200)
        return error_response(503, "Service Unavailable", f"cannot serve: {problem}")

    async def pool(_request: Request) -> Response:
        return JSONResponse(pool_view(actor))

    async def request(request: Request) -> Response:
        found = await request_view(actor, request.path_params["http_request_id"])
        if found is None:
            return error_response(404, "NotFoundError", "no such request is over, or long ago")
        return JSONResponse(found)

    def too_many() -> Response:
        return error_response(503, "Service Unavailable", "the live view has all its clients")

    return [
        Route("/health", health),
        Route("/dynaserve/pool", pool),
        *live_routes(actor.broadcast, too_many),
        Route("/dynaserve/requests/{http_request_id:path}", request),
    ]
